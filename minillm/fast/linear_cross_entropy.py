"""The loss of a language model with a bounded number of logits in memory, and its gradients in the same pass.

The logits of N labelled positions over a vocabulary V are the largest array of a training step (N V elements). They are
computed in chunks of rows. The gradient of a chunk is softmax - one-hot, times W or the hidden states, and the backward
pass multiplies it by that of the loss: 6 N V D FLOPs, 4 with a frozen head. Recomputed logits would take 2 more.
"""

from typing import Any

import torch
from torch import Tensor

from minillm.fast.linear import linear
from minillm.ops.linear_cross_entropy import IGNORED
from minillm.ops.softmax import log_softmax

CHUNK = 1024
"""Rows of logits in memory at a time: 200 MB for a vocabulary of 50,000 in float32."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    labelled = labels != IGNORED
    return _LinearCrossEntropy.apply(hidden[labelled], weight, labels[labelled])  # pyright: ignore[reportReturnType]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        for_hidden, for_weight, _ = ctx.needs_input_grad
        losses, d_hidden, d_weight = list[Tensor](), list[Tensor](), None
        for rows, targets in zip(hidden.split(CHUNK), labels[:, None].split(CHUNK), strict=True):
            logits = linear(rows, weight)
            log_probabilities = log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)))
            losses.append(-log_probabilities.gather(-1, targets).sum())
            if for_hidden or for_weight:
                minus_one = log_probabilities.new_full(targets.shape, -1.0)
                d_logits = log_probabilities.exp_().scatter_add_(-1, targets, minus_one).to(logits.dtype)
            if for_hidden:
                d_hidden.append(linear(d_logits, weight.T))
            if for_weight:
                d_chunk = (d_logits.T @ rows).to(weight.dtype)  # autocast multiplies in half precision
                d_weight = d_chunk if d_weight is None else d_weight.add_(d_chunk)
        ctx.save_for_backward(torch.cat(d_hidden) if for_hidden else None, d_weight)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        d_hidden, d_weight = ctx.saved_tensors
        return *(None if gradient is None else gradient * gradients[0] for gradient in (d_hidden, d_weight)), None
