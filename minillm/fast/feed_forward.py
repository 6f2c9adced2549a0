"""GELU by torch's fused kernel, and SwiGLU that saves only its inputs for the backward pass.

gate σ(gate) is recomputed in the backward pass: saved, it would be a fifth of all activations that a Llama with frozen
matrices saves.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu(up: Tensor) -> Tensor:
    return F.gelu(up, approximate="tanh")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return _SwiGLU.apply(gate, up)  # pyright: ignore[reportReturnType]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        gate, up = ctx.saved_tensors
        d_gate = torch.ops.aten.silu_backward(gradients[0] * up, gate) if ctx.needs_input_grad[0] else None
        return d_gate, F.silu(gate).mul_(gradients[0]) if ctx.needs_input_grad[1] else None
