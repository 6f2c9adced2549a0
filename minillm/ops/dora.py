"""The row norms of an updated matrix, which DoRA divides by (Liu et al. 2024, equation 5).

|w + s b A|² = |w|² + 2 s b·(A w) + s² b (A Aᵀ) bᵀ for each row w of W and b of B. A step costs 4 R I O + 6 R² (I + O)
FLOPs, independent of the number of tokens, and W + s B A is never formed.
"""

from torch import Tensor

from minillm.shapes import Float


def updated_norms(
    weight: Float[Tensor, "O I"], a: Float[Tensor, "R I"], b: Float[Tensor, "O R"], scale: int | float
) -> Float[Tensor, "O"]:
    """The norm of each row of W + scale B A."""
    cross = (b * (weight @ a.T)).sum(-1)
    square = (b @ (a @ a.T) * b).sum(-1)
    return (weight.square().sum(-1) + 2 * scale * cross + scale**2 * square).sqrt()
