"""Attention in torch, by the formula and fast: prefixes, gates and dropout."""

import pytest
import torch
from hypothesis import given

from minillm.fast import attention as fast
from minillm.ops import attention as plain
from minillm.ops.attention import Prefix, attention_weights, for_each_head
from minillm.ops.dropout import dropout
from tests.strategies import arguments
from tests.tolerances import assert_close

both = pytest.mark.parametrize("attention", [plain.attention, fast.attention], ids=["plain", "fast"])


def _sides(*shape):
    torch.manual_seed(0)
    return torch.randn(3, *shape, dtype=torch.float64)


@given(arguments("attention_weights"))
def test_the_weights_of_every_query_add_up_to_one(given):
    weights = attention_weights(*(torch.from_numpy(given[name]) for name in ("query", "key", "visible")))
    assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), "law")


@both
def test_a_zero_prefix_is_not_a_no_op(attention):
    sides, nothing = _sides(2, 2, 5, 3), torch.zeros(1, 2, 7, 3, dtype=torch.float64)
    with_zeros = attention(*sides, prefix=Prefix(nothing, nothing))
    assert (with_zeros - attention(*sides)).abs().max() > 0.1


@both
def test_a_gate_of_zero_is_exactly_no_prefix(attention):
    sides = _sides(2, 2, 5, 3)
    prefix = Prefix(*torch.randn(2, 1, 2, 7, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert torch.equal(attention(*sides, prefix=prefix), attention(*sides))


@both
@pytest.mark.parametrize("gated", [False, True])
@given(given=arguments("attention"))
def test_a_prefix_shared_by_all_rows_is_the_prefix_given_to_each(attention, gated, given):
    sides = {name: torch.from_numpy(given[name]) for name in ("query", "key", "value", "mask") if name in given}
    rows, groups, keys, width = sides["key"].shape
    gate = torch.randn(sides["query"].shape[1], dtype=torch.float64) if gated else None
    shared = Prefix(*torch.randn(2, 1, groups, 3, width, dtype=torch.float64), gate)
    each = Prefix(shared.key.repeat(rows, 1, 1, 1), shared.value.repeat(rows, 1, 1, 1), gate)
    assert_close(attention(**sides, prefix=shared), attention(**sides, prefix=each), "law", terms=keys + 3)


def test_dropout_drops_weights_by_the_formula():
    query, key, value = _sides(1, 2, 5, 3)
    torch.manual_seed(1)
    out = plain.attention(query, key, value, dropout_probability=0.4)
    torch.manual_seed(1)
    weights = attention_weights(query, key, plain.visible_keys(5, 5, None, query.device))
    assert_close(out, dropout(weights, 0.4) @ for_each_head(value, 2), "law", terms=5)


@both
def test_dropout_preserves_the_expectation(attention):
    sides = _sides(1, 2, 5, 3)
    torch.manual_seed(2)
    outs = attention(*(side.expand(20_000, -1, -1, -1) for side in sides), dropout_probability=0.4)
    assert (outs[0] - outs[1]).abs().max() > 0.01
    assert (outs.mean(0) - attention(*sides)[0]).abs().max() < 0.05
