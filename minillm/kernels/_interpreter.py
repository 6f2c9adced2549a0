"""What a kernel needs to know of where it runs: compiled on a GPU, or interpreted on a CPU."""

from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether kernels are interpreted, where products of bfloat16 go wrong: their factors are widened to float32 first."""

FULL_FLOAT32 = "ieee"
"""Tensor cores round float32 to 10 bits of mantissa; here it is multiplied in full, as torch does unless told else."""
