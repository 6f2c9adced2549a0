"""Softmax (figure 1, top, and inside attention): exp(x) over its sum along the last axis."""

from torch import Tensor

from minillm.shapes import Float


def softmax(scores: Float[Tensor, "*N S"]) -> Float[Tensor, "*N S"]:
    """p = exp(x - max x) / Σ exp(x - max x); the maximum cancels, and keeps exp from overflowing."""
    shifted = (scores - scores.amax(-1, keepdim=True)).exp()
    return shifted / shifted.sum(-1, keepdim=True)


def log_softmax(scores: Float[Tensor, "*N S"]) -> Float[Tensor, "*N S"]:
    """log p = (x - max x) - log Σ exp(x - max x), exact where p itself would underflow to 0."""
    shifted = scores - scores.amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()
