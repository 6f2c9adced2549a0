"""The operations of figure 1 as formulas in torch: pure functions, differentiated by autograd. See README.md."""

from minillm.ops import attention, dora, feed_forward, linear, linear_cross_entropy, lora, lora_by_row, norm, positions
