"""Prefix tuning: keys and values that learn from every start, and what is kept of them."""

from dataclasses import replace

import pytest
import torch

from minillm import Decoder, DecoderConfig, InputError
from minillm.adapt import InContext
from minillm.adapt.prefix_tuning import PrefixTuning
from minillm.adapt.surgery import frozen
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

ROWS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2], [9, 9, 1, 0, 3]])
WORDS = [3, 1, 12]
WAYS = {
    "random": {"init": "random"},
    "zero": {"init": "zero"},
    "words": {"init": WORDS},
    "random, gated": {"init": "random", "gated": True},
    "words, gated": {"init": WORDS, "gated": True},
    "random, MLP": {"init": "random", "hidden": 7},
    "zero, MLP": {"init": "zero", "hidden": 7},
    "words, MLP": {"init": WORDS, "hidden": 7},
    "words, gated, MLP": {"init": WORDS, "hidden": 7, "gated": True},
    "words, text from 0": {"init": WORDS, "shift_positions": False},
}
every_way = pytest.mark.parametrize("way", WAYS)


def steps(method, count):
    """Optimizer steps, with an evaluation before each; yields the gradients of each step and what was evaluated."""
    optimizer = torch.optim.AdamW(method.trainable().values(), lr=0.01, weight_decay=0.0)
    for _ in range(count):
        with torch.no_grad():
            seen = method(ROWS)
        optimizer.zero_grad()
        (method(ROWS) - 1).square().sum().backward()
        yield {name: parameter.grad.clone() for name, parameter in method.trainable().items()}, seen
        optimizer.step()


@pytest.mark.parametrize("style", STYLES)
@every_way
def test_everything_has_a_gradient_by_the_second_step_and_has_moved_by_the_third(style, way):
    method = PrefixTuning(random_decoder(STYLES[style]), 3, **WAYS[way])
    start = {name: parameter.detach().clone() for name, parameter in method.trainable().items()}
    _, (second, _), _ = steps(method, 3)
    for name, parameter in method.trainable().items():
        assert second[name].abs().max() > 0, f"{name} has no gradient"
        assert not torch.equal(parameter, start[name]), f"{name} has not moved"


@every_way
def test_what_an_evaluation_has_seen_is_not_kept_for_the_next(way):
    method = PrefixTuning(random_decoder(STYLES["Llama"]), 3, **WAYS[way])
    (_, first), (_, second), (_, third) = steps(method, 3)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@every_way
def test_a_step_leaves_the_base_as_it_was_bit_for_bit(way):
    decoder = random_decoder(STYLES["Llama"])
    before = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    list(steps(PrefixTuning(decoder, 3, **WAYS[way]), 3))
    assert all(torch.equal(parameter, before[name]) for name, parameter in decoder.named_parameters())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in decoder.parameters())


@pytest.mark.parametrize("style", STYLES)
@every_way
def test_from_its_state_it_is_the_same_bit_for_bit_and_without_the_mlp(style, way):
    decoder = random_decoder(STYLES[style])
    method = PrefixTuning(decoder, 3, **WAYS[way])
    list(steps(method, 2))
    gate = ["gate"] if "gated" in way else []
    assert list(method.state()) == ["keys", "values", *gate]
    assert not any(tensor.requires_grad for tensor in method.state().values())
    drawn = torch.get_rng_state()
    again = PrefixTuning.from_state(decoder, method.options(), method.state())
    assert torch.equal(torch.get_rng_state(), drawn), "loading draws no random numbers"
    assert torch.equal(again(ROWS), method(ROWS))
    assert set(again.trainable()) == {"keys", "values", *gate}
    assert again.options() == {**method.options(), "hidden": None}
    list(steps(again, 1))
    assert not torch.equal(again(ROWS), method(ROWS)), "it can be trained on, and the two are not one"


@pytest.mark.parametrize("hidden", [None, 3, 7])
@pytest.mark.parametrize("style", STYLES)
def test_started_from_words_it_is_the_hard_prompt(style, hidden):
    decoder = random_decoder(STYLES[style])
    hard = InContext(decoder, torch.tensor([[3, 1, 12, 3, 1]] if hidden != 3 else [WORDS]))
    method = PrefixTuning(decoder, 3 if hidden == 3 else 5, init=WORDS, hidden=hidden)
    assert_close(method(ROWS), hard(ROWS), "law")


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("style", STYLES)
def test_a_gated_prefix_starts_as_the_base_bit_for_bit_and_then_leaves_it(style, hidden):
    decoder = random_decoder(STYLES[style])
    for init in ("random", WORDS):
        method = PrefixTuning(decoder, 3, init=init, gated=True, hidden=hidden)
        assert torch.equal(method(ROWS), decoder(ROWS))
        list(steps(method, 2))
        assert (method(ROWS) - decoder(ROWS)).abs().max() > 1e-3


def test_a_zero_prefix_is_not_a_no_op():
    """Keys of 0 score 0, and e^0 is a share of the softmax like any other."""
    decoder = random_decoder(STYLES["Llama"])
    method = PrefixTuning(decoder, 3, init="zero", shift_positions=False)
    assert not any(tensor.any() for tensor in method.state().values())
    assert (method(ROWS) - decoder(ROWS)).abs().max() > 1e-3


