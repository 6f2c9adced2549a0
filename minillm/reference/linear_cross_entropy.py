"""The loss of a language model: the cross-entropy of the head's logits and the labels, in nats, summed.

    z = h Wᵀ        loss = -Σ_n log softmax(z_n)[label_n]        over the labelled rows n

Gradient. From log softmax (see there), with a gradient of -1 at the label and 0 elsewhere,

    dz_nv = p_nv - [v = label_n]:

the predicted probability minus the target probability. The rest is a Linear. Rows whose label is IGNORED (padding, or
a prompt that is not trained on) contribute neither loss nor gradient.
"""

import numpy as np

from minillm.reference.linear import linear_backward, linear_forward
from minillm.reference.softmax import log_softmax_backward, log_softmax_forward

IGNORED = -100


def linear_cross_entropy_forward(hidden, weight, labels):
    logits_NV, linear = linear_forward(hidden, weight)
    logarithms_NV, softmax = log_softmax_forward(logits_NV)
    (rows,) = np.nonzero(labels != IGNORED)
    chosen_NV = np.zeros_like(logits_NV)
    chosen_NV[rows, labels[rows]] = 1.0
    return -(chosen_NV * logarithms_NV).sum(), (chosen_NV, linear, softmax)


def linear_cross_entropy_backward(dout, cache):
    chosen_NV, linear, softmax = cache
    dlogits_NV = log_softmax_backward(-dout * chosen_NV, softmax)["scores"]
    gradients = linear_backward(dlogits_NV, linear)
    return {"hidden": gradients["x"], "weight": gradients["weight"]}
