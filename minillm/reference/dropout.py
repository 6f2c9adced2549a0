"""Dropout (Srivastava et al. 2014): elements are set to 0 at random; `keep` is the mask of those that are not.

    y = x keep / (1 - p)

Each element is kept with probability 1 - p, so the division preserves the expectation: E[y] = x. At evaluation there
is no dropout and nothing to rescale. Gradient: a constant factor, dx = dy keep / (1 - p). The caller draws `keep`, so
that two programs can be given the same mask.
"""


def dropout_forward(hidden, probability, keep):
    factor_ND = keep / (1 - probability)
    return hidden * factor_ND, factor_ND


def dropout_backward(dout, cache):
    return {"hidden": dout * cache}
