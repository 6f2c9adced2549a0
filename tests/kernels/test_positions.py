"""The kernel of rotary positions: any memory layout of the heads, and the precision of its tables."""

import pytest
import torch

from minillm.kernels import positions as kernels
from minillm.operations import FAST, TRITON, backend, rotary, rotary_tables
from tests.kernels.against_numpy import DEVICE, opcheck
from tests.kernels.fenced import assert_nothing_else_is_written


def _tables(tokens, width):
    return rotary_tables(torch.arange(tokens, device=DEVICE), width, 100.0, torch.float32)


def test_rows_are_split_over_many_programs(monkeypatch):
    """Blocks of two rows, which are not aligned with heads or tokens; each row of the batch has its own positions."""
    monkeypatch.setattr(kernels, "BLOCK_NUMBERS", 8)
    positions = torch.arange(10, device=DEVICE).view(2, 5)
    vectors, tables = torch.randn(2, 3, 5, 6, device=DEVICE), rotary_tables(positions, 6, 100.0, torch.float32)
    assert torch.allclose(kernels.rotary(vectors, *tables), rotary(vectors, *tables), atol=1e-6)


def test_heads_split_from_a_linears_output_are_rotated_without_a_copy():
    """Read by their strides, written and differentiated in the same order; sums have gradients of stride 0."""
    split = torch.randn(2, 5, 3, 6, device=DEVICE).transpose(1, 2).requires_grad_()
    copied, tables = split.detach().contiguous().requires_grad_(), _tables(5, 6)
    turned = kernels.rotary(split, *tables)
    with backend(FAST):
        expected = rotary(copied, *tables)
    assert turned.stride() == split.stride() != expected.stride()
    assert torch.allclose(turned, expected, atol=1e-6)
    for out in (turned, expected):
        out.sum().backward()
    assert torch.allclose(split.grad, copied.grad, atol=1e-6)


def test_wider_tables_rotate_the_vectors_in_their_own_precision():
    """The cosine of a small angle rounds to 1 in bfloat16, but its effect on large elements is not small."""
    vectors = torch.tensor([1.0, 256.0], device=DEVICE).bfloat16().view(1, 1, 1, 2)
    cos, sin = torch.tensor([[[1 - 2.0**-9]], [[2.0**-7 + 2.0**-15]]], device=DEVICE)
    turned = kernels.rotary(vectors, cos, sin)
    assert turned.dtype == torch.bfloat16
    expected = torch.tensor([(1 - 2.0**-9) - 256 * (2.0**-7 + 2.0**-15), 256 * (1 - 2.0**-9)], device=DEVICE)
    assert torch.allclose(turned.flatten().float(), expected, rtol=2**-8)


def test_a_table_that_needs_a_gradient_is_left_to_torch():
    vectors, (cos, sin) = torch.randn(1, 2, 5, 6, device=DEVICE), _tables(5, 6)
    cos.requires_grad_()
    with backend(TRITON):
        rotary(vectors, cos, sin).sum().backward()
    assert cos.grad.count_nonzero() > 0


def test_nothing_is_written_out_of_bounds():
    assert_nothing_else_is_written(kernels._rotary, torch.randn(1, 3, 5, 6, device=DEVICE), *_tables(5, 6), False)


@pytest.mark.parametrize("back", [pytest.param(False, marks=pytest.mark.slow), True])
def test_rotary_is_a_registered_torch_operation(back):
    vectors = torch.randn(2, 5, 3, 6, device=DEVICE).transpose(1, 2).requires_grad_()
    opcheck(kernels._rotary, vectors, *_tables(5, 6), back)
