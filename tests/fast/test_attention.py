"""Attention by torch's fused kernels: how the causal mask is passed, and where they are not used."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch.nn.attention.bias import causal_lower_right

from minillm.fast import attention as fast
from minillm.ops.attention import attention
from tests.strategies import sizes
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked


@given(sizes, sizes)
def test_the_causal_bias_for_a_gpu_equals_our_mask(queries, more):
    """After a prefix or a cache, and without padding, a GPU in half precision gets this bias instead of a mask."""
    query, key = torch.randn(1, 2, queries, 3), torch.randn(1, 2, queries + more, 3)
    named = F.scaled_dot_product_attention(query, key, key, attn_mask=causal_lower_right(queries, queries + more))
    assert_close(named, attention(query, key, key), "law in float32")


@pytest.mark.parametrize(("dtype", "fused"), [(torch.bfloat16, False), (torch.float32, True)])
def test_bfloat16_on_a_cpu_does_not_use_the_fused_kernel(dtype, fused, monkeypatch):
    called, right = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **b: called.append(1) or right(*a, **b))
    fast.attention(*torch.randn(3, 1, 2, 5, 4, dtype=dtype))
    assert bool(called) == fused


@pytest.mark.parametrize("window", [1, 3, 7])
def test_one_query_with_cached_keys_attends_to_its_window_alone(window):
    query, key, value = torch.randn(3, 2, 2, 7, 5, dtype=torch.float64)
    alone = fast.attention(query[:, :, -1:], key, value, window=window)
    near = fast.attention(query[:, :, -1:], key[:, :, -window:], value[:, :, -window:])
    assert_close(alone, near, "law")
