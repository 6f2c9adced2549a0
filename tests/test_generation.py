"""Generation says what the full forward pass says, one token at a time."""

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
def test_greedy_decoding_with_a_cache_takes_the_tokens_of_the_full_forward(style):
    decoder = random_decoder(STYLES[style])
    ids = generate(decoder, torch.tensor([PROMPTS[0]]), max_new_tokens=9)
    assert ids[0].tolist() == without_a_cache(decoder, PROMPTS[0], 9)


@pytest.mark.parametrize("style", STYLES)
def test_prompts_of_unequal_length_go_on_together_as_they_would_alone(style):
    decoder = random_decoder(STYLES[style])
    ids, mask = pad_left(PROMPTS)
    together = generate(decoder, ids, max_new_tokens=7, mask=mask)
    for row, kept, prompt in zip(together, mask, PROMPTS, strict=True):
        assert [*row[:5][kept].tolist(), *row[5:].tolist()] == without_a_cache(decoder, prompt, 7)


@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_kept_as_keys_and_values_is_continued_like_one_that_is_read(style):
    decoder = random_decoder(STYLES[style])
    method = adapt.InContext(decoder, torch.tensor([[7, 8, 9]]))
    ids, mask = pad_left(PROMPTS)
    behind_prompt = generate(method, ids, max_new_tokens=5, mask=mask)[:, -5:]
    for row, prompt in zip(behind_prompt, PROMPTS, strict=True):
        assert row.tolist() == without_a_cache(decoder, [7, 8, 9, *prompt], 5)[-5:]


def test_streaming_yields_what_generating_returns():
    decoder = random_decoder(STYLES["Llama"])
    ids = torch.tensor([[3, 1, 4]])
    options = {"max_new_tokens": 8, "temperature": 1.3, "top_k": 5, "seed": 4}
    assert [token.item() for token in stream(decoder, ids, **options)] == generate(decoder, ids, **options)[
        0, 3:
    ].tolist()


def test_the_same_seed_draws_the_same_text_and_another_seed_another():
    decoder = random_decoder(STYLES["Llama"])
    drawn = [
        generate(decoder, torch.tensor([[3, 1]]), max_new_tokens=12, temperature=2.0, seed=seed).tolist()
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_row_that_has_met_a_stop_token_repeats_it_while_the_others_go_on():
    decoder = random_decoder(STYLES["Llama"])
    ids, mask = pad_left(PROMPTS)
    free = generate(decoder, ids, max_new_tokens=8, mask=mask)[:, 5:]
    stop = free[0, 2].item()
    stopped = generate(decoder, ids, max_new_tokens=8, mask=mask, stop=[stop])[:, 5:]
    for with_stop, without in zip(stopped.tolist(), free.tolist(), strict=True):
        end = without.index(stop) + 1 if stop in without else len(without)
        expected = without[:end] + [stop] * (8 - end)
        assert with_stop == expected[: len(with_stop)]
    assert generate(decoder, ids[:1], max_new_tokens=8, stop=[stop]).shape[1] < 13, "it ends when every row has ended"


def test_generating_switches_dropout_off_and_leaves_the_mode_as_it_was():
    config = STYLES["Llama"].__class__(**{**STYLES["Llama"].__dict__, "dropout": 0.5})
    decoder = Decoder(config).train()
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
def test_top_k_keeps_the_likeliest_and_temperature_divides_the_logits(logits, k, temperature):
    logits = torch.tensor([logits], dtype=torch.float64)
    kept = next_token_distribution(logits, temperature, k, None)[0]
    best = logits[0].topk(min(k, logits.shape[1])).indices
    assert set(kept.nonzero()[:, 0].tolist()) == set(best.tolist())
    expected = np.exp(logits[0, best].numpy() / temperature)
    assert np.allclose(kept[best].numpy(), expected / expected.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"max_new_tokens": 99}, "exceed the context length 17"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature"),
        ({"max_new_tokens": 1, "top_k": 0}, "top_k"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p"),
    ],
)
def test_options_that_cannot_work_are_refused_in_a_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        generate(random_decoder(STYLES["Llama"]), torch.tensor([[1, 2]]), **options)


def test_an_empty_prompt_is_refused_in_a_sentence():
    with pytest.raises(InputError, match="the prompt has no tokens"):
        generate(random_decoder(STYLES["Llama"]), torch.zeros(1, 0, dtype=torch.long), max_new_tokens=1)
