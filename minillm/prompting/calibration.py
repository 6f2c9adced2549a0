"""Contextual calibration (Zhao et al. 2021): what a prompt prefers whatever the text is taken out of its answers.

Examples bias a model towards some answers whatever the text: the last one's, the most common one's. Content-free texts
measure that bias. Of p, the probabilities of the answers (each over their sum), the calibrated ones are W p + b with
W = diag(p_cf)^-1 and b = 0, where p_cf is p for such a text, averaged over several; so that such a text has equal
probabilities.

The paper puts W p + b through a softmax, which does not change the order. Here it is divided by its sum, which
is the softmax of log p - log p_cf: then a prompt without a preference is left as it was.
"""

from torch import Tensor

from minillm.operations import log_softmax
from minillm.shapes import Float

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts without content, as in the paper's experiments."""


def calibrated(
    scores: Float[Tensor, "B C"], content_free: Float[Tensor, "#B _ C"]
) -> Float[Tensor, "B C"]:  # fmt: skip
    """log of the calibrated probabilities, from log P(answer) after a text and after content-free ones.

    These are one set for all rows, or a set for each where the prompts differ in more than the text.
    """
    expected = log_softmax(content_free).exp().mean(1).log()
    return log_softmax(log_softmax(scores) - expected)
