"""Dropout in torch: the drawn masks."""

import torch

from minillm.ops.dropout import dropout


def test_dropout_drops_with_its_probability_and_preserves_the_mean():
    torch.manual_seed(0)
    out = dropout(torch.ones(100, 1000), 0.3)
    assert abs((out == 0).float().mean() - 0.3) < 0.01
    assert abs(out.mean() - 1) < 0.01


def test_no_dropout_returns_the_same_tensor():
    hidden = torch.randn(2, 3)
    assert dropout(hidden, 0.0) is hidden
