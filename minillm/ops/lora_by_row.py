"""LoRA in a batch whose rows have adapters of their own: one frozen product, and a small one for each row."""

import torch.nn.functional as F
from torch import Tensor

from minillm.ops.linear import linear
from minillm.shapes import Float, Int


def lora_by_row(
    x: Float[Tensor, "B T I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, "O"] | None,
    a: Float[Tensor, "M R I"],
    b: Float[Tensor, "M O R"],
    adapter: Int[Tensor, "B"],
) -> Float[Tensor, "B T O"]:
    """x Wᵀ + bias + (x Aᵀ) Bᵀ with A and B of adapter[i] for row i, and without an update where that is -1.

    Adapters are stacked once each, however many rows use them: their scales are in B, and zeros are where a smaller
    rank has nothing (Chen et al. 2023: a grouped product).
    """
    a, b = (stacked_with_none(side)[adapter] for side in (a, b))
    return linear(x, weight, bias) + x @ a.mT @ b.mT


def stacked_with_none(side: Float[Tensor, "M _ _"]) -> Float[Tensor, "_ _ _"]:
    """One adapter more, of zeros and at the end, where the index -1 finds it."""
    return F.pad(side, (0, 0, 0, 0, 0, 1))
