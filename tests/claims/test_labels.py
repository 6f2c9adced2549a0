"""Labels that begin alike are learned by every kind of training, on a base that was trained for seconds."""

import random
from functools import cache

import pytest
import torch

from minillm import Decoder, DecoderConfig, TextClassifier, adapt, train
from minillm.training.tokenizers import byte_pairs

pytestmark = pytest.mark.slow

KEYS = ["red", "blue", "green", "cold", "warm", "tall", "short", "loud", "quiet", "new", "old", "round"]
FILLERS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "saw", "it", "in", "room"]
PROMPT = "Text: {text}\nLabel:"
SETS = {
    "ratings": [str(rating) for rating in range(1, 13)],
    "two": ["not", "not sure"],
    "imbalanced": [
        *["delivery problem"] * 12, *["delivery"] * 6, *["delivery delay"] * 4, *["payment issue"] * 3, *["other"] * 2
    ],
}  # fmt: skip
METHODS = {
    "full": {"learning_rate": 2e-3, "epochs": 6},
    "lora": {"learning_rate": 5e-3, "epochs": 8, "targets": ("all-linear",)},
    "last-blocks": {"learning_rate": 3e-3, "epochs": 8},
}


def rows(labels, count, seed, known=1.0):
    """Texts with a word for their label, or with any in the part that is not `known`, and the labels."""
    draw, classes, found = random.Random(seed), sorted(set(labels)), []
    for index in range(count):
        label, words = labels[index % len(labels)], draw.choices(FILLERS, k=5)
        key = classes.index(label) if index < known * count else draw.randrange(len(classes))
        words[draw.randrange(5)] = KEYS[key]
        found.append((" ".join(words), label))
    return found


@cache
def base(name):
    """A decoder that has seen such text, a part of it with random labels."""
    texts = [(PROMPT.replace("{text}", text), f" {label}") for text, label in rows(SETS[name], 800, 1, known=0.8)]
    tokenizer = byte_pairs([f"{text}{label}\n\n" for text, label in texts], 380)
    torch.manual_seed(0)
    sizes = {"width": 64, "heads": 4, "kv_heads": 2, "feed_forward_width": 128}
    method = adapt.FineTune(Decoder(DecoderConfig.tiny(vocabulary=tokenizer.vocabulary, **sizes)))
    train(method, tokenizer, texts, epochs=6, learning_rate=3e-3)
    return adapt.merge(method), tokenizer


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_separable_task_is_learned(name, method):
    classifier = TextClassifier(base=base(name), method=method, prompt=PROMPT, **METHODS[method])
    classifier.fit(*zip(*rows(SETS[name], 320, 2), strict=True))
    assert classifier.score(*zip(*rows(SETS[name], 120, 3), strict=True)) >= 0.95
