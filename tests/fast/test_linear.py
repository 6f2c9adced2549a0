"""The fast product, by oneDNN or by MKL: errors, saved tensors, and the arguments that it leaves to PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from minillm.fast import linear as fast
from minillm.lab.trust import by_ratio
from minillm.operations import FAST
from tests.strategies import FOR_ROUNDING, cases, randoms
from tests.tolerances import assert_close, assert_good

pytestmark = pytest.mark.checked

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture(
    params=[pytest.param(True, marks=pytest.mark.skipif(not HAS_ONEDNN, reason="torch has no oneDNN here")), False],
    ids=["oneDNN", "MKL"], autouse=True, scope="module",
)  # fmt: skip
def _onednn(request):
    """On any CPU: without AVX-512 oneDNN computes the same, only slower."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "ONEDNN", request.param)
        yield


@pytest.mark.parametrize("name", ["linear", "lora", "lora_by_row", "linear_cross_entropy"])
@given(data=st.data(), random=randoms)
def test_operations_that_use_it_are_as_close_to_numpy_as_the_formula(name, data, random):
    found = by_ratio(data.draw(cases(name, FOR_ROUNDING)), random, torch.float32, torch.device("cpu"), FAST)
    assert_good(found, "numpy vs fast, float32")


def test_inputs_may_be_views():
    """Transposed, or every other row; positive numbers, so that no sum cancels."""
    wide = [torch.rand(6, 5)[::2].double(), torch.rand(5, 7).T.double(), torch.rand(7).double()]
    dout, found = torch.rand(7, 3).T, []
    for linear, dtype in ((fast.linear, torch.float32), (F.linear, torch.float64)):
        operands = [side.to(dtype).detach().requires_grad_() for side in wide]
        assert not operands[1].is_contiguous()
        out = linear(operands[0].T.contiguous().T, *operands[1:])
        found.append([out, *torch.autograd.grad(out, operands, dout.to(dtype))])
    for actual, expected in zip(*found, strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual, expected, "law in float32")


def test_only_inputs_that_need_a_gradient_get_one():
    x, weight = torch.randn(3, 2), torch.randn(5, 2, requires_grad=True)
    fast.linear(x, weight).sum().backward()
    assert x.grad is None
    assert_close(weight.grad, x.sum(0).expand(5, 2), "law in float32")


def test_a_frozen_matrix_saves_nothing_of_its_input():
    """Otherwise a decoder of frozen Linears would hold all their inputs until the backward pass."""
    saved = []
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda t: t):
        fast.linear(x, weight)
        assert (4, 3) not in saved
        fast.linear(x, weight.requires_grad_())
    assert (4, 3) in saved


def test_a_product_that_is_recomputed_for_its_gradient_saves_the_same():
    """PyTorch raises an error if the recomputation saves other tensors than the first pass."""
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    checkpoint(fast.linear, x, weight, use_reentrant=False).sum().backward()
    assert_close(weight.grad, x.detach().sum(0).expand(2, 3), "law in float32")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_empty_batches_are_left_to_pytorch(dtype):
    x, weight = torch.randn(4, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    assert torch.equal(fast.linear(x, weight), F.linear(x, weight))
    assert fast.linear(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.linear(torch.randn(4, 3), torch.randn(2, 3)).dtype == torch.bfloat16
