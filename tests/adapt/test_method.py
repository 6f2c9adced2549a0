"""A wrong argument of a method gets a hint."""

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
