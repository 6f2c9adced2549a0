"""Attention in torch: the same as numpy's, fast and step by step, with every mask and every prefix."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch.nn.attention.bias import causal_lower_right

from minillm.ops import attention as ops
from minillm.ops.dropout import dropout
from minillm.reference import attention as reference
from tests.rungs import check_against_torch
from tests.strategies import attention_cases, sizes
from tests.tolerances import assert_close


def _inputs(case):
    return case.arrays | {"mask": case.mask, "prefix": case.prefix and reference.Prefix(*case.prefix)}


def _tensors(case):
    tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in case.arrays.items()}
    mask = None if case.mask is None else torch.from_numpy(case.mask)
    prefix = None
    if case.prefix is not None:
        prefix = ops.Prefix(*(None if side is None else torch.tensor(side).requires_grad_() for side in case.prefix))
    return tensors | {"mask": mask, "prefix": prefix}


@given(attention_cases())
def test_attention_equals_numpys(case):
    twins = reference.attention_forward, reference.attention_backward
    check_against_torch(ops.attention, *twins, _inputs(case), case.random)


@given(attention_cases())
def test_explicit_attention_equals_numpys(case):
    twins = reference.attention_forward, reference.attention_backward
    check_against_torch(lambda **inputs: ops.explicit_attention(**inputs)[0], *twins, _inputs(case), case.random)


@given(attention_cases())
def test_explicit_attention_equals_attention_with_its_gradients(case):
    results = []
    dout = torch.from_numpy(case.random.normal(size=case.arrays["query"].shape))
    for operation in (lambda **inputs: ops.explicit_attention(**inputs)[0], ops.attention):
        inputs = _tensors(case)
        out = operation(**inputs)
        leaves = [inputs[name] for name in ("query", "key", "value")]
        leaves += [side for side in inputs["prefix"] or () if side is not None]
        results.append([out, *torch.autograd.grad(out, leaves, dout)])
    for fast, explicit in zip(*results, strict=True):
        assert_close(fast, explicit, "law")


@given(attention_cases())
def test_the_weights_equal_numpys(case):
    query, key = case.arrays["query"], case.arrays["key"]
    mask = None if case.mask is None else torch.from_numpy(case.mask)
    inputs = {"query": query, "key": key, "visible": reference.visible_keys(query.shape[2], key.shape[2], case.mask)}

    def weights(query, key, visible):
        return ops.explicit_attention(query, key, key, mask=mask)[1]

    twins = reference.attention_weights_forward, reference.attention_weights_backward
    check_against_torch(weights, *twins, inputs, case.random)


@given(attention_cases())
def test_visible_keys_equal_numpys(case):
    queries, keys = case.arrays["query"].shape[2], case.arrays["key"].shape[2]
    mask = None if case.mask is None else torch.from_numpy(case.mask)
    expected = reference.visible_keys(queries, keys, case.mask)
    assert np.array_equal(ops.visible_keys(queries, keys, mask, torch.device("cpu")), expected)


@given(sizes, sizes)
def test_the_rule_that_a_gpus_kernels_know_by_name_is_ours(queries, more):
    """Behind a prefix or a cache, and without padding, a GPU in half precision is given this in place of a mask."""
    query, key = torch.randn(1, 2, queries, 3), torch.randn(1, 2, queries + more, 3)
    named = F.scaled_dot_product_attention(query, key, key, attn_mask=causal_lower_right(queries, queries + more))
    assert_close(named, ops.attention(query, key, key), "law in float32")


@given(attention_cases())
def test_every_query_reads_a_whole_of_what_it_sees(case):
    _, weights = ops.explicit_attention(**_tensors(case))
    assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]).double(), "law")


def test_a_zero_prefix_is_not_a_no_op():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 3, dtype=torch.float64)
    nothing = torch.zeros(1, 2, 7, 3, dtype=torch.float64)
    with_zeros = ops.attention(query, key, value, prefix=ops.Prefix(nothing, nothing))
    assert (with_zeros - ops.attention(query, key, value)).abs().max() > 0.1


def test_a_gate_of_zero_is_exactly_no_prefix():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 3, dtype=torch.float64)
    prefix = ops.Prefix(*torch.randn(2, 1, 2, 7, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    plain = ops.attention(query, key, value)
    assert torch.equal(ops.attention(query, key, value, prefix=prefix), plain)


@pytest.mark.parametrize("gated", [False, True])
@given(case=attention_cases())
def test_a_prefix_shared_by_all_rows_is_the_prefix_given_to_each(case, gated):
    tensors = _tensors(case) | {"prefix": None}
    rows, groups, _, width = tensors["key"].shape
    gate = torch.randn(tensors["query"].shape[1], dtype=torch.float64) if gated else None
    shared = ops.Prefix(*torch.randn(2, 1, groups, 3, width, dtype=torch.float64), gate)
    each = ops.Prefix(shared.key.repeat(rows, 1, 1, 1), shared.value.repeat(rows, 1, 1, 1), gate)
    out = ops.attention(**tensors | {"prefix": shared})
    assert_close(out, ops.attention(**tensors | {"prefix": each}), "law")


def test_dropout_drops_weights_and_makes_up_for_them():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 5, 3, dtype=torch.float64)
    torch.manual_seed(1)
    out, weights = ops.explicit_attention(query, key, value, dropout_probability=0.4)
    torch.manual_seed(1)
    assert_close(out, dropout(weights, 0.4) @ value, "law")
    torch.manual_seed(2)
    many = ops.attention(*(side.expand(20_000, -1, -1, -1) for side in (query, key, value)), dropout_probability=0.4)
    assert (many[0] - many[1]).abs().max() > 0.01
    assert (many.mean(0) - ops.attention(query, key, value)[0]).abs().max() < 0.05


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@given(case=attention_cases())
def test_lower_precision_rounds_and_does_nothing_else(dtype, tolerance, case):
    rounded = {name: torch.from_numpy(array).to(dtype) for name, array in case.arrays.items()}
    others = {name: value for name, value in _tensors(case).items() if name in ("mask", "prefix")}
    prefix = others["prefix"]
    if prefix is not None:
        others["prefix"] = ops.Prefix(*(None if side is None else side.to(dtype) for side in prefix))
        prefix = ops.Prefix(*(None if side is None else side.double() for side in others["prefix"]))
    exact = ops.attention(**{name: side.double() for name, side in rounded.items()}, mask=others["mask"], prefix=prefix)
    for out in (ops.attention(**rounded, **others), ops.explicit_attention(**rounded, **others)[0]):
        assert out.dtype == dtype
        assert (out.double() - exact).abs().max() <= 5 * tolerance * max(1, exact.abs().max())
