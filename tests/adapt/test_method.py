"""A wrong argument of a method gets a hint, and impossible ones are refused."""

import math

import pytest

from minillm import InputError
from minillm.adapt import FineTune, FrozenHead, LoRA, PrefixTuning, SoftPrompt
from tests.decoders import STYLES, random_decoder


@pytest.mark.parametrize(
    ("method", "name", "sentence"),
    [
        (LoRA, "rank", "LoRA has no argument 'rank'; did you mean 'r'?"),
        (LoRA, "lora_alpha", "LoRA has no argument 'lora_alpha'; did you mean 'alpha'?"),
        (LoRA, "target_modules", "LoRA has no argument 'target_modules'; did you mean 'targets'?"),
        (LoRA, "lora_dropout", "LoRA has no argument 'lora_dropout'; did you mean 'dropout'?"),
        (LoRA, "target", "LoRA has no argument 'target'; did you mean 'targets'?"),
        (SoftPrompt, "num_virtual_tokens", "SoftPrompt has no argument 'num_virtual_tokens'; did you mean 'length'?"),
        (PrefixTuning, "virtual_tokens", "PrefixTuning has no argument 'virtual_tokens'; did you mean 'length'?"),
        (FrozenHead, "num_labels", "FrozenHead has no argument 'num_labels'; did you mean 'classes'?"),
        (FineTune, "rank", "FineTune has no argument 'rank'; its arguments: decoder, layers, classes"),
    ],
)
def test_a_wrong_argument_is_refused_with_the_right_one(method, name, sentence):
    with pytest.raises(InputError) as refusal:
        method(random_decoder(STYLES["Llama"]), **{name: 3})
    assert str(refusal.value) == sentence


REFUSED = [
    (LoRA, {"r": 0}, "the rank of blocks.0.attention.query must be at least 1, got 0"),
    (LoRA, {"r": 11}, r"blocks.0.attention.value, which is \(10, 30\), must be at most 10, got 11"),
    (LoRA, {"ranks": {"up": 3}}, "LoRA rank for 'up' matches nothing"),
    (LoRA, {"alphas": {"blocks.7.*": 3}}, r"LoRA alpha for 'blocks\.7\.\*' matches nothing"),
    (LoRA, {"ranks": {"query": -1}}, "must be at least 1, got -1"),
    (LoRA, {"alpha": 0}, "alpha must be a number above 0, got 0"),
    (LoRA, {"alpha": float("nan")}, "alpha must be a number above 0, got nan"),
    (LoRA, {"alphas": {"query": math.inf}}, "alpha must be a number above 0, got inf"),
    (LoRA, {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
    (LoRA, {"targets": ("c_attn",)}, "LoRA target 'c_attn' matches nothing"),
    (LoRA, {"targets": ()}, "LoRA needs at least one target"),
    (PrefixTuning, {"length": 17}, r"length must be in \[1, 16\] for this decoder, got 17"),
    (PrefixTuning, {"init": "words"}, "init must be random, zero or a list of token ids, got 'words'"),
    (PrefixTuning, {"gated": True, "length": 1}, "a gated prefix needs length >= 2"),
    (PrefixTuning, {"gated": True, "init": "zero"}, "it cannot learn from zeros"),
    (PrefixTuning, {"hidden": 2}, "hidden must be at least the length, 3, got 2"),
    (SoftPrompt, {"length": 0}, r"length must be in \[1, 16\] for this decoder, got 0"),
    (SoftPrompt, {"length": 17}, r"length must be in \[1, 16\] for this decoder, got 17"),
    (SoftPrompt, {"init": "words"}, "init must be random, vocabulary or a list of token ids, got 'words'"),
    (SoftPrompt, {"init": [1, 13]}, r"token ids in \[0, 12\], got \[1, 13\]"),
    (SoftPrompt, {"init": []}, r"init must be one or more token ids in \[0, 12\], got \[\]"),
    (FineTune, {"layers": 3}, r"layers must be in \[1, 2\] or 'output' \(the head alone\), got 3"),
    (FineTune, {"layers": 0}, "got 0"),
    (FineTune, {"layers": ["blocks.7.*"]}, r"layer 'blocks\.7\.\*' matches nothing"),
    *((FineTune, {"classes": classes}, "at least 2 classes") for classes in (1, [4], [])),
    *((FineTune, {"classes": tokens}, r"distinct ids in \[0, 12\]") for tokens in ([3, 3], [0, 13], [-1, 2])),
]


@pytest.mark.parametrize(("method", "options", "sentence"), REFUSED)
def test_impossible_options_are_refused(method, options, sentence):
    needed = {"length": 3} if method in (SoftPrompt, PrefixTuning) else {}
    with pytest.raises(InputError, match=sentence):
        method(random_decoder(STYLES["Llama"]), **needed | options)
