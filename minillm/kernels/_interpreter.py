"""Where a kernel runs: compiled on a GPU, or interpreted on a CPU."""

from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether kernels are interpreted. The interpreter multiplies bfloat16 wrongly: factors are cast to float32 first."""

FULL_FLOAT32 = "ieee"
"""Multiply float32 with its full mantissa, as torch does by default; TF32 tensor cores round it to 10 bits."""
