"""Pre-training from nothing in numpy alone: a text's tokenizer, a decoder's first weights, and twenty steps.

A program of its own, so that a test can see that it needs no torch: `python pretraining.py OUT.npz`.
"""

import sys

import numpy as np

from minillm.config import DecoderConfig
from minillm.reference.adamw import no_moments
from minillm.reference.bpe import encode, train
from minillm.reference.training import language_model_loss, next_token_labels, training_step

TEXT = "she sells sea shells by the sea shore; the shells she sells are surely sea shells. " * 3
STEPS, ROWS, TOKENS = 20, 3, 11
SETTINGS = {"rate": 1e-2, "decay": 0.1, "clip": 1.0}


def tiny():
    tokenizer = train(TEXT, vocabulary=271)
    return tokenizer, DecoderConfig.tiny(vocabulary=len(tokenizer.ids))


def first_weights(config, random):
    """The names and shapes of a Llama's parameters, a tied head among the embeddings."""
    width, narrow, inner = config.width, config.kv_heads * config.head_width, config.feed_forward_width
    shapes = {"embed.weight": (config.vocabulary, width), "norm.weight": (width,)}
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.{place}_norm.weight": (width,) for place in ("attention", "feed_forward")}
        shapes |= {f"{block}.attention.{side}.weight": (width, width) for side in ("query", "out")}
        shapes |= {f"{block}.attention.{side}.weight": (narrow, width) for side in ("key", "value")}
        shapes |= {f"{block}.feed_forward.{side}.weight": (inner, width) for side in ("gate", "up")}
        shapes |= {f"{block}.feed_forward.down.weight": (width, inner)}
    return {name: np.ones(s) if len(s) == 1 else random.normal(scale=0.2, size=s) for name, s in shapes.items()}


def batches(ids, random):
    for _ in range(STEPS):
        starts = random.integers(0, len(ids) - TOKENS, ROWS)
        yield np.stack([ids[start : start + TOKENS] for start in starts])


def main(out):
    random = np.random.default_rng(0)
    tokenizer, config = tiny()
    start = parameters = first_weights(config, random)
    moments, losses, seen = no_moments(parameters), [], []
    for ids in batches(np.array(encode(tokenizer, TEXT)), random):

        def loss_and_gradients(now, ids=ids):
            loss, gradients = language_model_loss(now, config, ids, next_token_labels(ids))
            return loss, gradients["weights"]

        loss, parameters, moments = training_step(loss_and_gradients, parameters, moments, **SETTINGS)
        losses.append(loss)
        seen.append(ids)
    np.savez(out, losses=losses, seen=seen, **start)
    print(sorted({name.split(".")[0] for name in sys.modules}))


if __name__ == "__main__":
    main(sys.argv[1])
