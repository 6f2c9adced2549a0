"""A Linear with a low-rank update (Hu et al. 2021, equation 3): W stays, dW = s B A is learned.

    y = x Wᵀ + c + s (x Aᵀ) Bᵀ,    A of R rows, B of R columns, s = alpha / R

Gradient. Two Linears in a row, with h = x Aᵀ between them and dh = s dy B on the way back:

    dB = s dyᵀ h        dA = dhᵀ x        dx = dy W + dh A

With dropout A reads another x, the dropped one, and dh A is that one's gradient.

B starts at 0, so dh = 0 and A does not move in the first step; B moves, since h is not 0. W's own gradient is here
too: LoRA does not use it, but who trains both does.

In a batch whose rows have adapters of their own, each row's update is that of its A and B, stacked by adapter, and an
adapter's slope is the sum over the rows that it had. Index -1 is no adapter, which is one of zeros behind the last.

DoRA (Liu et al. 2024, equation 5) divides each row of W + s B A by its length n, from which dW need not be formed:

    n_o² = |W_o|² + 2 s B_o·(W Aᵀ)_o + s² B_o (A Aᵀ) B_oᵀ

Gradient, with U = W + s B A and u = dn / n, by row:    dU = u U    dB = s dU Aᵀ    dA = s Bᵀ dU    dW = dU
"""

import numpy as np

from minillm.reference.linear import linear_backward, linear_forward


def lora_forward(x, weight, bias, a, b, scale, dropped=None):
    out_NO, frozen = linear_forward(x, weight, bias)
    low_NR, down = linear_forward(x if dropped is None else dropped, a)
    update_NO, up = linear_forward(low_NR, b)
    return out_NO + scale * update_NO, (frozen, down, up, scale, dropped is not None)


def lora_backward(dout, cache):
    frozen, down, up, scale, has_dropped = cache
    gradients = linear_backward(dout, frozen)
    through_b = linear_backward(scale * dout, up)
    through_a = linear_backward(through_b["x"], down)
    gradients |= {"a": through_a["weight"], "b": through_b["weight"]}
    if has_dropped:
        return gradients | {"dropped": through_a["x"]}
    return gradients | {"x": gradients["x"] + through_a["x"]}


def lora_by_row_forward(x, weight, bias, a, b, adapter):
    """`a` is "M R I" and `b` "M O R", with their scales in it; `adapter` has an index for each row."""
    out_BTO, frozen = linear_forward(x, weight, bias)
    a_BRI, b_BOR = (np.concatenate([side, np.zeros_like(side[:1])])[adapter] for side in (a, b))
    low_BTR = x @ a_BRI.swapaxes(-1, -2)
    return out_BTO + low_BTR @ b_BOR.swapaxes(-1, -2), (frozen, a_BRI, b_BOR, low_BTR, adapter, len(a))


def lora_by_row_backward(dout, cache):
    frozen, a_BRI, b_BOR, low_BTR, adapter, adapters = cache
    gradients, x = linear_backward(dout, frozen), frozen[0]
    dlow_BTR = dout @ b_BOR
    by_row = {"a": dlow_BTR.swapaxes(-1, -2) @ x, "b": dout.swapaxes(-1, -2) @ low_BTR}
    for name, slopes in by_row.items():
        total = np.zeros((adapters + 1, *slopes.shape[1:]))
        np.add.at(total, adapter, slopes)
        gradients[name] = total[:-1]
    return gradients | {"x": gradients["x"] + dlow_BTR @ a_BRI}


def updated_norms_forward(weight, a, b, scale):
    cross_OR, gram_RR = weight @ a.T, a @ a.T
    squares_O = (weight**2).sum(-1) + 2 * scale * (b * cross_OR).sum(-1) + scale**2 * (b @ gram_RR * b).sum(-1)
    norms_O = np.sqrt(squares_O)
    return norms_O, (weight, a, b, scale, norms_O)


def updated_norms_backward(dout, cache):
    weight, a, b, scale, norms_O = cache
    d_updated_OI = (dout / norms_O)[:, None] * (weight + scale * b @ a)
    return {"weight": d_updated_OI, "a": scale * b.T @ d_updated_OI, "b": scale * d_updated_OI @ a.T}
