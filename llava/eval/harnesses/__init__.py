"""Models of this library for the evaluation harnesses of others."""
