"""Packing: full rows, and the losses and gradients of rows that are not packed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.data.conversations import EncodedConversation
from minillm.data.packing import first_fit_decreasing, pack
from minillm.prompting.scoring import log_likelihoods
from tests.laws import CASES, EVERYWHERE, RELATIVES, base_of, build
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

methods = st.sampled_from(sorted(set(CASES) - {"frozen head"}))
rows_of_tokens = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5), min_size=1, max_size=5)
conversations = st.builds(
    lambda ids, count: EncodedConversation(ids, [place >= len(ids) - count for place in range(len(ids))]),
    st.lists(st.integers(0, 12), min_size=4, max_size=6), st.integers(1, 3),
)  # fmt: skip


def test_three_rows_in_two():
    ids, mask, places = pack([[5, 6], [8, 9, 3], [7, 7, 7]], capacity=5)
    assert ids.tolist() == [[8, 9, 3, 5, 6], [7, 7, 7, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 0, 0]]
    assert places == [(0, 3), (0, 0), (1, 0)]


@given(rows_of_tokens, st.integers(1, 12))
def test_every_row_is_at_its_place(rows, capacity):
    ids, mask, places = pack(rows, capacity)
    for row, (place, start) in zip(rows, places, strict=True):
        assert ids[place, start : start + len(row)].tolist() == row
        assert len(set(mask[place, start : start + len(row)].tolist())) == 1
    assert (mask > 0).sum() == sum(map(len, rows))


def test_packed_rows_are_filled_with_the_longest_first():
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]
    assert first_fit_decreasing([3, 12, 3], 7) == [[1], [0, 2]], "a longer one stays alone"


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 40))
def test_every_row_is_packed_once_and_at_most_one_packed_row_is_half_empty(lengths, capacity):
    groups = first_fit_decreasing(lengths, capacity)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in group) for group in groups]
    assert all(total <= capacity or len(group) == 1 for total, group in zip(filled, groups, strict=True))
    assert sum(2 * total <= capacity for total in filled) <= 1


@given(methods, st.sampled_from((*EVERYWHERE, *RELATIVES)), st.lists(conversations, min_size=1, max_size=4))
def test_packed_rows_have_the_losses_and_the_gradients_of_plain_ones(name, style, rows):
    method = build(name, base_of(style))
    trained = list(method.trainable().values())

    def losses_and_gradients(capacity):
        losses = log_likelihoods(method, rows, capacity)
        return [losses, *(torch.autograd.grad(losses.sum(), trained) if trained else ())]

    for packed, plain in zip(losses_and_gradients(13), losses_and_gradients(None), strict=True):
        assert_close(packed, plain, "law", terms=20)
