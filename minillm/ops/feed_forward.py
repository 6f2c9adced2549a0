"""The non-linearity of the feed-forward layer (figure 1). The Linears around it belong to the decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops import by_kernel
from minillm.shapes import Float


def relu(up: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
    """max(0, x): Vaswani et al. 2017, equation 2."""
    return torch.relu(up)


def gelu(up: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
    """x Φ(x) by its tanh approximation (Hendrycks & Gimpel 2016), as GPT-2 was trained with:
    ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    if by_kernel("gelu", up, up.numel()):
        from minillm.kernels import feed_forward as kernels

        return kernels.gelu(up)
    return F.gelu(up, approximate="tanh")


def swiglu(gate: Float[Tensor, "*N F"], up: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
    """gate σ(gate) · up (Shazeer 2020, equation 6)."""
    if by_kernel("swiglu", gate, gate.numel()):
        from minillm.kernels import feed_forward as kernels

        return kernels.swiglu(gate, up)
    return F.silu(gate) * up
