"""A linear layer with a low-rank update (Hu et al. 2021, equation 3): W is frozen, dW = s B A is trained.

    y = x Wᵀ + bias + s (x Aᵀ) Bᵀ,    A of R rows, B of R columns, s = alpha / R

Gradient. The update is two Linears, with h = x Aᵀ between them and dh = s dy B in the backward pass:

    dB = s dyᵀ h        dA = dhᵀ x        dx = dy W + dh A

With dropout, A multiplies x after dropout, and dh A is the gradient of that input.

B starts at 0, so dh = 0 and A does not change in the first step; B changes, since h is not 0. The gradient of W is
computed too, for training W together with A and B; LoRA does not use it.
"""

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
