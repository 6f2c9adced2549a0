"""A frozen Linear and its low-rank update (Hu et al. 2021, equation 3): x Wᵀ + c + s (x Aᵀ) Bᵀ.

dW = s B A, of rank R at most, with s = alpha / R. The gradient of B reuses x Aᵀ from the forward pass and the
gradients of A and of x share g B, so that the update costs 6 N R (I + O) FLOPs a step beyond the frozen
Linear (2 N R I less where x needs no gradient), and W gets no gradient at all.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops import by_kernel
from minillm.ops.linear import linear
from minillm.shapes import Float, Int

# A kernel holds x Aᵀ of its rows in registers: ranks beyond this one are left to torch.
KERNEL_RANK = 64


class _LoRA(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float,
        dropped: Tensor | None,
    ):  # fmt: skip
        low = linear(x if dropped is None else dropped, a).mul_(scale)
        out = linear(x, weight, bias)
        out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.T)
        ctx.save_for_backward(x, weight, a, b, low, dropped)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        x, weight, a, b, low, dropped = ctx.saved_tensors
        for_x, _, for_bias, for_a, for_b, _, for_dropped = ctx.needs_input_grad
        gradient = gradients[0].reshape(-1, weight.shape[0])
        shared = (gradient @ b).mul_(ctx.scale)
        d_x = linear(gradient, weight.T) if for_x else None
        if d_x is not None and dropped is None:
            d_x.addmm_(shared, a)
        read = (x if dropped is None else dropped).reshape(-1, x.shape[-1])
        return (
            d_x.view(x.shape) if d_x is not None else None,
            None,
            gradient.sum(0) if for_bias else None,
            shared.T @ read if for_a else None,
            gradient.T @ low.view(-1, low.shape[-1]) if for_b else None,
            None,
            (shared @ a).view(x.shape) if for_dropped else None,
        )


def lora(
    x: Float[Tensor, "*N I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, "O"] | None,
    a: Float[Tensor, "R I"],
    b: Float[Tensor, "O R"],
    scale: int | float,
    dropped: Float[Tensor, "*N I"] | None = None,
) -> Float[Tensor, "*N O"]:
    """x Wᵀ + bias + scale (x Aᵀ) Bᵀ, where A reads `dropped` in x's place if it is given: x after dropout.

    W is a constant here and gets no gradient; the bias gets one if it wants it. Everything is computed in the dtype
    of W, or in autocast's where W is float32; A, B and the bias may be kept in a wider one.
    """
    dtype = _computed_in(weight)
    x, weight, dropped = x.to(dtype), weight.to(dtype), None if dropped is None else dropped.to(dtype)
    if len(a) <= KERNEL_RANK and by_kernel("lora", x, x.shape[:-1].numel(), *weight.shape, len(a)):
        from minillm.kernels import lora as kernels

        return kernels.lora(x, weight, bias, a, b, scale, dropped)
    bias = None if bias is None else bias.to(dtype)
    arguments = x, weight, bias, a.to(dtype), b.to(dtype), scale, dropped
    return _LoRA.apply(*arguments)  # pyright: ignore[reportReturnType]


def lora_by_row(
    x: Float[Tensor, "B T I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, "O"] | None,
    a: Float[Tensor, "M R I"],
    b: Float[Tensor, "M O R"],
    adapter: Int[Tensor, "B"],
) -> Float[Tensor, "B T O"]:
    """x Wᵀ + bias + (x Aᵀ) Bᵀ with A and B of adapter[i] for row i of the batch, and without where that is -1.

    Adapters are stacked once each, however many rows use them: their scales are in B, and zeros are where a smaller
    rank has nothing. W, and the dtype that all is computed in, are as in `lora` (Chen et al. 2023: a grouped product).
    """
    dtype = _computed_in(weight)
    x, weight = x.to(dtype), weight.to(dtype)
    if a.shape[1] <= KERNEL_RANK and by_kernel("lora_by_row", x, *x.shape[:-1], *weight.shape, a.shape[1]):
        from minillm.kernels import lora as kernels

        return kernels.lora_by_row(x, weight, bias, a, b, adapter)
    # Behind the last adapter stands one of zeros, and -1 finds it.
    a, b = (F.pad(side.to(dtype), (0, 0, 0, 0, 0, 1))[adapter] for side in (a, b))
    out = linear(x, weight.detach(), None if bias is None else bias.to(dtype))
    return torch.baddbmm(out, x @ a.mT, b.mT)


def _computed_in(weight: Tensor) -> torch.dtype:
    """The dtype of W, or autocast's where W is float32."""
    dtype, kind = weight.dtype, weight.device.type
    if dtype == torch.float32 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return dtype


def updated_norms(
    weight: Float[Tensor, "O I"], a: Float[Tensor, "R I"], b: Float[Tensor, "O R"], scale: int | float
) -> Float[Tensor, "O"]:
    """The length of each row of W + scale B A, which is never formed; W is a constant.

    |w + s b A|² = |w|² + 2 s b·(A w) + s² b (A Aᵀ) bᵀ, in 4 R I O + 6 R² (I + O) FLOPs a step, however many tokens
    are read. Everything is computed in the dtype of A and B, autocast or not: a norm of bfloat16 sums would be noise.
    """
    kind = weight.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        wide = weight.detach().to(a.dtype)
        cross = (b * (wide @ a.T)).sum(-1)
        square = (b @ (a @ a.T) * b).sum(-1)
        return (wide.square().sum(-1) + 2 * scale * cross + scale**2 * square).sqrt()
