"""Figure 1 from the embeddings to the logits, forward and backward: the numpy reference of `minillm.decoder`.

    features = tower(embed(ids))        logits = features headᵀ

`weights` is a torch `state_dict()` with numpy arrays, unchanged, and LoRA's factors if there are any (`parameters.py`).
`config` is anything with DecoderConfig's attributes. `prefix` is a KeyValues; `mask` is true for a token. There is no
dropout.

Gradient. Two points are particular to a decoder:
  * a tied head is the embedding table, whose gradient has therefore two terms, one as input and one as output;
  * the keys and values of a prompt are outputs too: their gradient enters at the keys and values of each block and
    flows back to the prompt's embeddings. This is how a soft prompt is trained.

Backward returns the gradients of the "weights" by name, of the "embeddings" and of the "prefix".
"""

import numpy as np

from minillm.reference.embedding import embedding_backward, embedding_forward
from minillm.reference.parameters import above, below, in_float64, projection_backward, projection_forward
from minillm.reference.tower import KeyValues, tower_backward, tower_forward


def decoder_forward(weights, config, ids, *, prefix=None, mask=None):
    """Logits, B T V."""
    weights = in_float64(weights)
    features_BTD, tower = features_forward(weights, config, ids, prefix=prefix, mask=mask)
    head = below("head", weights)
    if config.tie_embeddings:
        head["weight"] = weights["embed.weight"]
    logits_BTV, linear = projection_forward(features_BTD, head)
    return logits_BTV, (tower, linear, config.tie_embeddings)


def decoder_backward(dout, cache):
    tower, linear, tied = cache
    head = projection_backward(dout, linear)
    gradients = features_backward(head["x"], tower)
    if tied:
        gradients["weights"]["embed.weight"] += head["weights"].pop("weight")
    return gradients | {"weights": gradients["weights"] | above("head", head["weights"])}


def features_forward(weights, config, ids, *, prefix=None, mask=None):
    """The inputs of the head, B T D."""
    weights = in_float64(weights)
    embeddings_BTD, table = embedding_forward(ids, weights["embed.weight"])
    features_BTD, tower = tower_forward(weights, config, embeddings_BTD, prefix, mask)
    return features_BTD, (table, tower)


def features_backward(dout, cache):
    table, tower = cache
    gradients = tower_backward(dout, tower)
    return _with_table_gradient(gradients, table)


def keys_values_forward(weights, config, prompt):
    """The keys and values of a prompt, given as ids (B P) or embeddings (B P D), in every layer: a KeyValues."""
    weights, table = in_float64(weights), None
    if prompt.ndim == 2:
        prompt, table = embedding_forward(prompt, weights["embed.weight"])
    _, tower = tower_forward(weights, config, prompt)
    heads = [block["attention"]["heads"] for block in tower["blocks"]]
    keys_LBGPK, values_LBGPK = (np.stack([head[side] for head in heads]) for side in ("key", "value"))
    return KeyValues(keys_LBGPK, values_LBGPK, windowed=True), (table, tower, np.zeros(prompt.shape))


def keys_values_backward(dout, cache):
    """`dout` holds the gradients as a KeyValues, as another decoder pass returns them for its "prefix"."""
    table, tower, dfeatures_BPD = cache
    gradients = tower_backward(dfeatures_BPD, tower, dout)
    return _with_table_gradient(gradients, table)


def _with_table_gradient(gradients, table):
    if table is not None:
        gradients["weights"]["embed.weight"] = embedding_backward(gradients["embeddings"], table)["weight"]
    return gradients
