"""The linear layer by oneDNN, for float32 on CPUs with AVX-512.

PyTorch multiplies float32 matrices on a CPU by MKL, which uses only half of the AVX-512 units of an AMD processor:
768 x 128 by 128 x 512 takes 0.88 ms on one core, and 0.40 ms by oneDNN, which is part of PyTorch. Both compute in
float32; only the order of the sums differs.
"""

from typing import Any

import torch
from torch import Tensor

from minillm.ops import linear as ops
from minillm.quantised import Quantised

# A fixed rule and no measurement at run time: a resumed run on the same machine must give the same bits.
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if isinstance(weight, Quantised) or (ONEDNN and _supported(x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return ops.linear(x, weight, bias)


def _supported(*operands: Tensor | None) -> bool:
    given = [side for side in operands if side is not None]
    float32 = all(side.dtype == torch.float32 and side.device.type == "cpu" for side in given)
    return float32 and given[0].numel() > 0 and not torch.is_autocast_enabled("cpu")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if ONEDNN and _supported(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return ops.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The gradient of x does not need x: with frozen matrices it would be saved in every layer for nothing.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape = x.shape
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        gradient = gradients[0].reshape(-1, weight.shape[0])
        return (
            _product(gradient, weight.T.to(gradient.dtype)).view(ctx.shape) if for_x else None,
            _product(gradient.T, x.reshape(-1, x.shape[-1]).T) if for_weight else None,
            gradient.sum(0) if for_bias else None,
        )
