"""LoRA in a batch whose rows use different adapters: one frozen product, and a small product for each row."""

import torch.nn.functional as F
from torch import Tensor

from minillm.ops.linear import linear
from minillm.shapes import Float, Int


def lora_by_row(
    x: Float[Tensor, "B T I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None,
    a: Float[Tensor, "M R I"], b: Float[Tensor, "M O R"], adapter: Int[Tensor, "B"],
) -> Float[Tensor, "B T O"]:  # fmt: skip
    """x Wᵀ + bias + (x Aᵀ) Bᵀ with A and B of adapter[i] for row i; -1 means no update.

    Each adapter is stacked once, however many rows use it. B includes the scale, and smaller ranks are padded with
    zeros (Chen et al. 2023: a grouped product).
    """
    a, b = (stacked_with_none(side)[adapter] for side in (a, b))
    return linear(x, weight, bias) + x @ a.mT @ b.mT


def stacked_with_none(side: Float[Tensor, "M _ _"]) -> Float[Tensor, "_ _ _"]:
    """With an adapter of zeros appended, which index -1 selects."""
    return F.pad(side, (0, 0, 0, 0, 0, 1))
