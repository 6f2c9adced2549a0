"""The non-linearity of the feed-forward layer (figure 1). The Linears around it belong to the decoder."""

from typing import Any

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


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        gate, up = ctx.saved_tensors
        for_gate = torch.ops.aten.silu_backward(gradients[0] * up, gate) if ctx.needs_input_grad[0] else None
        return for_gate, gradients[0] * F.silu(gate) if ctx.needs_input_grad[1] else None


def swiglu(gate: Float[Tensor, "*N F"], up: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
    """gate σ(gate) · up (Shazeer 2020, equation 6).

    gate σ(gate) is made again for the gradient: kept, it would be a fifth of all that a Llama of frozen matrices keeps.
    """
    if by_kernel("swiglu", gate, gate.numel()):
        from minillm.kernels import feed_forward as kernels

        return kernels.swiglu(gate, up)
    return _SwiGLU.apply(gate, up)  # pyright: ignore[reportReturnType]
