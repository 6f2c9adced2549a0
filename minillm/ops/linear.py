"""The linear layer: the matrix between any two layers of figure 1, and the one at its top."""

import torch.nn.functional as F
from torch import Tensor

from minillm.shapes import Float


def linear(
    x: Float[Tensor, "*N I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None = None
) -> Float[Tensor, "*N O"]:
    """x Wᵀ + b, over the last axis."""
    return F.linear(x, weight, bias)
