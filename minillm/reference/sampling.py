"""Choosing the next token from its logits: greedy, temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020).

    p = softmax(z / τ)        τ -> 0 leaves only the largest logit (greedy), τ -> ∞ makes all tokens equally likely
    top-k    only the k most likely tokens remain
    top-p    only the smallest set of most likely tokens with a total probability of at least p remains

After each cut the probabilities are divided by their sum, so that they are a distribution again. A token is drawn by
inverting the cumulative distribution: the probabilities partition [0, 1), and a uniform number falls into the interval
of token i with probability p_i.
"""

import numpy as np

from minillm.reference.softmax import softmax_forward


def next_token_distribution(logits, temperature, top_k=None, top_p=None):
    """The distribution that tokens are drawn from: N V logits to N V probabilities. The first of equal logits wins."""
    if temperature == 0:
        return np.where(np.arange(logits.shape[-1]) == logits.argmax(-1)[..., None], 1.0, 0.0)
    probabilities_NV, _ = softmax_forward(logits / temperature)
    order_NV = np.argsort(-probabilities_NV, -1, kind="stable")
    if top_k is not None:
        probabilities_NV = _restricted(probabilities_NV, order_NV, np.arange(logits.shape[-1]) < top_k)
    if top_p is not None:
        sorted_NV = np.take_along_axis(probabilities_NV, order_NV, -1)
        mass_before_NV = np.cumsum(sorted_NV, -1) - sorted_NV
        probabilities_NV = _restricted(probabilities_NV, order_NV, mass_before_NV < top_p)
    return probabilities_NV


def sample(probabilities, uniform):
    """The token whose interval of [0, 1) contains the uniform number, for each row."""
    ends_NV = np.cumsum(probabilities, -1)
    # Rounding may leave the last end slightly below 1.
    ends_NV /= ends_NV[..., -1:]
    return (ends_NV <= np.asarray(uniform)[..., None]).sum(-1)


def _restricted(probabilities_NV, order_NV, allowed_in_order):
    allowed_NV = np.zeros(probabilities_NV.shape, bool)
    np.put_along_axis(allowed_NV, order_NV, np.broadcast_to(allowed_in_order, order_NV.shape), -1)
    remaining_NV = np.where(allowed_NV, probabilities_NV, 0.0)
    return remaining_NV / remaining_NV.sum(-1, keepdims=True)
