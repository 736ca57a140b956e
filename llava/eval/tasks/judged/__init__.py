"""Benchmarks whose answers another model judges."""
