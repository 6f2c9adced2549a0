"""Attention in numpy: its slopes are those of differences, and its masks are those that the eye sees."""

import numpy as np
from hypothesis import given

from minillm.reference.attention import (
    Prefix,
    attention_backward,
    attention_forward,
    attention_weights_backward,
    attention_weights_forward,
    visible_keys,
)
from tests.rungs import check_gradient_by_differences
from tests.strategies import attention_cases


@given(attention_cases())
def test_attentions_gradients_are_its_slopes(case):
    prefix = case.prefix and Prefix(*case.prefix)
    inputs = case.arrays | {"mask": case.mask, "prefix": prefix}
    check_gradient_by_differences(attention_forward, attention_backward, inputs, case.random)


@given(attention_cases())
def test_the_weights_gradients_are_their_slopes(case):
    query, key = case.arrays["query"], case.arrays["key"]
    inputs = {"query": query, "key": key, "visible": visible_keys(query.shape[2], key.shape[2], case.mask)}
    check_gradient_by_differences(attention_weights_forward, attention_weights_backward, inputs, case.random)


def test_a_token_sees_the_tokens_before_it_and_itself():
    assert np.array_equal(visible_keys(3, 3)[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_new_tokens_see_all_cached_ones():
    assert np.array_equal(visible_keys(2, 5)[0, 0], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


def test_padding_is_seen_by_itself_alone():
    mask = np.array([[False, True, True, False]])
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert np.array_equal(visible_keys(4, 4, mask)[0, 0], expected)


@given(attention_cases())
def test_the_first_query_is_not_moved_by_what_it_does_not_see(case):
    prefix = case.prefix and Prefix(*case.prefix)
    before, _ = attention_forward(**case.arrays, mask=case.mask, prefix=prefix)
    queries, keys = case.arrays["query"].shape[2], case.arrays["key"].shape[2]
    unseen_BS = ~visible_keys(queries, keys, case.mask)[:, 0, 0]
    for side in ("key", "value"):
        case.arrays[side] += 7.0 * unseen_BS[:, None, :, None]
    after, _ = attention_forward(**case.arrays, mask=case.mask, prefix=prefix)
    assert np.array_equal(before[:, :, 0], after[:, :, 0])
