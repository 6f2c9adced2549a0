"""AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019), and clipping by the global norm (Pascanu et al. 2013).

    g <- g · min(1, c / ‖g‖)                            ‖g‖ is the norm of all gradients as one vector
    m <- β₁ m + (1 - β₁) g        v <- β₂ v + (1 - β₂) g²
    w <- w - η λ w - η m̂ / (√v̂ + ε),    m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)

m is a running mean of the gradients and v of their squares. Where gradients agree in sign, m̂ / √v̂ is about 1, so a
step has about size η, however small the gradients are. Both means start at 0, so after t steps their weights add up
to 1 - βᵗ and not to 1: dividing by that sum is the bias correction. Weight decay acts on the weight itself and not
through the gradient (the W in AdamW): m̂ / √v̂ would rescale it like any gradient. Only matrices decay (λ = 0 for
vectors): the scales and biases of norms are not to shrink towards 0.
"""

import math
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """The running means of gradients and of their squares by parameter name, and the number of steps taken."""

    mean: dict
    square: dict
    steps: int = 0


def no_moments(parameters):
    zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
    return Moments(zeros, zeros)


def clip_by_global_norm(gradients, maximum):
    """(gradients scaled to a global norm of at most `maximum`, their norm before)."""
    norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    # As in torch, 1e-6 avoids a division by 0; a clipped norm is that much below the maximum.
    factor = min(1.0, maximum / (norm + 1e-6))
    return {name: factor * gradient for name, gradient in gradients.items()}, norm


def adamw_step(parameters, gradients, moments, *, rate, betas=(0.9, 0.999), eps=1e-8, decay=0.0):
    """(new parameters, new moments); nothing is written in place."""
    (beta, beta_square), steps = betas, moments.steps + 1
    mean, square, moved = {}, {}, {}
    for name, weight in parameters.items():
        gradient = gradients[name]
        mean[name] = beta * moments.mean[name] + (1 - beta) * gradient
        square[name] = beta_square * moments.square[name] + (1 - beta_square) * gradient**2
        corrected_mean = mean[name] / (1 - beta**steps)
        corrected_square = square[name] / (1 - beta_square**steps)
        shrink = rate * decay if weight.ndim > 1 else 0.0
        moved[name] = weight - shrink * weight - rate * corrected_mean / (np.sqrt(corrected_square) + eps)
    return moved, Moments(mean, square, steps)
