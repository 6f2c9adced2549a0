"""The non-linearity of the feed-forward layer (figure 1). The linear layers around it belong to the decoder."""

import math

import torch
from torch import Tensor

from minillm.shapes import Float


def relu(up: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
    """max(0, x): Vaswani et al. 2017, equation 2."""
    return torch.relu(up)


def gelu(up: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
    """x Φ(x) by its tanh approximation (Hendrycks & Gimpel 2016), as GPT-2 was trained with."""
    inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
    return 0.5 * up * (1 + torch.tanh(inner))


def swiglu(gate: Float[Tensor, "*N F"], up: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
    """gate σ(gate) · up (Shazeer 2020, equation 6)."""
    return gate * torch.sigmoid(gate) * up
