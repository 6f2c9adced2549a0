"""What LoRA, DoRA and PiSSA share: a method is its options and its state, and nothing else will do."""

import json

import pytest
import torch

from minillm import InputError
from minillm.adapt import LoRA
from minillm.adapt.dora import DoRA
from minillm.adapt.low_rank import unadapted
from minillm.adapt.pissa import PiSSA
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder

IDS = torch.tensor([[3, 1, 4, 1, 5]])
METHODS = [LoRA, DoRA, PiSSA]
OPTIONS = {
    "targets": ("query", "feed_forward.*", "head"), "ranks": {"blocks.0.*": 3}, "alphas": {"up": 5},
    "rank_stabilised": True, "dropout": 0.1, "train_bias": True,
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("style", STYLES)
def test_options_and_state_are_the_method_bit_for_bit(method, style):
    decoder = random_decoder(STYLES[style])
    options = OPTIONS | {"train_bias": STYLES[style].bias}
    first = moved(method(decoder, r=2, alpha=3, **options))
    kept, state = json.loads(json.dumps(first.options())), {name: t.clone() for name, t in first.state().items()}
    assert kept == {"r": 2, "alpha": 3, **options, "targets": list(options["targets"])}
    fresh, random_before = random_decoder(STYLES[style]), torch.get_rng_state()
    again = method.from_state(fresh, kept, state).eval()
    assert torch.equal(torch.get_rng_state(), random_before), "nothing is drawn to be thrown away"
    assert torch.equal(again(IDS), first.eval()(IDS))
    assert again.options() == first.options() == kept
    assert list(again.state()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state().items())
    moved(again, seed=1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.state().items()), "they share no memory"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda state: state.pop("blocks.1.attention.value.b"), "has no tensor blocks.1.attention.value.b"),
        (lambda state: state.update({"blocks.0.attention.out.a": torch.ones(2, 30)}), "has a tensor blocks.0.*out.a"),
        (lambda state: state.update({"blocks.0.attention.query.a": torch.ones(3, 30)}), r"query.a is \(3, 30\)"),
        (lambda state: state.update({"blocks.0.attention.query.a": torch.ones(60)}), r"query.a is \(60,\)"),
        (
            lambda state: state.update({name: tensor.int() for name, tensor in state.items()}),
            "of torch.int32; it should be .* of floating-point numbers",
        ),
    ],
)
def test_a_state_with_a_tensor_too_few_too_many_or_misshapen_is_refused(method, break_it, sentence):
    decoder = random_decoder(STYLES["Llama"])
    first = method(decoder, r=2)
    state = first.state()
    break_it(state)
    with pytest.raises(InputError, match=sentence):
        method.from_state(decoder, first.options(), state)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"r": 3}, "query.a is"),
        ({"r": 10**15}, "query.a is"),
        ({"r": "2"}, "option r is '2', which is of another type"),
        ({"r": True}, "option r is True"),
        ({"alpha": None}, "option alpha is None"),
        ({"alpha": float("inf")}, "alpha must be a number above 0, got inf"),
        ({"targets": "query"}, "option targets is 'query'"),
        ({"targets": [3]}, r"option targets is \[3\]"),
        ({"targets": []}, "has no target"),
        ({"ranks": {"query": "2"}}, "option ranks is"),
        ({"ranks": [["query", 2]]}, "option ranks is"),
        ({"rank_stabilised": 1}, "option rank_stabilised is 1"),
        ({"dropout": 2}, r"dropout must be in \[0, 1\), got 2"),
        ({"use_rslora": True}, "option 'use_rslora' is unknown; there are: r, alpha, targets"),
        ({"state": {}}, "option 'state' is unknown"),
    ],
)
def test_options_of_another_kind_are_refused(method, change, sentence):
    decoder = random_decoder(STYLES["Llama"])
    first = method(decoder, r=2)
    with pytest.raises(InputError, match=sentence):
        method.from_state(decoder, first.options() | change, first.state())


def test_a_missing_option_is_not_guessed():
    decoder = random_decoder(STYLES["Llama"])
    first = LoRA(decoder, r=2, alpha=4)
    options = first.options()
    del options["alpha"]
    with pytest.raises(InputError, match="option 'alpha' is missing"):
        LoRA.from_state(decoder, options, first.state())


@pytest.mark.parametrize("method", METHODS)
def test_taking_the_update_off_again_gives_the_base_bit_for_bit(method):
    decoder = random_decoder(STYLES["GPT-2"])
    adapted = moved(method(decoder, r=2, alpha=3, **OPTIONS))
    base = unadapted(adapted.decoder)
    assert torch.equal(base(IDS), decoder(IDS))
    assert base.head.weight is base.embed.weight
    names = dict(decoder.named_parameters(remove_duplicate=False))
    for name, parameter in base.named_parameters(remove_duplicate=False):
        assert parameter.data_ptr() == names[name].data_ptr(), "it is the base's own memory"
        assert not parameter.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_a_method_can_be_cast_after_it_was_made(method):
    decoder = random_decoder(STYLES["Llama"]).float()
    adapted = moved(method(decoder, r=2))
    wide = adapted(IDS)
    adapted.double()
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.float64}
    assert (adapted(IDS) - wide).abs().max() < 1e-3
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}
