"""The loss of a language model: cross-entropy of the LM head's logits, without ever holding very many of them.

The logits of N labelled positions over a vocabulary V are the largest array of a training step (N V numbers);
unless they are few, they are made a chunk of rows at a time, and made again for the gradient. Rows without a label
are left out before the matrix product rather than after it.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minillm.ops import by_kernel
from minillm.ops.linear import linear
from minillm.ops.softmax import log_softmax
from minillm.shapes import Float, Int

IGNORED = -100
"""The label of a position that has none: padding, or a prompt that is not to be learned."""

CHUNK = 1024
"""Rows of logits held at a time: 200 MB at a vocabulary of 50,000 in float32."""

FEW = 1 << 22
"""So many logits are kept: 16 MB in float32 are no matter, and to make them again is a third of the head's time."""


def linear_cross_entropy(
    hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], labels: Int[Tensor, "N"]
) -> Float[Tensor, ""]:
    """-Σ log softmax(hidden Wᵀ)[label], in nats, summed over the labelled rows."""
    if by_kernel("linear_cross_entropy", hidden, *hidden.shape, len(weight)):
        from minillm.kernels import linear_cross_entropy as kernels

        return kernels.linear_cross_entropy(hidden, weight, labels)
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
