"""A scaled method is the base at 0, the method at 1, and W + s dW, or s times the attention to a prefix, elsewhere."""

import pytest
import torch

from minillm import generate
from minillm.adapt import LoRA, PrefixTuning, merge
from minillm.adapt.surgery import frozen
from minillm.play.scaled import ScaledMethod
from tests.adapters.adapters import CASES, IDS, trained
from tests.decoders import STYLES, random_decoder

METHODS = [name for name in CASES if "classifier" not in name and name != "frozen head"]
CHANGES = ["LoRA", "LoRA, all but plain", "DoRA", "PiSSA", "output layer", "last block", "all weights"]


def logits(model):
    with torch.no_grad():
        return model.decoder(IDS, prefix=model.prefix())


@pytest.mark.parametrize("name", METHODS)
def test_scale_1_is_the_method_and_0_the_base(name):
    base = random_decoder(STYLES["Llama"])
    method = trained(name, base)
    before = logits(method)
    model = ScaledMethod(base, method)
    assert torch.equal(logits(model), before)
    model.scale = 0.0
    torch.testing.assert_close(logits(model), logits(base))
    model.scale = 0.5
    assert not torch.allclose(logits(model), before)
    model.scale = 1.0
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_weights_is_scaled(name):
    base = random_decoder(STYLES["Llama"])
    merged = merge(trained(name, base))
    if merged.head.weight is not merged.embed.weight:
        base.head.weight = torch.nn.Parameter(base.head.weight.detach().clone())
    between = frozen(base)
    for parameter, start, end in zip(between.parameters(), base.parameters(), merged.parameters(), strict=True):
        parameter.copy_(start.lerp(end, 1.5))
    base = random_decoder(STYLES["Llama"])
    model = ScaledMethod(base, trained(name, base))
    model.scale = 1.5
    torch.testing.assert_close(logits(model), logits(between))


def test_a_gate_is_scaled():
    base = random_decoder(STYLES["Llama"])
    method = trained("prefix, gated", base)
    model = ScaledMethod(base, method)
    model.scale = 0.5
    other = trained("prefix, gated", base)
    with torch.no_grad():
        other.gate.copy_((0.5 * method.gate.tanh()).atanh())
    torch.testing.assert_close(logits(model), logits(other))


@pytest.mark.parametrize("method", [LoRA, lambda base: PrefixTuning(base, 3)])
def test_generation_with_a_cache_equals_that_without(method):
    base = random_decoder(STYLES["Llama"])
    method = method(base)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter += torch.randn_like(parameter)
    model, ids = ScaledMethod(base, method.eval()), IDS[:1]
    model.scale = 0.7
    for _ in range(5):
        new = model.decoder(ids, prefix=model.prefix())[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, new), 1)
    assert generate(model, IDS[:1], max_new_tokens=5).tolist() == ids.tolist()
