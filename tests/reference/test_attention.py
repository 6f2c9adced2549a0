"""Attention in numpy: its masks, written out."""

import numpy as np
from hypothesis import given

from minillm.reference.attention import visible_keys
from tests.strategies import cases


def test_a_token_attends_to_earlier_tokens_and_itself():
    assert np.array_equal(visible_keys(3, 3)[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_new_tokens_attend_to_all_cached_ones():
    assert np.array_equal(visible_keys(2, 5)[0, 0], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


def test_padding_is_visible_only_to_itself():
    mask = np.array([[False, True, True, False]])
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert np.array_equal(visible_keys(4, 4, mask)[0, 0], expected)


@given(cases("attention"))
def test_the_first_query_does_not_depend_on_masked_keys(case):
    before, _ = case.forward(case.inputs)
    queries, keys = case.inputs["query"].shape[2], case.inputs["key"].shape[2]
    masked_BS = ~visible_keys(queries, keys, case.inputs.get("mask"))[:, 0, 0]
    for side in ("key", "value"):
        case.inputs[side] += 7.0 * masked_BS[:, None, :, None]
    after, _ = case.forward(case.inputs)
    assert np.array_equal(before[:, :, 0], after[:, :, 0])
