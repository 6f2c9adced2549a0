"""The norm of add & norm (figure 1): layer (Ba et al. 2016) or root mean square (Zhang & Sennrich 2019).

Half precision is normalised in float32 and returned in its own dtype; float64 stays float64.
"""

import torch
from torch import Tensor

from minillm.shapes import Float


def layer_norm(
    hidden: Float[Tensor, "*N D"], weight: Float[Tensor, "D"], bias: Float[Tensor, "D"], eps: float
) -> Float[Tensor, "*N D"]:
    """(x - mean x) / sqrt(var x + eps) · weight + bias, over the last axis."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (normed * weight + bias).to(hidden.dtype)


def rms_norm(hidden: Float[Tensor, "*N D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*N D"]:
    """x / sqrt(mean x² + eps) · weight, over the last axis: a layer norm without the mean."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * inverse_rms).to(hidden.dtype) * weight
