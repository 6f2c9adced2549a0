"""The loss of a language model: the cross-entropy of the LM head's logits, in nats."""

import torch
from torch import Tensor

from minillm.ops.linear import linear
from minillm.ops.softmax import log_softmax
from minillm.shapes import Float, Int

IGNORED = -100
"""The label of a position without one: padding, or a prompt that is not trained on."""


def linear_cross_entropy(
    hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], labels: Int[Tensor, "N"]
) -> Float[Tensor, ""]:
    """-Σ log softmax(hidden Wᵀ)[label], summed over the labelled rows, in float32 at least."""
    labelled = labels != IGNORED
    logits = linear(hidden[labelled], weight)
    log_probabilities = log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    return -log_probabilities.gather(-1, labels[labelled, None]).sum()
