"""Softmax (figure 1, top, and inside attention): exp(x) over its sum along the last axis."""

import torch
from torch import Tensor

from minillm.shapes import Float


def softmax(scores: Float[Tensor, "*N S"]) -> Float[Tensor, "*N S"]:
    """p = exp(x - max x) / Σ exp(x - max x); the maximum cancels, and prevents exp from overflowing."""
    return torch.softmax(scores, -1)


def log_softmax(scores: Float[Tensor, "*N S"]) -> Float[Tensor, "*N S"]:
    """log p = (x - max x) - log Σ exp(x - max x), exact where p itself would underflow to 0."""
    return torch.log_softmax(scores, -1)
