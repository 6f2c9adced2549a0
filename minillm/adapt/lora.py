"""LoRA (Hu et al. 2021; place 3 of figure 1, the weights): W stays frozen, a low-rank dW = (alpha / r) B A is trained.

A starts uniform (Kaiming), B at zero, so that dW starts at zero and the adapted decoder is the base, bit for bit. Only
A and B are saved: we only publish dW. The arithmetic of one Linear is in `ops/lora.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minillm.adapt.method import Method
from minillm.adapt.surgery import frozen, linears, matching, replace
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.ops.lora import lora
from minillm.shapes import Float


class LoRALinear(nn.Module):
    """A frozen Linear with its update: x Wᵀ + bias + scale (x Aᵀ) Bᵀ."""

    def __init__(self, linear: nn.Linear, r: int, scale: float):
        super().__init__()
        self.weight, self.bias, self.scale = linear.weight, linear.bias, scale
        # The update keeps float32 (or float64) where the frozen matrix is held in half precision.
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)
        self.a = nn.Parameter(linear.weight.new_empty(r, linear.in_features, dtype=dtype))
        self.b = nn.Parameter(linear.weight.new_zeros(linear.out_features, r, dtype=dtype))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, hidden: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        return lora(hidden, self.weight, self.bias, self.a, self.b, self.scale)


class LoRA(Method):
    """Low-rank updates of the Linears that `targets` name. Seam: LINEARS. Equal to the base at the start.

    `targets` are roles (`query`), paths with wildcards (`blocks.3.*`) or `all-linear`. Raises InputError for a
    target that matches nothing and for a rank that no matrix of that size can have.
    """

    def __init__(
        self, decoder: Decoder, r: int = 8, alpha: int | float = 16, targets: Sequence[str] = ("query", "value")
    ):
        super().__init__(frozen(decoder))
        self.r, self.alpha, self.targets = r, alpha, tuple(targets)
        found = linears(self.decoder)
        for path in (chosen := matching(found, self.targets, "LoRA target")):
            if not 1 <= r <= min(found[path].weight.shape):
                raise InputError(f"a rank of {r} does not fit {path}, which is {tuple(found[path].weight.shape)}")
        replace(self.decoder, chosen, lambda linear: LoRALinear(linear, r, alpha / r))

    def prefix(self) -> None:
        return None

    def options(self) -> dict[str, Any]:
        return {"r": self.r, "alpha": self.alpha, "targets": list(self.targets)}
