"""The norm of add & norm (figure 1), over the last axis: layer (Ba et al. 2016) or rms (Zhang & Sennrich 2019).

    layer    y = x̂ w + b,  x̂ = (x - μ) / σ,  μ = mean x,  σ² = mean (x - μ)² + ε
    rms      y = x̂ w,      x̂ = x / ρ,                     ρ² = mean x² + ε

Gradient of rms. With dx̂ = dy w, and x reaching x̂ directly and through ρ, where ∂ρ/∂x_j = x_j / (D ρ) = x̂_j / D,

    dx_j = dx̂_j / ρ - Σ_i dx̂_i x_i / ρ² · x̂_j / D = (dx̂_j - x̂_j mean(dx̂ x̂)) / ρ:

the component of the gradient along x̂ is removed, because the norm undoes any scaling of x (but for ε). A layer norm
is an rms norm of x - μ, and the gradient of centring is centring, which removes the mean of dx̂ too (x̂ has mean 0):

    dx_j = (dx̂_j - mean dx̂ - x̂_j mean(dx̂ x̂)) / σ

The gradients of weight and bias are sums over all positions: dw = Σ dy x̂, db = Σ dy.
"""

import numpy as np


def layer_norm_forward(hidden, weight, bias, eps):
    out_ND, cache = rms_norm_forward(_centred(hidden), weight, eps)
    return out_ND + bias, cache


def layer_norm_backward(dout, cache):
    gradients = rms_norm_backward(dout, cache)
    return gradients | {"hidden": _centred(gradients["hidden"]), "bias": _over_positions(dout)}


def rms_norm_forward(hidden, weight, eps):
    rms_N1 = np.sqrt((hidden**2).mean(-1, keepdims=True) + eps)
    normed_ND = hidden / rms_N1
    return normed_ND * weight, (normed_ND, rms_N1, weight)


def rms_norm_backward(dout, cache):
    normed_ND, rms_N1, weight = cache
    dnormed_ND = dout * weight
    along_N1 = (dnormed_ND * normed_ND).mean(-1, keepdims=True)
    dhidden_ND = (dnormed_ND - normed_ND * along_N1) / rms_N1
    return {"hidden": dhidden_ND, "weight": _over_positions(dout * normed_ND)}


def _centred(x_ND):
    return x_ND - x_ND.mean(-1, keepdims=True)


def _over_positions(gradient_ND):
    return gradient_ND.reshape(-1, gradient_ND.shape[-1]).sum(0)
