"""DoRA (Liu et al. 2024, equation 5) divides each row of U = W + s B A by its norm n. U itself is not formed:

    n_o² = |W_o|² + 2 s B_o·(W Aᵀ)_o + s² B_o (A Aᵀ) B_oᵀ

Gradient, with u = dn / n, by row:    dU = u U    dB = s dU Aᵀ    dA = s Bᵀ dU    dW = dU
"""

import numpy as np


def updated_norms_forward(weight, a, b, scale):
    cross_OR, gram_RR = weight @ a.T, a @ a.T
    squares_O = (weight**2).sum(-1) + 2 * scale * (b * cross_OR).sum(-1) + scale**2 * (b @ gram_RR * b).sum(-1)
    norms_O = np.sqrt(squares_O)
    return norms_O, (weight, a, b, scale, norms_O)


def updated_norms_backward(dout, cache):
    weight, a, b, scale, norms_O = cache
    d_updated_OI = (dout / norms_O)[:, None] * (weight + scale * b @ a)
    return {"weight": d_updated_OI, "a": scale * b.T @ d_updated_OI, "b": scale * d_updated_OI @ a.T}
