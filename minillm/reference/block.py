"""One block of figure 1: attention and feed-forward, each with its add & norm.

    figure 1      x -> norm(x + layer(x))
    norm first    x -> x + layer(norm(x))        GPT-2 and Llama: the sum itself is never normalised

Gradient. A sum passes the same gradient to both its terms, and where x has several uses their gradients add. The rest
is the chain rule: the operations' own backward functions, called in reverse order.
"""

from minillm.reference.layers import (
    attention_layer_backward,
    attention_layer_forward,
    feed_forward_layer_backward,
    feed_forward_layer_forward,
)
from minillm.reference.parameters import above, below, norm_backward, norm_forward


def block_forward(hidden, weights, config, rotation=None, mask=None, prefix=None):
    """The cache's ["attention"]["heads"] holds the keys and values of this block."""
    add, attend, feed = add_and_norm_forward, attention_layer_forward, feed_forward_layer_forward
    middle_BTD, cache = add(hidden, weights, config, "attention", attend, rotation, mask, prefix)
    out_BTD, feed_cache = add(middle_BTD, weights, config, "feed_forward", feed)
    return out_BTD, cache | feed_cache


def block_backward(dout, cache, dkeys_values=None):
    """`dkeys_values`: the gradients of this block's keys and values from their other uses, if there are any."""
    feed = add_and_norm_backward(dout, cache, "feed_forward", feed_forward_layer_backward)
    attend = add_and_norm_backward(feed["hidden"], cache, "attention", attention_layer_backward, dkeys_values)
    return attend | {"weights": feed["weights"] | attend["weights"]}


def add_and_norm_forward(hidden, weights, config, place, layer_forward, *where):
    norm_weights, layer_weights = below(f"{place}_norm", weights), below(place, weights)
    if config.norm_first:
        normed_BTD, norm = norm_forward(hidden, norm_weights, config)
        added_BTD, layer = layer_forward(normed_BTD, layer_weights, config, *where)
        out_BTD = hidden + added_BTD
    else:
        added_BTD, layer = layer_forward(hidden, layer_weights, config, *where)
        out_BTD, norm = norm_forward(hidden + added_BTD, norm_weights, config)
    return out_BTD, {place: layer, f"{place}_norm": norm, "norm_first": config.norm_first}


def add_and_norm_backward(dout, cache, place, layer_backward, *where):
    if cache["norm_first"]:
        layer = layer_backward(dout, cache[place], *where)
        norm = norm_backward(layer["hidden"], cache[f"{place}_norm"])
        dhidden_BTD = dout + norm["hidden"]
    else:
        norm = norm_backward(dout, cache[f"{place}_norm"])
        layer = layer_backward(norm["hidden"], cache[place], *where)
        dhidden_BTD = norm["hidden"] + layer["hidden"]
    weights = above(place, layer["weights"]) | above(f"{place}_norm", norm["weights"])
    return layer | {"hidden": dhidden_BTD, "weights": weights}
