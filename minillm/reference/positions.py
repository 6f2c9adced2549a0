"""Positional encoding (figure 1): what tells a token at one place from the same token at another.

Position t has one angle for each pair i of numbers, φ_i = t θ^(-2i / width): the first pair turns by a radian
a step, the last hardly at all. Learned positions need no formula: they are an embedding.

Sinusoidal (Vaswani et al. 2017, section 3.5; θ = 10,000). Added to the embeddings:

    x_2i = sin φ_i        x_2i+1 = cos φ_i

Rotary (Su et al. 2021). Queries and keys are turned instead. Take numbers i and i + K/2 of a head as one complex
number z_i; then

    z_i -> z_i exp(i φ_i)

and a query's product with a key depends on their distance only, since exp(i φ) and exp(-i φ') multiply to
exp(i (φ - φ')).

Gradient. A rotation is a matrix whose transpose is the rotation back: dz_i = dz'_i exp(-i φ_i). Positions have none.
"""

import numpy as np


def token_positions(mask, start):
    """A real token's position is the number of real tokens before it, after `start` of a prompt."""
    # What padding gets is never read: it only has to be a row that a table has.
    return start + np.maximum(np.cumsum(mask, -1) - 1, 0)


def angles(positions, width, theta):
    pair = np.arange(width // 2)
    return positions[..., None] / theta ** (2 * pair / width)


def sinusoidal(positions, width):
    angles_TD = np.repeat(angles(positions, width, 10_000.0), 2, -1)
    even_D = np.arange(width) % 2 == 0
    return np.where(even_D, np.sin(angles_TD), np.cos(angles_TD))


def rotary_tables(positions, head_width, theta):
    angles_TK = angles(positions, head_width, theta)
    return np.cos(angles_TK), np.sin(angles_TK)


def rotary_forward(vectors, cos, sin):
    turn = (cos + 1j * sin)[..., None, :, :]
    return _turned(vectors, turn), turn


def rotary_backward(dout, cache):
    return {"vectors": _turned(dout, cache.conj())}


def _turned(vectors_BHTK, turn):
    half = vectors_BHTK.shape[-1] // 2
    complex_vectors = vectors_BHTK[..., :half] + 1j * vectors_BHTK[..., half:]
    turned = complex_vectors * turn
    return np.concatenate((turned.real, turned.imag), -1)
