"""Dropout (Srivastava et al. 2014; Vaswani et al. 2017, section 5.4), on each sub-layer's output."""

import torch
from torch import Tensor

from minillm.shapes import Bool, Float


def dropout(
    hidden: Float[Tensor, "*N D"], probability: float, keep: Bool[Tensor, "*N D"] | None = None
) -> Float[Tensor, "*N D"]:
    """hidden · keep / (1 - probability): the expectation is preserved. `keep` is drawn if it is not given."""
    if probability == 0.0:
        return hidden
    if keep is None:
        keep = torch.rand_like(hidden) >= probability
    return hidden * keep / (1.0 - probability)
