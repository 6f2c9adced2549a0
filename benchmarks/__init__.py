"""Check first, then time, always beside a peer in the same run: `python -m benchmarks.NAME --help`."""
