"""AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019), and clipping by the global norm (Pascanu et al. 2013).

    g <- g · min(1, c / ‖g‖)                            all gradients together as one long vector
    m <- β₁ m + (1 - β₁) g        v <- β₂ v + (1 - β₂) g²
    w <- w - η λ w - η m̂ / (√v̂ + ε),    m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)

m is a running mean of slopes and v of their squares, so m̂ / √v̂ is about one step of size η wherever slopes agree in
sign, however small they are. Both start at 0. After t steps the weights of a running mean add up to 1 - βᵗ and not to
1: dividing by that sum is the correction of the bias. Decay pulls at the weight itself, not through the slope (that
is the W): through m̂ / √v̂ it would be scaled away like any other slope. Only matrices decay (λ = 0 for vectors): the
scales and shifts of norms are not to be drawn to 0.
"""

import math
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """The running means of slopes and of their squares by parameter name, after so many steps."""

    mean: dict
    square: dict
    steps: int = 0


def no_moments(parameters):
    zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
    return Moments(zeros, zeros)


def clip_by_global_norm(gradients, maximum):
    """(gradients no longer than `maximum` together, their norm before)."""
    norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    # A millionth keeps a norm of 0 from dividing; the norm of what is clipped falls that little short of the maximum.
    factor = min(1.0, maximum / (norm + 1e-6))
    return {name: factor * gradient for name, gradient in gradients.items()}, norm


def adamw_step(parameters, gradients, moments, *, rate, betas=(0.9, 0.999), eps=1e-8, decay=0.0):
    """(new parameters, new moments); nothing is written in place."""
    (beta, beta_square), steps = betas, moments.steps + 1
    mean, square, moved = {}, {}, {}
    for name, weight in parameters.items():
        slope = gradients[name]
        mean[name] = beta * moments.mean[name] + (1 - beta) * slope
        square[name] = beta_square * moments.square[name] + (1 - beta_square) * slope**2
        corrected_mean = mean[name] / (1 - beta**steps)
        corrected_square = square[name] / (1 - beta_square**steps)
        shrink = rate * decay if weight.ndim > 1 else 0.0
        moved[name] = weight - shrink * weight - rate * corrected_mean / (np.sqrt(corrected_square) + eps)
    return moved, Moments(mean, square, steps)