def test_the_texts_positions_count_on_from_the_prefix_or_from_zero():
    """Learned positions show it: the rows of the table that are read are those that get a gradient."""
    decoder = random_decoder(STYLES["GPT-2"])
    for ways, first in (({}, 3), ({"shift_positions": False}, 0), ({"gated": True}, 0)):
        method = PrefixTuning(decoder, 3, **ways)
        table = method.decoder.positions.weight.requires_grad_()
        method(ROWS).square().sum().backward()
        assert table.grad.any(-1).nonzero()[:, 0].tolist() == list(range(first, first + 5))
    shifted = PrefixTuning(decoder, 3, gated=True, shift_positions=True)
    assert (shifted(ROWS) - decoder(ROWS)).abs().max() > 1e-3


def test_a_random_start_is_spread_in_every_layer_as_the_keys_and_values_of_words_are():
    decoder = random_decoder(STYLES["GPT-2"])
    with torch.no_grad():  # one layer's keys are large, the other's stand off zero
        decoder.blocks[0].attention.key.weight *= 20
        decoder.blocks[1].attention.key.bias += 5
    torch.manual_seed(0)
    method = PrefixTuning(decoder, 13)
    words = decoder.keys_values(torch.randint(13, (61, 13)))
    for drawn, real in ((method.keys, words.keys), (method.values, words.values)):
        for layer in range(2):
            assert 0.8 < drawn[layer].std() / real[layer].std() < 1.25
            assert (drawn[layer].mean() - real[layer].mean()).abs() < 0.2 * real[layer].std()
    torch.manual_seed(0)
    by_mlp = PrefixTuning(decoder, 13, hidden=17).state()
    assert_close(by_mlp["keys"], method.keys, "numpy", "what the MLP writes at first")


def test_the_mlp_runs_on_one_row_in_full_precision_under_autocast_too():
    method = PrefixTuning(random_decoder(STYLES["Llama"]).float(), 3, hidden=7)
    with torch.autocast("cpu", torch.bfloat16):
        prefix = method.prefix()
    assert prefix.keys.shape == (2, 1, 1, 3, 10)
    assert torch.equal(prefix.keys[:, 0], method.state()["keys"])


@every_way
def test_half_precision_weights_leave_what_is_trained_in_float32(way):
    decoder = random_decoder(STYLES["Llama"]).float()
    method = PrefixTuning(frozen(decoder, torch.bfloat16), 3, **WAYS[way])
    assert {tensor.dtype for tensor in method.trainable().values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        method(ROWS).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in method.trainable().values())
    whole = PrefixTuning(random_decoder(STYLES["Llama"]).bfloat16(), 3, **WAYS[way])
    assert whole(ROWS).dtype == torch.bfloat16


def test_dropout_is_off_while_words_are_read_and_the_decoders_mode_is_kept():
    decoder = random_decoder(replace(STYLES["Llama"], dropout=0.5))
    expected = PrefixTuning(decoder, 3, WORDS).state()["keys"]
    decoder.train()
    method = PrefixTuning(decoder, 3, WORDS)
    assert torch.equal(method.state()["keys"], expected)
    assert decoder.training
    assert method.decoder.training


def test_it_is_counted_as_the_paper_counts():
    with torch.device("meta"):
        medium = Decoder(DecoderConfig.gpt2("medium"))
        by_mlp = PrefixTuning(medium, 5, hidden=512)
        stored = [PrefixTuning(medium, length, hidden=512).state() for length in (5, 10)]
        direct = PrefixTuning(Decoder(DecoderConfig.llama("smollm2-135m")), 10)
    assert sum(parameter.numel() for parameter in by_mlp.trainable().values()) == 25_744_896
    assert [sum(tensor.numel() for tensor in state.values()) for state in stored] == [245_760, 491_520]
    assert {name: tuple(p.shape) for name, p in direct.trainable().items()} == dict.fromkeys(
        ("keys", "values"), (30, 3, 10, 64)
    )


def test_what_could_not_be_read_or_never_learn_is_refused_with_a_sentence():
    decoder = random_decoder(STYLES["Llama"])
    with pytest.raises(InputError, match=r"a prompt of 17 positions does not fit .* from 1 to 16"):
        PrefixTuning(decoder, 17)
    for shift in (True, False):
        with pytest.raises(InputError, match="13 prompt positions and 5 tokens exceed this decoder's context of 17"):
            PrefixTuning(decoder, 13, "zero", shift_positions=shift)(ROWS)
    with pytest.raises(InputError, match="'words' is unknown; it can be random, zero or a list of token ids"):
        PrefixTuning(decoder, 3, init="words")
    for start in ({"length": 1}, {"length": 3, "init": "zero"}):
        with pytest.raises(InputError, match="a gated prefix learns from two positions on, and not from zeros"):
            PrefixTuning(decoder, gated=True, **start)
    with pytest.raises(InputError, match="an MLP of 2 units cannot write 3 positions"):
        PrefixTuning(decoder, 3, hidden=2)
