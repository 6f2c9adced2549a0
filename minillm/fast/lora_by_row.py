"""LoRA by row with the updates added to the frozen product by `baddbmm`, which saves one array of the output's size."""

import torch
from torch import Tensor

from minillm.fast.linear import linear
from minillm.ops.lora_by_row import stacked_with_none
from minillm.shapes import Float, Int


def lora_by_row(
    x: Float[Tensor, "B T I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, "O"] | None,
    a: Float[Tensor, "M R I"],
    b: Float[Tensor, "M O R"],
    adapter: Int[Tensor, "B"],
) -> Float[Tensor, "B T O"]:
    """x Wᵀ + bias + (x Aᵀ) Bᵀ with A and B of adapter[i] for row i; -1 means no update."""
    a, b = (stacked_with_none(side)[adapter] for side in (a, b))
    return torch.baddbmm(linear(x, weight, bias), x @ a.mT, b.mT)
