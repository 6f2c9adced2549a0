"""Choosing the next token from its logits: greedy, temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020).

    p = softmax(z / τ)        τ -> 0 leaves the largest logit alone (greedy), τ -> ∞ makes all tokens equal
    top-k    only the k likeliest tokens stay
    top-p    only the smallest set of likeliest tokens that together have a probability of p or more stays

After each cut the probabilities are divided by their sum, so that what stays is a distribution again. A token is then
drawn by turning the distribution into a partition of [0, 1): a uniform number falls into token i's piece with
probability p_i.
"""

import numpy as np

from minillm.reference.softmax import softmax_forward


def next_token_distribution(logits, temperature, top_k=None, top_p=None):
    """What a token is drawn from: N V logits to N V probabilities. Of equal logits the first counts as likelier."""
    if temperature == 0:
        return greedy_distribution(logits)
    probabilities_NV, _ = softmax_forward(logits / temperature)
    order_NV = np.argsort(-probabilities_NV, -1, kind="stable")
    if top_k is not None:
        probabilities_NV = _kept(probabilities_NV, order_NV, np.arange(logits.shape[-1]) < top_k)
    if top_p is not None:
        sorted_NV = np.take_along_axis(probabilities_NV, order_NV, -1)
        likelier_NV = np.cumsum(sorted_NV, -1) - sorted_NV
        probabilities_NV = _kept(probabilities_NV, order_NV, likelier_NV < top_p)
    return probabilities_NV


def greedy_distribution(logits):
    """All probability on the first of the largest logits."""
    return np.where(np.arange(logits.shape[-1]) == logits.argmax(-1)[..., None], 1.0, 0.0)


def sample(probabilities, uniform):
    """The token whose piece of [0, 1) holds the uniform number: one of each for each row."""
    ends_NV = np.cumsum(probabilities, -1)
    # Rounding may leave the last end a little below 1.
    ends_NV /= ends_NV[..., -1:]
    return (ends_NV <= np.asarray(uniform)[..., None]).sum(-1)


def _kept(probabilities_NV, order_NV, stays_in_order):
    stays_NV = np.zeros(probabilities_NV.shape, bool)
    np.put_along_axis(stays_NV, order_NV, np.broadcast_to(stays_in_order, order_NV.shape), -1)
    kept_NV = np.where(stays_NV, probabilities_NV, 0.0)
    return kept_NV / kept_NV.sum(-1, keepdims=True)
