"""A Linear: the matrix between any two layers of figure 1, and the Linear at its top.

    y = x Wᵀ + b,    that is    y_no = Σ_i x_ni W_oi + b_o

Gradient. The gradient of each factor is dy times the other factor, summed over the axes that it does not have:

    dx_ni = Σ_o dy_no W_oi        dW_oi = Σ_n dy_no x_ni        db_o = Σ_n dy_no
"""


def linear_forward(x, weight, bias=None):
    out_NO = x @ weight.T
    if bias is not None:
        out_NO = out_NO + bias
    return out_NO, (x, weight, bias)


def linear_backward(dout, cache):
    x, weight, bias = cache
    dout_NO = dout.reshape(-1, weight.shape[0])
    x_NI = x.reshape(-1, weight.shape[1])
    gradients = {"x": dout @ weight, "weight": dout_NO.T @ x_NI}
    if bias is not None:
        gradients["bias"] = dout_NO.sum(0)
    return gradients
