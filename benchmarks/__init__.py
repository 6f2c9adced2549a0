"""Benchmarks: check first, then time, always next to a peer in the same run: `python -m benchmarks.NAME --help`."""
