"""Benchmarks that are answered with a word, a phrase or a sentence."""
