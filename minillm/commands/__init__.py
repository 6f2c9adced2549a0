"""The commands, one a file. Each is a function whose signature is its options; `cli.py` finds them by name."""
