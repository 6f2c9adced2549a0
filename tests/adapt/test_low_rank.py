"""What LoRA, DoRA and PiSSA share: options and state define the method, and other options or states are refused."""

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
QUERY = "blocks.0.attention.query"
OPTIONS = {
    "targets": ("query", "feed_forward.*", "head"), "ranks": {"blocks.0.*": 3}, "alphas": {"up": 5},
    "rank_stabilised": True, "dropout": 0.1, "train_bias": True,
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("style", STYLES)
def test_options_and_state_are_the_method_bit_for_bit(method, style):
    decoder = random_decoder(STYLES[style])
    options = OPTIONS | {"train_bias": bool(STYLES[style].bias)}
    first = moved(method(decoder, r=2, alpha=3, **options))
    saved, state = json.loads(json.dumps(first.options())), {name: t.clone() for name, t in first.state().items()}
    assert saved == {"r": 2, "alpha": 3, **options, "targets": list(options["targets"])}
    fresh, random_before = random_decoder(STYLES[style]), torch.get_rng_state()
    again = method.from_state(fresh, saved, state).eval()
    assert torch.equal(torch.get_rng_state(), random_before), "no random numbers are drawn"
    assert torch.equal(again(IDS), first.eval()(IDS))
    assert again.options() == first.options() == saved
    assert list(again.state()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state().items())
    moved(again, seed=1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.state().items()), "the two share no memory"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda state: state.pop("blocks.1.attention.value.b"), "has no tensor blocks.1.attention.value.b"),
        (lambda state: state.update({"embed.a": torch.ones(2, 30)}), r"unexpected tensor embed\.a"),
        (lambda state: state.update({f"{QUERY}.a": torch.ones(3, 30)}), r"query.a must be .* got \(3, 30\)"),
        (lambda state: state.update({f"{QUERY}.a": torch.ones(60)}), r"query.a must be .* got \(60,\)"),
        (lambda state: state.update({f"{QUERY}.a": state[f"{QUERY}.a"].int()}), "got .*, torch.int32"),
    ],
)
def test_a_state_with_a_missing_unexpected_or_misshapen_tensor_is_refused(method, break_it, sentence):
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
        ({"r": 3}, "query.a must be"),
        ({"r": 10**15}, "query.a must be"),
        ({"r": "2"}, "option r has the wrong type: '2'"),
        ({"r": True}, "option r has the wrong type: True"),
        ({"alpha": None}, "option alpha has the wrong type: None"),
        ({"alpha": float("inf")}, "alpha must be a number above 0, got inf"),
        ({"targets": "query"}, "option targets has the wrong type"),
        ({"targets": [3]}, r"option targets has the wrong type: \[3\]"),
        ({"targets": []}, "needs at least one target"),
        ({"ranks": {"query": "2"}}, "option ranks has the wrong type"),
        ({"ranks": [["query", 2]]}, "option ranks has the wrong type"),
        ({"rank_stabilised": 1}, "option rank_stabilised has the wrong type: 1"),
        ({"dropout": 2}, r"dropout must be in \[0, 1\), got 2"),
        ({"use_rslora": True}, "option 'use_rslora' is unknown; the options are: r, alpha, targets"),
        ({"state": {}}, "option 'state' is unknown"),
        ({"alpha": ...}, "option 'alpha' is missing"),
    ],
)
def test_options_that_are_missing_unknown_or_of_another_type_are_refused(method, change, sentence):
    decoder = random_decoder(STYLES["Llama"])
    first = method(decoder, r=2)
    options = {name: value for name, value in (first.options() | change).items() if value is not ...}
    with pytest.raises(InputError, match=sentence):
        method.from_state(decoder, options, first.state())


@pytest.mark.parametrize("method", METHODS)
def test_the_unadapted_body_is_the_base_bit_for_bit(method):
    decoder = random_decoder(STYLES["GPT-2"])
    adapted = moved(method(decoder, r=2, alpha=3, **OPTIONS))
    base = unadapted(adapted.decoder)
    assert torch.equal(base(IDS), decoder(IDS))
    assert base.head.weight is base.embed.weight
    names = dict(decoder.named_parameters(remove_duplicate=False))
    for name, parameter in base.named_parameters(remove_duplicate=False):
        assert parameter.data_ptr() == names[name].data_ptr(), "the memory is the base's"
        assert not parameter.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_a_method_can_be_cast(method):
    decoder = random_decoder(STYLES["Llama"]).float()
    adapted = moved(method(decoder, r=2))
    wide = adapted(IDS)
    adapted.double()
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.float64}
    assert (adapted(IDS) - wide).abs().max() < 1e-3
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}
