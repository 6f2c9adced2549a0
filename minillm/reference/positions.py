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

For contexts longer than the original one, S tokens, pairs that turn slowly are slowed down by a factor s. Pair i, of
frequency f_i = θ^(-2i / width), turns r_i = S f_i / 2π times in S tokens, and

    f_i -> f_i (γ_i + (1 - γ_i) / s)

    linear (Chen et al. 2023)       γ_i = 0
    llama3 (Llama 3.1)              γ_i from 0 at r_i = slow to 1 at r_i = fast, linear in r_i
    yarn (Peng et al. 2023)         the same, linear in i between the rounded indices with these numbers of turns;
                                    also z_i -> m z_i, with the attention factor m

Gradient. The transpose of a rotation matrix is the inverse rotation: dz_i = m dz'_i exp(-i φ_i). Positions have none.
"""

import numpy as np

PREFIX = -1  # a prefix in the mask of packed rows: every conversation attends to it. As Boolean it is True


def token_positions(mask, start):
    """The position of a real token: `start`, the length of the prefix, plus the number of real tokens before it.

    In a packed row (an integer mask), the number of tokens of its own conversation before it.
    """
    if mask.dtype != bool:
        return start + np.tril(same_conversation(mask)).sum(-1) - 1
    # The position of padding is never used; it only has to be a valid row of the table.
    return start + np.maximum(np.cumsum(mask, -1) - 1, 0)


def same_conversation(mask):
    """Whether a token (second axis) and a key (third) of a packed row share a conversation, or the key is a prefix."""
    return (mask[:, :, None] == mask[:, None]) | (mask[:, None] == PREFIX)


def angles(positions, width, theta, scaling=None):
    pair = np.arange(width // 2)
    frequency = 1 / theta ** (2 * pair / width)
    if scaling is not None:
        unscaled = unscaled_share(frequency, theta, scaling)
        frequency = frequency * (unscaled + (1 - unscaled) / scaling.factor)
    return positions[..., None] * frequency


def unscaled_share(frequency, theta, scaling):
    """γ of each pair."""
    if scaling.kind == "linear":
        return np.zeros(len(frequency))
    if scaling.kind == "llama3":
        turns = scaling.original_context * frequency / (2 * np.pi)
        return np.clip((turns - scaling.slow) / (scaling.fast - scaling.slow), 0, 1)
    pair_that_turns = {
        times: len(frequency) * np.log(scaling.original_context / (2 * np.pi * times)) / np.log(theta)
        for times in (scaling.slow, scaling.fast)
    }
    first = max(np.floor(pair_that_turns[scaling.fast]), 0)
    last = min(np.ceil(pair_that_turns[scaling.slow]), 2 * len(frequency) - 1)
    return np.clip((last - np.arange(len(frequency))) / max(last - first, 0.001), 0, 1)


def sinusoidal(positions, width):
    angles_TD = np.repeat(angles(positions, width, 10_000.0), 2, -1)
    even_D = np.arange(width) % 2 == 0
    return np.where(even_D, np.sin(angles_TD), np.cos(angles_TD))


def rotary_tables(positions, head_width, theta, scaling=None):
    angles_TK = angles(positions, head_width, theta, scaling)
    factor = 1.0 if scaling is None else scaling.attention_factor
    return factor * np.cos(angles_TK), factor * np.sin(angles_TK)


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
