"""The norm of add & norm (figure 1): layer (Ba et al. 2016) or root mean square (Zhang & Sennrich 2019).

Half precision is normalised in float32 and returned as it came; float64 stays float64.
"""

import torch
from torch import Tensor

from minillm.ops import by_kernel
from minillm.shapes import Float


def layer_norm(
    hidden: Float[Tensor, "*N D"], weight: Float[Tensor, "D"], bias: Float[Tensor, "D"], eps: float
) -> Float[Tensor, "*N D"]:
    """(x - mean x) / sqrt(var x + eps) · weight + bias, over the last axis."""
    if by_kernel("layer_norm", hidden, *_sizes(hidden)):
        from minillm.kernels import norm as kernels

        return kernels.layer_norm(hidden, weight, bias, eps)
    return torch.nn.functional.layer_norm(hidden, weight.shape, weight, bias, eps)


def rms_norm(hidden: Float[Tensor, "*N D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*N D"]:
    """x / sqrt(mean x² + eps) · weight, over the last axis: a layer norm without the mean."""
    if by_kernel("rms_norm", hidden, *_sizes(hidden)):
        from minillm.kernels import norm as kernels

        return kernels.rms_norm(hidden, weight, eps)
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * inverse_rms).to(hidden.dtype) * weight


def add_layer_norm(
    hidden: Float[Tensor, "*N D"],
    update: Float[Tensor, "*N D"],
    weight: Float[Tensor, "D"],
    bias: Float[Tensor, "D"],
    eps: float,
) -> tuple[Float[Tensor, "*N D"], Float[Tensor, "*N D"]]:
    """Add & norm: the sum x of a residual stream and what is added to it, and the layer norm of x."""
    if by_kernel("add_layer_norm", hidden, *_sizes(hidden)):
        from minillm.kernels import norm as kernels

        return kernels.add_layer_norm(hidden, update, weight, bias, eps)
    total = hidden + update
    return total, layer_norm(total, weight, bias, eps)


def add_rms_norm(
    hidden: Float[Tensor, "*N D"], update: Float[Tensor, "*N D"], weight: Float[Tensor, "D"], eps: float
) -> tuple[Float[Tensor, "*N D"], Float[Tensor, "*N D"]]:
    """Add & norm: the sum x of a residual stream and what is added to it, and the rms norm of x."""
    if by_kernel("add_rms_norm", hidden, *_sizes(hidden)):
        from minillm.kernels import norm as kernels

        return kernels.add_rms_norm(hidden, update, weight, eps)
    total = hidden + update
    return total, rms_norm(total, weight, eps)


def _sizes(hidden: Tensor) -> tuple[int, int]:
    """What a norm's speed depends on: how many rows, and how wide."""
    return hidden.shape[:-1].numel(), hidden.shape[-1]
