"""Positional encoding (figure 1): it distinguishes a token at one position from the same token at another.

Position t has one angle for each pair i of elements, φ_i = t θ^(-2i / width): the first pair turns by one radian per
position, the last one very slowly. Learned positions need no formula: they are an embedding.

Sinusoidal (Vaswani et al. 2017, section 3.5; θ = 10,000), added to the embeddings:

    x_2i = sin φ_i        x_2i+1 = cos φ_i

Rotary (Su et al. 2021): queries and keys are rotated instead. With elements i and i + K/2 of a head as one complex
number z_i,

    z_i -> z_i exp(i φ_i)

and the product of a query and a key depends only on their distance, since exp(i φ) and exp(-i φ') multiply to
exp(i (φ - φ')).

Gradient. The transpose of a rotation matrix is the inverse rotation: dz_i = dz'_i exp(-i φ_i). Positions have none.
"""

import numpy as np


def token_positions(mask, start):
    """The position of a real token: `start`, the length of the prefix, plus the number of real tokens before it."""
    # The position of padding is never used; it only has to be a valid row of the table.
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
    rotation = (cos + 1j * sin)[..., None, :, :]
    return _rotated(vectors, rotation), rotation


def rotary_backward(dout, cache):
    return {"vectors": _rotated(dout, cache.conj())}


def _rotated(vectors_BHTK, rotation):
    half = vectors_BHTK.shape[-1] // 2
    complex_vectors = vectors_BHTK[..., :half] + 1j * vectors_BHTK[..., half:]
    rotated = complex_vectors * rotation
    return np.concatenate((rotated.real, rotated.imag), -1)
