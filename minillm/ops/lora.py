"""A frozen Linear and its low-rank update (Hu et al. 2021, equation 3): x Wᵀ + b + s (x Aᵀ) Bᵀ.

dW = s B A, of rank R at most, with s = alpha / R. The gradient of B reuses x Aᵀ from the forward pass and the
gradients of A and of x share g B, so that the update costs 6 N R (I + O) FLOPs a step beyond the frozen
Linear, and W gets no gradient at all.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.shapes import Float


class _LoRA(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float):
        low = F.linear(x, a).mul_(scale)
        out = F.linear(x, weight, bias)
        out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.T)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        x, weight, a, b, low = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])
        shared = (gradient @ b).mul_(ctx.scale)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (gradient @ weight).addmm_(shared, a).view(x.shape)
        d_a = shared.T @ x.reshape(-1, x.shape[-1])
        d_b = gradient.T @ low.view(-1, low.shape[-1])
        return d_x, None, None, d_a, d_b, None


def lora(
    x: Float[Tensor, "*N I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, "O"] | None,
    a: Float[Tensor, "R I"],
    b: Float[Tensor, "O R"],
    scale: float,
) -> Float[Tensor, "*N O"]:
    """x Wᵀ + bias + scale (x Aᵀ) Bᵀ. W and its bias are constants here: only x, A and B get gradients.

    Everything is computed in the dtype of W; A and B may be kept in a wider one.
    """
    dtype = weight.dtype
    return _LoRA.apply(x.to(dtype), weight, bias, a.to(dtype), b.to(dtype), scale)  # pyright: ignore[reportReturnType]
