"""How named weights reach the operations: a Linear with its low-rank update, and the norm that the config chooses.

Weights are one flat mapping from name to array, `blocks.0.attention.query.weight`, as in a torch `state_dict()`. A
layer receives the weights below its own name and returns gradients under the same names. Low-rank factors are weights
of their Linear like the others: `query.a`, `query.b` and the constant `query.scale`.

Where an operation is chosen, its cache is a pair: the backward function and that function's cache.
"""

import numpy as np

from minillm.reference.linear import linear_backward, linear_forward
from minillm.reference.lora import lora_backward, lora_forward
from minillm.reference.norm import layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward


def below(place, named):
    """The entries below a name, without it: below "attention.out", {"attention.out.bias": b} is {"bias": b}."""
    return {name[len(place) + 1 :]: array for name, array in named.items() if name.startswith(place + ".")}


def above(place, named):
    """The inverse of `below`: {"bias": b} at "attention.out" is {"attention.out.bias": b}."""
    return {f"{place}.{name}": array for name, array in named.items()}


def in_float64(weights):
    return {name: np.asarray(array, np.float64) for name, array in weights.items()}


def with_low_rank(weights, lora):
    """The weights and, for each Linear named in `lora`, its factors: {"blocks.0.attention.query": (a, b, scale)}."""
    factors = {name: dict(zip(("a", "b", "scale"), low_rank, strict=True)) for name, low_rank in lora.items()}
    return dict(weights, **{f"{name}.{part}": value for name in lora for part, value in factors[name].items()})


def projection_forward(x, weights):
    """A Linear of the decoder, with its low-rank update if it has one."""
    weight, bias = weights["weight"], weights.get("bias")
    if "a" in weights:
        out_BTO, cache = lora_forward(x, weight, bias, weights["a"], weights["b"], weights["scale"])
        return out_BTO, (lora_backward, cache)
    out_BTO, cache = linear_forward(x, weight, bias)
    return out_BTO, (linear_backward, cache)


def projection_backward(dout, cache):
    backward, saved = cache
    gradients = backward(dout, saved)
    return {"x": gradients.pop("x"), "weights": gradients}


def norm_forward(hidden, weights, config):
    """The norm of the config: of a block's attention or feed-forward layer, or the last one."""
    if config.norm == "rms":
        out_BTD, cache = rms_norm_forward(hidden, weights["weight"], config.norm_eps)
        return out_BTD, (rms_norm_backward, cache)
    out_BTD, cache = layer_norm_forward(hidden, weights["weight"], weights["bias"], config.norm_eps)
    return out_BTD, (layer_norm_backward, cache)


def norm_backward(dout, cache):
    backward, saved = cache
    gradients = backward(dout, saved)
    return {"hidden": gradients.pop("hidden"), "weights": gradients}
