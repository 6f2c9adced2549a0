"""Softmax (figure 1, top, and inside attention), and its logarithm.

    p_i = exp(x_i) / Σ_j exp(x_j)

Gradient. The quotient rule gives ∂p_i/∂x_j = p_i (δ_ij - p_j), so

    dx_j = Σ_i dp_i p_i (δ_ij - p_j) = p_j (dp_j - Σ_i dp_i p_i):

the gradient minus its mean under p, times the probability. For the logarithm ∂ log p_i/∂x_j = δ_ij - p_j, so

    dx_j = d log p_j - p_j Σ_i d log p_i.

Adding a constant to every x changes nothing; subtracting the maximum prevents exp from overflowing.
"""

import numpy as np


def softmax_forward(scores):
    exponentials_NS = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities_NS = exponentials_NS / exponentials_NS.sum(-1, keepdims=True)
    return probabilities_NS, probabilities_NS


def softmax_backward(dout, cache):
    probabilities_NS = cache
    mean_N1 = (dout * probabilities_NS).sum(-1, keepdims=True)
    return {"scores": probabilities_NS * (dout - mean_N1)}


def log_softmax_forward(scores):
    shifted_NS = scores - scores.max(-1, keepdims=True)
    logarithms_NS = shifted_NS - np.log(np.exp(shifted_NS).sum(-1, keepdims=True))
    return logarithms_NS, logarithms_NS


def log_softmax_backward(dout, cache):
    probabilities_NS = np.exp(cache)
    return {"scores": dout - probabilities_NS * dout.sum(-1, keepdims=True)}
