"""Padding and length buckets lose no row and do not change the logits."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.data.batches import generation_batches, length_buckets, pad_left, pad_right
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

rows = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=7), min_size=1, max_size=5)


@given(rows)
def test_padding_keeps_every_token(rows):
    ids, mask = pad_left(rows)
    assert [row[real].tolist() for row, real in zip(ids, mask, strict=True)] == rows
    assert mask[:, -1].all()
    ids, last = pad_right(rows)
    assert [row[: end + 1].tolist() for row, end in zip(ids, last, strict=True)] == rows


@pytest.mark.parametrize("style", STYLES)
def test_a_row_has_the_same_logits_alone_padded_left_and_padded_right(style):
    decoder = random_decoder(STYLES[style])
    rows = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    right, last = pad_right(rows)
    padded_right = decoder(right)[torch.arange(3), last]
    left, mask = pad_left(rows)
    padded_left = decoder(left, mask=mask)[:, -1]
    for index, row in enumerate(rows):
        alone = decoder(torch.tensor([row]))[0, -1]
        assert_close(padded_right[index], alone, "law")
        assert_close(padded_left[index], alone, "law")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 7), st.booleans())
def test_buckets_contain_every_row_once_with_rows_of_similar_length(lengths, size, shuffled):
    batches = length_buckets(lengths, size, random.Random(0) if shuffled else None)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    spans = sorted((min(lengths[i] for i in batch), max(lengths[i] for i in batch)) for batch in batches)
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))
    assert all(len(batch) <= size for batch in batches)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=30), st.integers(1, 7))
def test_the_longest_prompt_and_answer_of_a_batch_fit_together_if_each_row_fits(lengths, size):
    prompts, answers = zip(*lengths, strict=True)
    room = max(prompt + answer for prompt, answer in lengths)
    batches = generation_batches(prompts, answers, size, room)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(b) <= size and max(prompts[n] for n in b) + max(answers[n] for n in b) <= room for b in batches)
    assert generation_batches(prompts, answers, size, 40) == length_buckets(prompts, size)


def test_an_empty_row_is_refused():
    with pytest.raises(InputError, match="at least one token"):
        pad_left([[1], []])
