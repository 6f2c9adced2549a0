"""The loss of a language model with a bounded number of logits in memory.

The logits of N labelled positions over a vocabulary V are the largest array of a training step (N V elements). Unless
there are few, they are computed in chunks of rows, and recomputed in the backward pass.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minillm.fast.linear import linear
from minillm.ops.linear_cross_entropy import IGNORED
from minillm.ops.softmax import log_softmax

CHUNK = 1024
"""Rows of logits in memory at a time: 200 MB for a vocabulary of 50,000 in float32."""

FEW = 1 << 22
"""Up to so many logits are saved (16 MB in float32): recomputing them would be a third of the head's time."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    labelled = labels != IGNORED
    hidden, labels = hidden[labelled], labels[labelled]
    if len(labels) * len(weight) <= FEW:
        return _cross_entropy(hidden, weight, labels)
    total = hidden.new_zeros(())
    for rows, targets in zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True):
        total = total + checkpoint(_cross_entropy, rows, weight, targets, use_reentrant=False)
    return total


def _cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = linear(hidden, weight)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -log_softmax(wide).gather(-1, labels[:, None]).sum()
