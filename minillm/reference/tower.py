"""What stands between the embeddings and the head (figure 1): positions, L blocks, the last norm.

    x = positions(embeddings);    x = block_l(x, prefix_l) for l = 1 ... L;    features = norm(x)

Where norms come after the layers (figure 1) the last block has normed already, and there is no last norm.

Gradient. The blocks are undone from the last to the first. Each block's prefix is an input of its own, so the
prefix's slopes are simply stacked, layer by layer.
"""

from typing import Any, NamedTuple

import numpy as np

from minillm.reference.attention import Prefix
from minillm.reference.block import block_backward, block_forward
from minillm.reference.embedding import embedding_backward, embedding_forward
from minillm.reference.parameters import above, below, norm_backward, norm_forward
from minillm.reference.positions import rotary_tables, sinusoidal, token_positions


class KeyValues(NamedTuple):
    """A prompt in every layer: keys and values, L B G P K (B may be 1), and perhaps each head's gate, L H.

    The text's positions count on from P, or from 0 where the prompt takes up none.
    """

    keys: Any
    values: Any
    gate: Any = None
    takes_positions: bool = True

    @property
    def sides(self):
        return self.keys, self.values, self.gate


def tower_forward(weights, config, embeddings, prefix=None, mask=None):
    hidden_BTD, rotation, positions = _positions_forward(weights, config, embeddings, prefix, mask)
    cache: dict[str, Any] = {"positions": positions, "blocks": [], "prefix": prefix}
    for layer in range(config.layers):
        its_prefix = None
        if prefix is not None:
            its_prefix = Prefix(*(None if side is None else side[layer] for side in prefix.sides))
        its_weights = below(f"blocks.{layer}", weights)
        hidden_BTD, block = block_forward(hidden_BTD, its_weights, config, rotation, mask, its_prefix)
        cache["blocks"].append(block)
    if config.norm_first:
        hidden_BTD, cache["norm"] = norm_forward(hidden_BTD, below("norm", weights), config)
    return hidden_BTD, cache


def tower_backward(dout, cache, left_behind=None):
    """`left_behind`: the slopes of all blocks' keys and values, a KeyValues, where they have been read."""
    dhidden_BTD, weights, prefixes = dout, {}, []
    if "norm" in cache:
        norm = norm_backward(dout, cache["norm"])
        dhidden_BTD, weights = norm["hidden"], above("norm", norm["weights"])
    for layer, block in reversed(list(enumerate(cache["blocks"]))):
        more = left_behind and {"key": left_behind.keys[layer], "value": left_behind.values[layer]}
        gradients = block_backward(dhidden_BTD, block, more)
        dhidden_BTD = gradients["hidden"]
        weights |= above(f"blocks.{layer}", gradients["weights"])
        prefixes.insert(0, gradients["prefix"])
    gradients = _positions_backward(dhidden_BTD, cache["positions"])
    gradients["weights"] |= weights
    if cache["prefix"] is not None:
        sides = zip(*prefixes, strict=True)
        keys, values, gate = (None if side[0] is None else np.stack(side) for side in sides)
        gradients["prefix"] = KeyValues(keys, values, gate)
    return gradients


def _positions_forward(weights, config, embeddings, prefix, mask):
    """What enters the first block, and the rotation that every block applies where positions are rotary."""
    start = prefix.keys.shape[3] if prefix is not None and prefix.takes_positions else 0
    positions_BT = token_positions(np.ones(embeddings.shape[:2], bool) if mask is None else mask, start)
    if config.positions == "rotary":
        rotation = rotary_tables(positions_BT, config.width // config.heads, config.rope_theta)
        return embeddings, rotation, (1.0, None)
    if config.positions == "learned":
        vectors_BTD, table = embedding_forward(positions_BT, weights["positions.weight"])
        return embeddings + vectors_BTD, None, (1.0, table)
    # Section 3.4 of the figure's paper: embeddings of spread 1 / √D grow to the size of the sinusoids.
    scale = np.sqrt(config.width)
    return scale * embeddings + sinusoidal(positions_BT, config.width), None, (scale, None)


def _positions_backward(dout, cache):
    scale, table = cache
    weights = {} if table is None else {"positions.weight": embedding_backward(dout, table)["weight"]}
    return {"embeddings": scale * dout, "weights": weights}
