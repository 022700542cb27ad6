"""Measurements of the platform. `python -m benchmarks.data --help` says how to repeat them."""
