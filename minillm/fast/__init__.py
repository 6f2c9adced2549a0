"""The operations of `ops` under the same file names and arguments, as fast as a CPU and torch allow.

Each file states its gain over the formula and where that was measured. For other dtypes or devices a function calls
the formula. Both are tested to be equal, in the output and in every gradient.
"""
