"""The decoder between the embeddings and the head (figure 1): positions, L blocks, the last norm.

    x = positions(embeddings);    x = block_l(x, prefix_l) for l = 1 ... L;    features = norm(x)

Where norms come after the layers (figure 1), the last block ends with one, and there is no extra norm.

Gradient. The blocks run backward from the last to the first. The prefix of each block is an input of its own, so the
gradients of the prefix are stacked layer by layer.
"""

from typing import Any, NamedTuple

import numpy as np

from minillm.reference.attention import Prefix
from minillm.reference.block import block_backward, block_forward
from minillm.reference.embedding import embedding_backward, embedding_forward
from minillm.reference.parameters import above, below, norm_backward, norm_forward
from minillm.reference.positions import rotary_tables, sinusoidal, token_positions


class KeyValues(NamedTuple):
    """The keys and values of a prompt in every layer, L B G P K (B may be 1), and optionally a gate per head, L H.

    The positions of the text start at P, or at 0 where the prompt takes up none.
    """

    keys: Any
    values: Any
    gate: Any = None
    takes_positions: bool = True
    windowed: bool = False

    @property
    def sides(self):
        return self.keys, self.values, self.gate


def tower_forward(weights, config, embeddings, prefix=None, mask=None):
    hidden_BTD, rotation, positions = _positions_forward(weights, config, embeddings, prefix, mask)
    cache: dict[str, Any] = {"positions": positions, "blocks": [], "prefix": prefix}
    for layer in range(config.layers):
        layer_prefix = None
        if prefix is not None:
            key, value, gate = (None if side is None else side[layer] for side in prefix.sides)
            layer_prefix = Prefix(key, value, gate, prefix.windowed)
        layer_rotation = None if layer in config.unrotated_layers else rotation
        layer_weights = below(f"blocks.{layer}", weights)
        hidden_BTD, block = block_forward(hidden_BTD, layer_weights, config, layer_rotation, mask, layer_prefix)
        cache["blocks"].append(block)
    if config.norm_first:
        hidden_BTD, cache["norm"] = norm_forward(hidden_BTD, below("norm", weights), config)
    return hidden_BTD, cache


def tower_backward(dout, cache, dkeys_values=None):
    """`dkeys_values`: a KeyValues, the gradients of all blocks' keys and values from their uses as a prefix."""
    dhidden_BTD, weights, prefixes = dout, {}, []
    if "norm" in cache:
        norm = norm_backward(dout, cache["norm"])
        dhidden_BTD, weights = norm["hidden"], above("norm", norm["weights"])
    for layer, block in reversed(list(enumerate(cache["blocks"]))):
        more = dkeys_values and {"key": dkeys_values.keys[layer], "value": dkeys_values.values[layer]}
        gradients = block_backward(dhidden_BTD, block, more)
        dhidden_BTD = gradients["hidden"]
        weights |= above(f"blocks.{layer}", gradients["weights"])
        prefixes.insert(0, gradients["prefix"])
    gradients = _positions_backward(dhidden_BTD, cache["positions"])
    gradients["weights"] |= weights
    if cache["prefix"] is not None:
        sides = zip(*(prefix[:3] for prefix in prefixes), strict=True)
        keys, values, gate = (None if side[0] is None else np.stack(side) for side in sides)
        gradients["prefix"] = KeyValues(keys, values, gate)
    return gradients


def _positions_forward(weights, config, embeddings, prefix, mask):
    """The input of the first block, and the rotation that every block applies where positions are rotary."""
    start = prefix.keys.shape[3] if prefix is not None and prefix.takes_positions else 0
    positions_BT = token_positions(np.ones(embeddings.shape[:2], bool) if mask is None else mask, start)
    if config.positions == "rotary":
        rotation = rotary_tables(positions_BT, config.head_width, config.rope_theta, config.rope_scaling)
        return embeddings, rotation, (1.0, None)
    if config.positions == "learned":
        vectors_BTD, table = embedding_forward(positions_BT, weights["positions.weight"])
        return embeddings + vectors_BTD, None, (1.0, table)
    # Vaswani et al. 2017, section 3.4: scales embeddings of standard deviation 1 / √D to the size of the sinusoids.
    scale = np.sqrt(config.width)
    return scale * embeddings + sinusoidal(positions_BT, config.width), None, (scale, None)


def _positions_backward(dout, cache):
    scale, table = cache
    weights = {} if table is None else {"positions.weight": embedding_backward(dout, table)["weight"]}
    return {"embeddings": scale * dout, "weights": weights}
