"""Benchmarks that are answered with yes or no."""
