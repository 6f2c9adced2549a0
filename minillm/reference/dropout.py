"""Dropout (Srivastava et al. 2014): numbers are kept or set to 0 at random; `keep` says which.

    y = x keep / (1 - p)

Each is kept with probability 1 - p, so the division keeps the expectation: E[y] = x. Without dropout (at
evaluation) there is nothing to correct. Gradient: a constant factor, dx = dy keep / (1 - p). Drawing `keep` is
left to the caller, so that two programs can be given the same.
"""


def dropout_forward(hidden, probability, keep):
    factor_ND = keep / (1 - probability)
    return hidden * factor_ND, factor_ND


def dropout_backward(dout, cache):
    return {"hidden": dout * cache}
