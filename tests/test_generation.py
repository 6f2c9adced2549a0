"""Generation with a cache equals the full forward pass; sampling; stop tokens; validation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError, adapt, generate, stream
from minillm.data.batches import pad_left
from minillm.decoder import Decoder
from minillm.generation import next_token_distribution
from tests.decoders import STYLES, random_decoder

PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]


def without_a_cache(model, row, count):
    for _ in range(count):
        row = [*row, model(torch.tensor([row]))[0, -1].argmax().item()]
    return row


@pytest.mark.parametrize("style", STYLES)
def test_greedy_decoding_of_a_padded_batch_equals_the_full_forward_of_each_row(style):
    decoder = random_decoder(STYLES[style])
    method = adapt.InContext(decoder, torch.tensor([[7, 8, 9]]))
    ids, mask = pad_left(PROMPTS)
    batch, after_prefix = (generate(model, ids, max_new_tokens=7, mask=mask)[:, 5:] for model in (decoder, method))
    for row, prefixed, prompt in zip(batch, after_prefix, PROMPTS, strict=True):
        assert row.tolist() == without_a_cache(decoder, prompt, 7)[-7:]
        assert prefixed.tolist() == without_a_cache(decoder, [7, 8, 9, *prompt], 7)[-7:]
    alone = generate(decoder, torch.tensor([PROMPTS[0]]), max_new_tokens=9)
    assert alone[0].tolist() == without_a_cache(decoder, PROMPTS[0], 9)


def test_sampling_is_seeded_and_streaming_yields_the_same_tokens():
    decoder, ids = random_decoder(STYLES["Llama"]), torch.tensor([[3, 1, 4]])
    options = {"max_new_tokens": 12, "temperature": 2.0, "top_k": 9}
    first, again, other = (generate(decoder, ids, seed=seed, **options)[0, 3:].tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert [token.item() for token in stream(decoder, ids, seed=0, **options)] == first


def test_a_finished_row_repeats_its_stop_token_until_all_rows_have_ended():
    decoder = random_decoder(STYLES["Llama"])
    ids, mask = pad_left(PROMPTS)
    free = generate(decoder, ids, max_new_tokens=8, mask=mask)[:, 5:]
    stop = free[0, 2].item()
    stopped = generate(decoder, ids, max_new_tokens=8, mask=mask, stop=[stop])[:, 5:]
    for with_stop, without in zip(stopped.tolist(), free.tolist(), strict=True):
        end = without.index(stop) + 1 if stop in without else len(without)
        expected = without[:end] + [stop] * (8 - end)
        assert with_stop == expected[: len(with_stop)]
    assert generate(decoder, ids[:1], max_new_tokens=8, stop=[stop]).shape[1] < 13


def test_generation_disables_dropout_and_restores_the_mode():
    decoder = Decoder(replace(STYLES["Llama"], dropout=0.5)).train()
    first, second = (generate(decoder, torch.tensor([[1, 2]]), max_new_tokens=9) for _ in range(2))
    assert torch.equal(first, second)
    assert decoder.training


probabilities = st.lists(st.floats(-4, 4), min_size=2, max_size=9, unique=True)


@given(probabilities, st.floats(0.05, 1))
def test_top_p_keeps_the_fewest_tokens_that_hold_p(logits, p):
    logits = torch.tensor([logits], dtype=torch.float64)
    full, kept = next_token_distribution(logits, 1.0, None, None)[0], next_token_distribution(logits, 1.0, None, p)[0]
    held = full[kept > 0]
    assert held.sum() >= p - 1e-12
    assert held.sum() - held.min() < p + 1e-12, "one token fewer would not hold it"
    assert held.min() >= full[kept == 0].max() if (kept == 0).any() else True
    assert torch.allclose(kept[kept > 0], held / held.sum(), rtol=1e-12)


@given(probabilities, st.integers(1, 12), st.floats(0.2, 3))
def test_top_k_keeps_the_most_likely_and_temperature_divides_the_logits(logits, k, temperature):
    logits = torch.tensor([logits], dtype=torch.float64)
    kept = next_token_distribution(logits, temperature, k, None)[0]
    best = logits[0].topk(min(k, logits.shape[1])).indices
    assert set(kept.nonzero()[:, 0].tolist()) == set(best.tolist())
    expected = np.exp(logits[0, best].numpy() / temperature)
    assert np.allclose(kept[best].numpy(), expected / expected.sum(), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1e-4, 1e-38, 1e-40, 1e-320])
@pytest.mark.parametrize(("k", "p"), [(None, None), (2, None), (None, 0.5)])
def test_a_tiny_temperature_is_greedy(dtype, temperature, k, p):
    logits = torch.tensor([[-100.0, 90.0, 100.0, 3.0]], dtype=dtype)
    found = next_token_distribution(logits, temperature, k, p)
    assert found.float().tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"max_new_tokens": 99}, "exceed the context length 17"),
        *(({"max_new_tokens": 1, "temperature": wrong}, "temperature") for wrong in (-1.0, math.nan, math.inf)),
        ({"max_new_tokens": 1, "top_k": 0}, "top_k"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p"),
    ],
)
def test_invalid_options_and_an_empty_prompt_are_refused(options, message):
    decoder = random_decoder(STYLES["Llama"])
    with pytest.raises(InputError, match=message):
        generate(decoder, torch.tensor([[1, 2]]), **options)
    with pytest.raises(InputError, match="the prompt has no tokens"):
        generate(decoder, torch.zeros(1, 0, dtype=torch.long), max_new_tokens=1)


@pytest.mark.parametrize("method", [adapt.PrefixTuning, adapt.SoftPrompt])
def test_a_prefix_counts_before_the_first_token(method):
    method, ids = method(random_decoder(STYLES["Llama"]), 3), torch.tensor([[3, 1, 4]])
    with pytest.raises(InputError, match=r"prefix \(3\), prompt \(3\) and max_new_tokens \(12\) exceed .* 17"):
        stream(method, ids, max_new_tokens=12)
    assert len(list(stream(method, ids, max_new_tokens=11))) == 11
