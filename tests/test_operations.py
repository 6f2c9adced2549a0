"""The ladder of trust: every operation x implementation x (output, every gradient) against numpy, on drawn sizes."""

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import operations
from minillm.lab.trust import against_numpy, by_ratio, differences, here
from minillm.operations import FAST, PLAIN, TRITON, backend
from tests.strategies import FOR_KERNELS, FOR_ROUNDING, OPERATIONS, cases, implemented_in, randoms
from tests.tolerances import assert_good

pytestmark = pytest.mark.checked

CPU, GPU = torch.device("cpu"), torch.device("cuda" if torch.cuda.is_available() else "cpu")
NO_OPERATIONS = {"BACKENDS", "IGNORED", "Prefix", "backend", "bound", "current_backend"}
dtypes = st.sampled_from((torch.float32, torch.bfloat16))
# A fifth of the usual number of examples: triton's interpreter is slow, and rounding is the same for all sizes.
few = settings(max_examples=max(settings.default.max_examples // 5, 1))


def test_every_operation_is_under_test():
    assert set(operations.__all__) - NO_OPERATIONS == set(OPERATIONS)


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
every_backend = pytest.mark.parametrize("by", [PLAIN, FAST, pytest.param(TRITON, marks=needs_triton)])
every_fast_one = pytest.mark.parametrize("name", implemented_in("fast"))
every_torch_one = pytest.mark.parametrize(
    ("name", "by"), [(name, PLAIN) for name in OPERATIONS] + [(name, FAST) for name in implemented_in("fast")]
)


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data(), random=randoms)
def test_numpys_gradients_are_those_of_differences(name, data, random):
    assert_good(differences(data.draw(cases(name)), random), "numpy vs differences, float64")


@every_torch_one
@given(data=st.data(), random=randoms)
def test_torch_equals_numpy_in_float64(name, by, data, random):
    assert_good(against_numpy(data.draw(cases(name)), random, by), f"numpy vs torch ({by}), float64")


@every_torch_one
@few
@given(data=st.data(), dtype=st.sampled_from((torch.float64, torch.float32, torch.bfloat16)), random=randoms)
def test_torch_rounds_and_does_nothing_else(name, by, dtype, data, random):
    with backend(by):
        found = here(data.draw(cases(name, FOR_ROUNDING)), random, dtype, CPU)
    assert_good(found, f"numpy vs torch ({by}), {dtype}")


@every_fast_one
@given(data=st.data(), dtype=dtypes, random=randoms)
def test_the_fast_form_is_as_near_to_numpy_as_the_formula(name, dtype, data, random):
    found = by_ratio(data.draw(cases(name, FOR_ROUNDING)), random, dtype, CPU, FAST)
    assert_good(found, f"numpy vs the fast form, {dtype}")


@needs_triton
@pytest.mark.parametrize("name", implemented_in("kernels"))
@few
@given(data=st.data(), dtype=dtypes, random=randoms)
def test_the_kernel_is_as_near_to_numpy_as_the_fast_form(name, dtype, data, random):
    found = by_ratio(data.draw(cases(name, FOR_KERNELS)), random, dtype, GPU, TRITON)
    assert found is not None, f"no kernel took part in {name}"
    assert_good(found, f"numpy vs the kernel, {dtype}")


def _float32(*shapes):
    return (torch.randn(shape, device=GPU) for shape in shapes)


@every_backend
def test_a_frozen_matrix_gets_no_gradient_and_a_bias_gets_one_if_it_needs_it(by):
    x, weight, bias, a, b = (side.requires_grad_() for side in _float32((3, 5), (7, 5), (7,), (2, 5), (7, 2)))
    with backend(by):
        operations.lora(x, weight, bias, a, b, 0.5).sum().backward()
    assert weight.grad is None
    assert torch.equal(bias.grad, torch.full((7,), 3.0))
    assert all(tensor.grad is not None for tensor in (x, a, b))


@every_backend
def test_a_row_without_an_adapter_is_the_linears_whatever_the_adapters_hold(by):
    x, weight, bias = (side.requires_grad_() for side in _float32((2, 3, 5), (7, 5), (7,)))
    a, b = torch.full((1, 2, 5), torch.nan, device=GPU), torch.full((1, 7, 2), torch.inf, device=GPU)
    with backend(by):
        out = operations.lora_by_row(x, weight, bias, a, b, torch.tensor([-1, 0], device=GPU))
    out[0].sum().backward()
    assert torch.allclose(out[0], x[0] @ weight.T + bias, atol=1e-6)
    assert out[1].isnan().all()
    assert weight.grad is None
    assert torch.equal(bias.grad, torch.full((7,), 3.0))


@every_backend
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_rows_are_computed_in_the_matrixs_dtype_or_in_autocasts(held, by):
    x, weight, a, b = _float32((2, 3, 5), (7, 5), (1, 2, 5), (1, 7, 2))
    a, b = a.requires_grad_(), b.requires_grad_()
    with backend(by), torch.autocast(GPU.type, torch.bfloat16, enabled=held == torch.float32):
        out = operations.lora_by_row(x, weight.to(held), None, a, b, torch.tensor([0, 0], device=GPU))
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert a.grad.dtype == b.grad.dtype == torch.float32
    assert torch.allclose(out.float(), x @ (weight + b[0] @ a[0]).T, atol=0.2)


@every_backend
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_factors_may_be_wider_than_the_matrix(wide, by):
    x, weight, a, b = _float32((3, 5), (7, 5), (2, 5), (7, 2))
    a, b = a.to(wide).requires_grad_(), b.to(wide).requires_grad_()
    with backend(by):
        out = operations.lora(x.bfloat16(), weight.bfloat16(), None, a, b, 0.5)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert a.grad.dtype == b.grad.dtype == wide
    assert torch.allclose(out.float(), x @ (weight + 0.5 * b @ a).float().T, atol=0.2)


@every_backend
@pytest.mark.parametrize("inside", [False, True])
def test_autocast_computes_a_wide_matrix_in_its_own_dtype_and_a_double_one_as_it_is(inside, by):
    x, weight, bias, a, b = _float32((3, 5), (7, 5), (7,), (2, 5), (7, 2))
    a.requires_grad_()
    with backend(by), torch.autocast(GPU.type, torch.bfloat16, enabled=inside):
        out = operations.lora(x, weight, bias, a, b, 0.5)
        double = operations.lora(*(tensor.double() for tensor in (x, weight, bias, a, b)), 0.5)
        norms = operations.updated_norms(weight, a, b, 0.5)
    out.sum().backward()
    assert out.dtype == (torch.bfloat16 if inside else torch.float32)
    assert double.dtype == torch.float64
    assert a.grad.dtype == torch.float32
    assert torch.allclose(norms, (weight + 0.5 * b @ a).norm(dim=1), rtol=1e-6)
    assert torch.allclose(out.double(), double, atol=0.2 if inside else 1e-5)
