"""Benchmarks that are run by hand, each as `python -m benchmarks.NAME`; README.md says what they measure."""
