"""Benchmarks that are run by hand: `python -m benchmarks.parity`, `python -m benchmarks.overhead`."""
