"""Lamella beside other engines on the same two cores: `python -m benchmarks.peers`."""
