"""Prefix tuning: every initialisation can be trained, and keys and values alone are saved."""

from dataclasses import replace

import pytest
import torch

from minillm import InputError
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
    """Optimizer steps, with an evaluation before each; yields the gradients and the evaluated logits of each."""
    optimizer = torch.optim.AdamW(method.trainable().values(), lr=0.01, weight_decay=0.0)
    for _ in range(count):
        with torch.no_grad():
            seen = method(ROWS)
        optimizer.zero_grad()
        (method(ROWS) - 1).square().sum().backward()
        yield {name: parameter.grad.clone() for name, parameter in method.trainable().items()}, seen
        optimizer.step()


@every_way
def test_everything_has_a_gradient_by_the_second_step_and_no_evaluation_is_cached(way):
    decoder = random_decoder(STYLES["Llama"])
    before = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    method = PrefixTuning(decoder, 3, **WAYS[way])
    (_, first), (gradients, second), (_, third) = steps(method, 3)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert all(torch.equal(parameter, before[name]) for name, parameter in decoder.named_parameters())


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
    assert not torch.equal(again(ROWS), method(ROWS)), "the two share no memory"


@pytest.mark.parametrize("hidden", [None, 3, 7])
@pytest.mark.parametrize("style", [name for name, config in STYLES.items() if config.window is None])
def test_initialised_from_tokens_it_equals_the_hard_prompt(style, hidden):
    decoder = random_decoder(STYLES[style])
    hard = InContext(decoder, torch.tensor([[3, 1, 12, 3, 1]] if hidden != 3 else [WORDS]))
    method = PrefixTuning(decoder, 3 if hidden == 3 else 5, init=WORDS, hidden=hidden)
    assert_close(method(ROWS), hard(ROWS), "law")


@pytest.mark.parametrize("init", ["random", WORDS])
@pytest.mark.parametrize("hidden", [None, 7])
def test_a_gated_prefix_starts_as_the_base_bit_for_bit(hidden, init):
    decoder = random_decoder(STYLES["Llama"])
    assert torch.equal(PrefixTuning(decoder, 3, init=init, gated=True, hidden=hidden)(ROWS), decoder(ROWS))


def test_the_texts_positions_start_after_the_prefix_or_at_zero():
    """With learned positions, the rows of the table that are used get a gradient."""
    decoder = random_decoder(STYLES["GPT-2"])
    for ways, first in (({}, 3), ({"shift_positions": False}, 0), ({"gated": True}, 0)):
        method = PrefixTuning(decoder, 3, **ways)
        table = method.decoder.positions.weight.requires_grad_()
        method(ROWS).square().sum().backward()
        assert table.grad.any(-1).nonzero()[:, 0].tolist() == list(range(first, first + 5))
    shifted = PrefixTuning(decoder, 3, gated=True, shift_positions=True)
    assert (shifted(ROWS) - decoder(ROWS)).abs().max() > 1e-3


def test_a_random_start_has_the_standard_deviation_of_keys_and_values_of_tokens_in_every_layer():
    decoder = random_decoder(STYLES["GPT-2"])
    with torch.no_grad():  # large keys in one layer, keys with an offset in the other
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
    assert_close(by_mlp["keys"], method.keys, "numpy", "the first output of the MLP")


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


def test_dropout_is_off_in_the_initialisation_and_the_decoders_mode_is_unchanged():
    decoder = random_decoder(replace(STYLES["Llama"], dropout=0.5))
    expected = PrefixTuning(decoder, 3, WORDS).state()["keys"]
    decoder.train()
    method = PrefixTuning(decoder, 3, WORDS)
    assert torch.equal(method.state()["keys"], expected)
    assert decoder.training
    assert method.decoder.training


@pytest.mark.parametrize("shift", [True, False])
def test_prefix_and_text_must_fit_the_context(shift):
    with pytest.raises(InputError, match="13 prompt positions and 5 tokens exceed this decoder's context of 17"):
        PrefixTuning(random_decoder(STYLES["Llama"]), 13, "zero", shift_positions=shift)(ROWS)
