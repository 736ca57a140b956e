"""Benchmarks that are answered with the letter of a choice."""
