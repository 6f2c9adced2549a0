"""The keys and values of a tuned prefix, computed by an MLP that makes training easier (Li & Liang 2021, section 4.3).

    keys and values = tanh(E W₁ᵀ + b₁) W₂ᵀ + b₂

E has a row of width D for each of P positions. W₂ writes the keys and values of all L layers of a position next to
each other, in the order layer, key or value, head. After training only the keys and values are saved, and the MLP is
dropped. There is no batch axis, because the prefix is the same for each row.

Gradient. ∂ tanh u / ∂u = 1 - tanh² u; the rest is two Linears.
"""

import numpy as np

from minillm.reference.linear import linear_backward, linear_forward
from minillm.reference.tower import KeyValues


def prefix_forward(embeddings, inner_weight, inner_bias, outer_weight, outer_bias, layers, groups):
    """A KeyValues of L 1 G P K. `groups` is the number of key/value heads."""
    inner_PF, inner = linear_forward(embeddings, inner_weight, inner_bias)
    active_PF = np.tanh(inner_PF)
    outer_PO, outer = linear_forward(active_PF, outer_weight, outer_bias)
    sides = outer_PO.reshape(len(embeddings), layers, 2, groups, -1)
    keys_LGPK, values_LGPK = (sides[:, :, side].transpose(1, 2, 0, 3) for side in (0, 1))
    return KeyValues(keys_LGPK[:, None], values_LGPK[:, None]), (inner, active_PF, outer)


def prefix_backward(dout, cache):
    """`dout` is a KeyValues of gradients, as a decoder returns it for its "prefix"."""
    inner, active_PF, outer = cache
    dsides = np.stack((dout.keys[:, 0], dout.values[:, 0]), 2)
    douter_PO = dsides.transpose(3, 0, 2, 1, 4).reshape(len(active_PF), -1)
    through = linear_backward(douter_PO, outer)
    below = linear_backward(through["x"] * (1 - active_PF**2), inner)
    return {
        "embeddings": below["x"],
        "inner_weight": below["weight"],
        "inner_bias": below["bias"],
        "outer_weight": through["weight"],
        "outer_bias": through["bias"],
    }
