"""The operations of figure 1 as formulas, in plain torch: all other implementations are tested against them.

Pure functions on tensors, differentiated by autograd, without parameters of their own. Each file has the same name in
`reference` (numpy, forward and backward by hand), and in `fast` and `kernels` where a faster version exists. The
decoder and the methods call them through `minillm.operations`, which chooses an implementation.
"""

from minillm.ops import attention, dora, feed_forward, linear, linear_cross_entropy, lora, lora_by_row, norm, positions

__all__ = [
    "attention", "dora", "feed_forward", "linear", "linear_cross_entropy", "lora", "lora_by_row", "norm", "positions",
]  # fmt: skip
