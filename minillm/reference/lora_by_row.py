"""LoRA in a batch whose rows use different adapters (Chen et al. 2023): one frozen product, one small product per row.

    y_i = x_i Wᵀ + bias + (x_i A_jᵀ) B_jᵀ        j the adapter of row i, the scale in B_j

Index -1 means no adapter: it selects an adapter of zeros appended at the end. Gradient: as for LoRA, row by row; the
gradient of an adapter is the sum over the rows that use it.
"""

import numpy as np

from minillm.reference.linear import linear_backward, linear_forward


def lora_by_row_forward(x, weight, bias, a, b, adapter):
    """`a` is "M R I", `b` is "M O R" and includes the scales; `adapter` has one index per row."""
    out_BTO, frozen = linear_forward(x, weight, bias)
    a_BRI, b_BOR = (np.concatenate([side, np.zeros_like(side[:1])])[adapter] for side in (a, b))
    low_BTR = x @ a_BRI.swapaxes(-1, -2)
    return out_BTO + low_BTR @ b_BOR.swapaxes(-1, -2), (frozen, a_BRI, b_BOR, low_BTR, adapter, len(a))


def lora_by_row_backward(dout, cache):
    frozen, a_BRI, b_BOR, low_BTR, adapter, adapters = cache
    gradients, x = linear_backward(dout, frozen), frozen[0]
    dlow_BTR = dout @ b_BOR
    by_row = {"a": dlow_BTR.swapaxes(-1, -2) @ x, "b": dout.swapaxes(-1, -2) @ low_BTR}
    for name, rows in by_row.items():
        total = np.zeros((adapters + 1, *rows.shape[1:]))
        np.add.at(total, adapter, rows)
        gradients[name] = total[:-1]
    return gradients | {"x": gradients["x"] + dlow_BTR @ a_BRI}
