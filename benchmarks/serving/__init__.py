"""The endpoint against other ways of serving the same model: `python -m benchmarks.serving`."""
