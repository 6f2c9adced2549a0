"""The two layers of a block (figure 1) with their Linears: masked multi-head attention, and feed-forward.

    attention       out(merge(attend(split(query x), split(key x), split(value x))))
    feed-forward    down(f(up x)),  or  down(swiglu(gate x, up x))

With rotary positions, queries and keys are rotated before attention; before that, each head of them may have a norm.
Splitting a width into heads and merging the heads are reshapes, each the inverse of the other in the backward pass.

Backward returns the gradient of the input ("hidden"), those of the "weights" by name, and for attention that of the
"prefix".
"""

from minillm.reference import feed_forward
from minillm.reference.attention import attention_backward, attention_forward
from minillm.reference.parameters import (
    above,
    below,
    norm_backward,
    norm_forward,
    projection_backward,
    projection_forward,
)
from minillm.reference.positions import rotary_backward, rotary_forward

ACTIVATIONS = {
    "relu": (feed_forward.relu_forward, feed_forward.relu_backward),
    "gelu": (feed_forward.gelu_forward, feed_forward.gelu_backward),
    "swiglu": (feed_forward.swiglu_forward, feed_forward.swiglu_backward),
}


def attention_layer_forward(hidden, weights, config, rotation=None, mask=None, prefix=None):
    """The cache's "heads" holds the queries, keys and values of this layer."""
    heads, cache = {}, {}
    for name in ("query", "key", "value"):
        projected_BTD, cache[name] = projection_forward(hidden, below(name, weights))
        heads[name] = _split(projected_BTD, config.head_width)
    for name in ("query", "key") if config.query_key_norm else ():
        heads[name], cache[f"{name}_norm"] = norm_forward(heads[name], below(f"{name}_norm", weights), config)
    if rotation is not None:
        for name in ("query", "key"):
            heads[name], cache["rotation"] = rotary_forward(heads[name], *rotation)
    attended_BHTK, cache["attention"] = attention_forward(**heads, mask=mask, prefix=prefix, window=config.window)
    out_BTD, cache["out"] = projection_forward(_merge(attended_BHTK), below("out", weights))
    return out_BTD, cache | {"heads": heads}


def attention_layer_backward(dout, cache, dkeys_values=None):
    """`dkeys_values`: the gradients of this layer's "key" and "value" from their other uses, if there are any."""
    out = projection_backward(dout, cache["out"])
    weights = above("out", out["weights"])
    heads = attention_backward(_split(out["x"], cache["heads"]["query"].shape[-1]), cache["attention"])
    for name, more_BGTK in (dkeys_values or {}).items():
        heads[name] = heads[name] + more_BGTK
    dhidden_BTD = 0.0
    for name in ("query", "key", "value"):
        if "rotation" in cache and name != "value":
            heads[name] = rotary_backward(heads[name], cache["rotation"])["vectors"]
        if f"{name}_norm" in cache:
            norm = norm_backward(heads[name], cache[f"{name}_norm"])
            heads[name], weights = norm["hidden"], weights | above(f"{name}_norm", norm["weights"])
        linear = projection_backward(_merge(heads[name]), cache[name])
        dhidden_BTD = dhidden_BTD + linear["x"]
        weights |= above(name, linear["weights"])
    return {"hidden": dhidden_BTD, "weights": weights, "prefix": heads.get("prefix")}


def feed_forward_layer_forward(hidden, weights, config):
    cache, inner = {}, {}
    for name in ("gate", "up") if config.feed_forward == "swiglu" else ("up",):
        inner[name], cache[name] = projection_forward(hidden, below(name, weights))
    activation, backward = ACTIVATIONS[config.feed_forward]
    active_BTF, saved = activation(**inner)
    out_BTD, cache["down"] = projection_forward(active_BTF, below("down", weights))
    return out_BTD, cache | {"activation": (backward, saved)}


def feed_forward_layer_backward(dout, cache):
    down = projection_backward(dout, cache["down"])
    weights, dhidden_BTD = above("down", down["weights"]), 0.0
    backward, saved = cache["activation"]
    for name, dinner_BTF in backward(down["x"], saved).items():
        linear = projection_backward(dinner_BTF, cache[name])
        dhidden_BTD = dhidden_BTD + linear["x"]
        weights |= above(name, linear["weights"])
    return {"hidden": dhidden_BTD, "weights": weights}


def _split(hidden_BTD, width):
    batch, tokens, _ = hidden_BTD.shape
    return hidden_BTD.reshape(batch, tokens, -1, width).swapaxes(1, 2)


def _merge(heads_BHTK):
    batch, heads, tokens, width = heads_BHTK.shape
    return heads_BHTK.swapaxes(1, 2).reshape(batch, tokens, heads * width)
