"""The operations of `ops` again, under the same file names and arguments, as fast as a CPU and torch allow.

Each file says what it gains over the formula and where that was measured. Where its method does not apply (another
dtype, another device) a function calls the formula. The two are tested equal, output and every gradient.
"""
