"""The non-linearity between the feed-forward layer's Linears (figure 1).

    relu      y = max(0, x)                                        Vaswani et al. 2017, equation 2
    gelu      y = x q,  q = ½ (1 + tanh u),  u = √(2/π) (x + 0.044715 x³)     GPT-2's form
    swiglu    y = g σ(g) x,  σ(g) = 1 / (1 + exp(-g)),  g the gate            Shazeer 2020, equation 6

Gradient. relu passes what it let through: dx = dy where x > 0. For gelu, q is σ(2u), since ½ (1 + tanh u) = σ(2u),
and ∂σ(a)/∂a = σ(a) (1 - σ(a)), so

    dx = dy (q + x · 2 q (1 - q) · ∂u/∂x),    ∂u/∂x = √(2/π) (1 + 3 · 0.044715 x²)

and by the same rule, for swiglu,

    dx = dy g σ(g)        dg = dy x (σ(g) + g σ(g) (1 - σ(g)))
"""

import numpy as np

CUBE = 0.044715
SLOPE = np.sqrt(2 / np.pi)


def relu_forward(up):
    return np.where(up > 0, up, 0.0), up


def relu_backward(dout, cache):
    return {"up": np.where(cache > 0, dout, 0.0)}


def gelu_forward(up):
    share_NF = _sigmoid(2 * SLOPE * (up + CUBE * up**3))
    return up * share_NF, (up, share_NF)


def gelu_backward(dout, cache):
    up, share_NF = cache
    inner_slope_NF = SLOPE * (1 + 3 * CUBE * up**2)
    return {"up": dout * (share_NF + up * 2 * share_NF * (1 - share_NF) * inner_slope_NF)}


def swiglu_forward(gate, up):
    open_NF = _sigmoid(gate)
    return gate * open_NF * up, (gate, up, open_NF)


def swiglu_backward(dout, cache):
    gate, up, open_NF = cache
    return {"gate": dout * up * open_NF * (1 + gate * (1 - open_NF)), "up": dout * gate * open_NF}


def _sigmoid(x):
    # tanh saturates where exp would overflow.
    return (1 + np.tanh(x / 2)) / 2
