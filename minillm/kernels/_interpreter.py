"""Where a kernel runs: compiled on a GPU, or interpreted on a CPU."""

import triton.language as tl
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether kernels are interpreted."""
WIDEN = tl.constexpr(INTERPRETED)
"""Cast factors to float32 before a product: the interpreter multiplies bfloat16 wrongly."""
EXACT = tl.constexpr("ieee")
"""Multiply float32 with its full mantissa, as torch does by default; TF32 tensor cores round it to 10 bits."""
