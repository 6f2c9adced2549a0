"""The operations of `ops`, which has their formulas and shapes, as fast as a CPU and torch allow. See README.md."""

from minillm.fast import attention, decoding, feed_forward, linear, linear_cross_entropy, lora, lora_by_row, norm
