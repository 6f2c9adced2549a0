"""The non-linearity between the feed-forward layer's Linears (figure 1).

    relu      y = max(0, x)                                        Vaswani et al. 2017, equation 2
    gelu      y = x q,  q = ½ (1 + tanh u),  u = √(2/π) (x + 0.044715 x³)     GPT-2's form
    swiglu    y = g σ(g) x,  σ(g) = 1 / (1 + exp(-g)),  g the gate            Shazeer 2020, equation 6

Gradient. For relu, dx = dy where x > 0, else 0. For gelu, ½ (1 + tanh u) = σ(2u), so q = σ(2u), and with
∂σ(a)/∂a = σ(a) (1 - σ(a))

    dx = dy (q + x · 2 q (1 - q) · ∂u/∂x),    ∂u/∂x = √(2/π) (1 + 3 · 0.044715 x²)

and by the same rule, for swiglu,

    dx = dy g σ(g)        dg = dy x (σ(g) + g σ(g) (1 - σ(g)))
"""

import numpy as np

CUBE = 0.044715
ROOT = np.sqrt(2 / np.pi)


def relu_forward(up):
    return np.where(up > 0, up, 0.0), up


def relu_backward(dout, cache):
    return {"up": np.where(cache > 0, dout, 0.0)}


def gelu_forward(up):
    sigmoid_NF = _sigmoid(2 * ROOT * (up + CUBE * up**3))
    return up * sigmoid_NF, (up, sigmoid_NF)


def gelu_backward(dout, cache):
    up, sigmoid_NF = cache
    inner_gradient_NF = ROOT * (1 + 3 * CUBE * up**2)
    return {"up": dout * (sigmoid_NF + up * 2 * sigmoid_NF * (1 - sigmoid_NF) * inner_gradient_NF)}


def swiglu_forward(gate, up):
    sigmoid_NF = _sigmoid(gate)
    return gate * sigmoid_NF * up, (gate, up, sigmoid_NF)


def swiglu_backward(dout, cache):
    gate, up, sigmoid_NF = cache
    return {"gate": dout * up * sigmoid_NF * (1 + gate * (1 - sigmoid_NF)), "up": dout * gate * sigmoid_NF}


def _sigmoid(x):
    # tanh saturates where exp would overflow.
    return (1 + np.tanh(x / 2)) / 2
