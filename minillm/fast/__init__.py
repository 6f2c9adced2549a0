"""The operations of `ops` under the same file names and arguments, as fast as a CPU and torch allow.

Each file states its gain over the formula and where that was measured. The formula and the shapes of the arguments are
in `ops`. For other dtypes or devices a function calls the formula. Both are tested to be equal, in the output and in
every gradient.
"""

from minillm.fast import attention, feed_forward, linear, linear_cross_entropy, lora, lora_by_row, norm

__all__ = ["attention", "feed_forward", "linear", "linear_cross_entropy", "lora", "lora_by_row", "norm"]
