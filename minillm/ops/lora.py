"""A frozen linear layer and its low-rank update (Hu et al. 2021, equation 3): x Wᵀ + bias + s (x Aᵀ) Bᵀ.

dW = s B A has rank at most R, with s = alpha / R. `operations.lora` detaches W; A, B, x and the bias get gradients.
"""

from torch import Tensor

from minillm.ops.linear import linear
from minillm.shapes import Float


def lora(
    x: Float[Tensor, "*N I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None,
    a: Float[Tensor, "R I"], b: Float[Tensor, "O R"], scale: int | float, dropped: Float[Tensor, "*N I"] | None = None,
) -> Float[Tensor, "*N O"]:  # fmt: skip
    """x Wᵀ + bias + scale (x Aᵀ) Bᵀ. A multiplies `dropped`, x after dropout, if it is given."""
    low = linear(x if dropped is None else dropped, a)
    return linear(x, weight, bias) + scale * linear(low, b)
