"""Dropout in torch: the drawn masks, and where attention applies them."""

import pytest
import torch

from minillm.fast import attention as fast
from minillm.ops import attention as plain
from minillm.ops.attention import attention_weights, for_each_head
from minillm.ops.dropout import dropout
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked


def test_dropout_drops_with_its_probability_and_preserves_the_mean():
    out = dropout(torch.ones(100, 1000), 0.3)
    assert abs((out == 0).float().mean() - 0.3) < 0.01
    assert abs(out.mean() - 1) < 0.01


def test_no_dropout_returns_the_same_tensor():
    hidden = torch.randn(2, 3)
    assert dropout(hidden, 0.0) is hidden


def test_attention_drops_its_weights():
    query, key, value = torch.randn(3, 1, 2, 5, 3, dtype=torch.float64)
    torch.manual_seed(1)
    out = plain.attention(query, key, value, dropout_probability=0.4)
    torch.manual_seed(1)
    weights = attention_weights(query, key, plain.visible_keys(5, 5, None, query.device))
    assert_close(out, dropout(weights, 0.4) @ for_each_head(value, 2), "law", terms=5)


@pytest.mark.parametrize("attention", [plain.attention, fast.attention], ids=["plain", "fast"])
def test_dropout_of_attention_preserves_the_expectation(attention):
    sides = torch.randn(3, 1, 2, 5, 3, dtype=torch.float64)
    outs = attention(*(side.expand(20_000, -1, -1, -1) for side in sides), dropout_probability=0.4)
    assert (outs[0] - outs[1]).abs().max() > 0.01
    assert (outs.mean(0) - attention(*sides)[0]).abs().max() < 0.05
