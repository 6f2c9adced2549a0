"""Attention in numpy: its masks are those that the eye sees."""

import numpy as np
from hypothesis import given

from minillm.reference.attention import visible_keys
from tests.strategies import cases


def test_a_token_sees_the_tokens_before_it_and_itself():
    assert np.array_equal(visible_keys(3, 3)[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_new_tokens_see_all_cached_ones():
    assert np.array_equal(visible_keys(2, 5)[0, 0], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


def test_padding_is_seen_by_itself_alone():
    mask = np.array([[False, True, True, False]])
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert np.array_equal(visible_keys(4, 4, mask)[0, 0], expected)


@given(cases("attention"))
def test_the_first_query_is_not_moved_by_what_it_does_not_see(case):
    before, _ = case.forward(case.inputs)
    queries, keys = case.inputs["query"].shape[2], case.inputs["key"].shape[2]
    unseen_BS = ~visible_keys(queries, keys, case.inputs.get("mask"))[:, 0, 0]
    for side in ("key", "value"):
        case.inputs[side] += 7.0 * unseen_BS[:, None, :, None]
    after, _ = case.forward(case.inputs)
    assert np.array_equal(before[:, :, 0], after[:, :, 0])
