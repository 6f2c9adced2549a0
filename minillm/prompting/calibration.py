"""Contextual calibration (Zhao et al. 2021): removes a prompt's preference for some answers, whatever the text.

Examples bias a model, e.g. towards the last or the most common answer. Content-free texts measure this bias. With p the
normalised probabilities of the answers, the calibrated ones are W p + b with W = diag(p_cf)^-1 and b = 0, where p_cf is
the mean of p over the content-free texts; these then have equal probabilities.

The paper applies a softmax to W p + b. Here it is divided by its sum, which gives the same order, equals
softmax(log p - log p_cf), and leaves a prompt without a preference unchanged.
"""

from torch import Tensor

from minillm.operations import log_softmax
from minillm.shapes import Float

CONTENT_FREE = ("N/A", "", "[MASK]")
"""The content-free texts of the paper."""


def calibrated(scores: Float[Tensor, "B C"], content_free: Float[Tensor, "#B _ C"]) -> Float[Tensor, "B C"]:
    """The calibrated log-probabilities, from log P(answer) after a text and after content-free texts.

    The content-free texts are shared by all rows, or are each row's own if the prompts differ in more than the text.
    """
    expected = log_softmax(content_free).exp().mean(1).log()
    return log_softmax(log_softmax(scores) - expected)
