"""The kernel of attention: many tiles, strided inputs, and a prefix that is not copied."""

import pytest
import torch
from hypothesis import given

from minillm.kernels import attention as kernels
from minillm.operations import FAST, TRITON, Prefix, attention, backend
from minillm.ops.attention import attention as plain_attention
from tests.kernels.against_numpy import DEVICE, assert_the_kernel_is_right, dtypes, examples, opcheck
from tests.strategies import FOR_KERNELS, cases, randoms
from tests.tolerances import assert_close

SMALL = {"BLOCK_T": 16, "BLOCK_S": 16, "num_warps": 1, "num_stages": 1}


@pytest.fixture
def small_tiles(monkeypatch):
    """Few tokens have several whole tiles and several at an edge, and stripes of a prefix have several tiles."""
    whole = kernels._blocks
    monkeypatch.setattr(kernels, "_blocks", lambda *sizes: whole(*sizes) | SMALL)
    monkeypatch.setattr(kernels, "PROGRAMS", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
@examples
@given(cases("attention", FOR_KERNELS._replace(heads=(1, 2), tokens=(1, 17, 31))), randoms, dtypes)
def test_many_tiles_give_the_same_result(case, random, dtype):
    assert_the_kernel_is_right(case, random, dtype)


def _random(*shapes):
    return [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]


def _gradients(out, leaves):
    torch.manual_seed(1)
    return torch.autograd.grad(out, leaves, torch.randn_like(out))


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
def test_strided_inputs_are_not_copied():
    """The layout of the decoder's Linears, B T (H K); the result has it too, so that the next Linear copies nothing."""
    query, key, value = _random((2, 19, 4, 16), (2, 19, 2, 16), (2, 19, 2, 16))
    prefix = _random((1, 2, 16, 3), (1, 2, 16, 3))
    results = []
    for name in (FAST, TRITON):
        heads = [side.transpose(1, 2) for side in (query, key, value)]
        permuted = Prefix(*(side.permute(0, 1, 3, 2) for side in prefix))
        with backend(name):
            out = attention(*heads, prefix=permuted)
        results.append([out, *_gradients(out, [query, key, value, *prefix])])
    assert out.transpose(1, 2).is_contiguous()
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected, "law in float32")


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
def test_the_gradient_of_a_shared_prefix_is_the_same_on_every_run_and_is_summed_in_float32():
    """A float32 prefix before bfloat16 text: it is rounded once on input, its gradient not at all."""
    sides = [side.detach().bfloat16() for side in _random((3, 2, 9, 16), *[(3, 1, 9, 16)] * 2)]
    prefix = _random((1, 1, 3, 16), (1, 1, 3, 16))
    runs = []
    for _ in range(2):
        with backend(TRITON):
            runs.append(_gradients(attention(*sides, prefix=Prefix(*prefix)), prefix))
    for one, other in zip(*runs, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
        assert not torch.equal(one, one.bfloat16().float())


def test_a_prefix_that_is_a_constant_costs_no_second_pass(monkeypatch):
    monkeypatch.setattr(kernels, "_prefix_gradients", None)
    query, key, value, *prompt = _random((1, 1, 3, 4), *[(1, 1, 3, 4)] * 2, *[(1, 1, 2, 4)] * 2)
    constant = Prefix(*(side.detach() for side in prompt))
    with backend(TRITON):
        out = attention(query, key, value, prefix=constant)
    assert all(gradient.isfinite().all() for gradient in _gradients(out, [query, key, value]))


def test_the_fast_implementation_is_correct_on_this_device_too():
    """In half precision after a prefix, where a GPU uses a causal bias instead of a mask."""
    sides = [side.detach().bfloat16() for side in _random((2, 4, 9, 16), *[(2, 2, 9, 16)] * 2, *[(1, 2, 5, 16)] * 2)]
    with backend(FAST):
        out = attention(*sides[:3], prefix=Prefix(*sides[3:]))
    exact = [side.double() for side in sides]
    expected = plain_attention(*exact[:3], prefix=Prefix(*exact[3:]))
    assert (out.double() - expected).abs().max() <= 4 * 2**-8 * expected.abs().max()


def test_dropout_is_left_to_torch():
    sides = torch.randn(3, 2, 2, 5, 3, device=DEVICE)
    results = []
    for name in (FAST, TRITON):
        torch.manual_seed(1)
        with backend(name):
            results.append(attention(*sides, dropout_probability=0.4))
    assert torch.equal(*results)


@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_without_queries_the_gradients_are_zero(batch, queries):
    query, key, value, *prompt = _random((batch, 2, queries, 3), *[(batch, 1, 5, 3)] * 2, *[(1, 1, 2, 3)] * 2)
    with backend(TRITON):
        out = attention(query, key, value, prefix=Prefix(*prompt))
    assert out.shape == query.shape
    assert all(torch.equal(found, torch.zeros_like(found)) for found in _gradients(out, [key, value, *prompt]))


@pytest.mark.slow
@pytest.mark.parametrize("prefixed", [False, True])
def test_attention_is_a_registered_torch_operation(prefixed):
    batch = 1 + prefixed
    sides = _random((batch, 1, 3, 8), *[(batch, 1, 5, 8)] * 2)
    prompt = _random(*[(1, 1, 3, 8)] * 2) if prefixed else (None, None)
    mask = torch.rand(batch, 5, device=DEVICE) < 0.5 if prefixed else None
    opcheck(kernels._attention, *sides, mask, *prompt)
