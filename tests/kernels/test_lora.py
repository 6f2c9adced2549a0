"""The kernels of LoRA: stripes, one adapter for all rows or one per row, and a whole decoder."""

import pytest
import torch

from minillm.adapt import Family, LoRA
from minillm.kernels import lora as kernels
from minillm.kernels.lora_by_row import lora_by_row as kernel_by_row
from minillm.lab.trust import OurKernels
from minillm.operations import KERNEL_RANK, TRITON, backend, lora, lora_by_row
from tests.decoders import STYLES, random_decoder
from tests.kernels.against_numpy import DEVICE, opcheck
from tests.kernels.fenced import assert_nothing_else_is_written

IDS = torch.tensor([[3, 1, 4, 1], [2, 7, 1, 8], [9, 2, 6, 5], [5, 8, 9, 7]], device=DEVICE)


def adapted(dtype=torch.float32, tokens=5, inner=13, outer=11, rank=3):
    shapes = (1, tokens, inner), (outer, inner), (outer,), (1, rank, inner), (1, outer, rank)
    return [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]


def test_many_stripes_of_many_blocks_are_summed(monkeypatch):
    """More rows than fit one block of a stripe, and more stripes than one block of the sum, the last one not full."""
    monkeypatch.setattr(kernels, "BLOCK_STRIPE", 16)
    monkeypatch.setattr(kernels, "PROGRAMS", 40)
    x, weight, _, a, b = adapted(tokens=16 * 37 + 5)
    out = kernels.lora(x, weight, None, a[0], b[0], 0.5)
    dout = torch.randn_like(out)
    by_kernel = torch.autograd.grad(out, (x, a, b), dout)
    by_torch = torch.autograd.grad(x @ (weight + 0.5 * b[0] @ a[0]).T, (x, a, b), dout)
    for found, expected in zip(by_kernel, by_torch, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_b_at_zero_the_output_is_the_linears_and_the_gradient_of_a_is_zero(dtype):
    x, weight, bias, a, b = adapted(dtype)
    out = kernels.lora(x, weight, bias, a[0], torch.zeros_like(b[0]).requires_grad_(), 2.0)
    out.square().sum().backward()
    assert torch.allclose(out, torch.nn.functional.linear(x, weight, bias), rtol=2e-2, atol=2e-2)
    assert torch.count_nonzero(a.grad) == 0
    assert torch.count_nonzero(x.grad) > 0


def test_no_adapter_is_the_plain_linear_even_if_other_adapters_are_nan():
    x, weight, bias, a, b = adapted()
    none = torch.tensor([-1], device=DEVICE)
    out = kernel_by_row(x, weight, bias, a * torch.nan, b * torch.inf, none)
    out.sum().backward()
    assert torch.allclose(out, torch.nn.functional.linear(x, weight, bias), atol=1e-6)
    assert torch.allclose(x.grad, weight.sum(0).expand_as(x), atol=1e-6)


def test_rows_with_one_adapter_of_several_equal_lora():
    x, weight, bias, a, b = adapted(tokens=12)
    factors = torch.cat([a + 1, a]), torch.cat([b + 1, b])
    rows = kernel_by_row(x.view(3, 4, -1), weight, bias, *factors, torch.tensor([1, 1, 1], device=DEVICE))
    together = kernels.lora(x, weight, bias, a[0], b[0], 1)
    assert torch.allclose(rows.view_as(together), together, atol=1e-5)
    dout = torch.randn_like(together)
    for found, expected in zip(
        torch.autograd.grad(rows, (x, a, b), dout.view_as(rows)),
        torch.autograd.grad(together, (x, a, b), dout),
        strict=True,
    ):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("needs", range(5))
def test_each_gradient_is_right_alone(needs):
    inputs = [tensor.detach() for tensor in adapted()]
    dropped = inputs.pop(2).new_ones(inputs[0].shape)
    x, weight, a, b = inputs
    needed = (x, a, b, dropped, weight)[needs].requires_grad_()
    out = kernels.lora(x, weight, None, a[0], b[0], 0.5, dropped)
    if needed is weight:
        assert torch.autograd.grad(out.sum(), weight, allow_unused=True) == (None,)
        return
    expected = x @ weight.T + 0.5 * dropped @ a[0].T @ b[0].T
    (found,), (right,) = (torch.autograd.grad(result.square().sum(), needed) for result in (out, expected))
    assert torch.allclose(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_factors_may_be_wider_than_the_matrix(wide):
    x, weight, bias, *factors = adapted(torch.bfloat16)
    a, b = (side.detach()[0].to(wide).requires_grad_() for side in factors)
    with backend(TRITON):
        out = lora(x, weight, bias.to(wide), a, b, 0.5)
    out.sum().backward()
    assert (out.dtype, x.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    assert a.grad.dtype == b.grad.dtype == wide
    exact = x.double() @ (weight.double() + 0.5 * b.double() @ a.double()).T + bias.double()
    assert torch.allclose(out.double(), exact, atol=0.2)


def test_a_rank_too_large_for_registers_is_left_to_torch():
    x, weight, bias, a, b = adapted(rank=KERNEL_RANK + 1)
    with backend(TRITON), OurKernels() as kernels_seen:
        lora(x, weight, bias, a[0], b[0], 0.5)
        lora_by_row(x, weight, bias, a, b, torch.zeros(1, dtype=torch.long, device=DEVICE))
    assert kernels_seen.seen == []


@pytest.mark.parametrize("case", ["plain", "dropped", "by row"])
def test_lora_is_a_registered_torch_operation(case):
    x, weight, bias, a, b = adapted()
    weight.requires_grad_(False)
    adapter = torch.tensor([0], device=DEVICE) if case == "by row" else None
    dropped = torch.randn_like(x).requires_grad_() if case == "dropped" else None
    opcheck(kernels._lora, x, weight, bias, a, b, adapter, 0.5, dropped)


def test_nothing_is_written_out_of_bounds():
    x, weight, bias, a, b = (tensor.detach() for tensor in adapted())
    adapter = torch.tensor([0], device=DEVICE)
    assert_nothing_else_is_written(kernels._lora, x, weight, bias, a, b, adapter, 0.5, None)
    dout, low = x.new_ones(1, 5, 11), x.new_ones(1, 5, 3)
    wanted = [True, True]
    assert_nothing_else_is_written(kernels._lora_backward, dout, x, weight, a, b, adapter, low, 0.5, wanted)


def gradients_of(model, run):
    model.zero_grad()
    out = run()
    out.square().mean().backward()
    return [out.detach(), *(parameter.grad.clone() for parameter in model.trainable().values())]


@pytest.mark.parametrize("mixed", [False, True])
def test_an_adapted_decoder_is_the_same_with_kernels_and_with_torch(mixed):
    decoder = random_decoder(STYLES["Llama"]).float().to(DEVICE)
    one, other = LoRA(decoder, r=3, targets="all-linear"), LoRA(decoder, r=2)
    for parameter in (*one.trainable().values(), *other.trainable().values()):
        torch.nn.init.normal_(parameter, std=0.2)
    family = Family(decoder, {"one": one, "other": other})
    model, run = (family, lambda: family(IDS, ["one", "other", "base", "one"])) if mixed else (one, lambda: one(IDS))
    by_torch = gradients_of(model, run)
    with backend(TRITON), OurKernels() as seen:
        by_kernels = gradients_of(model, run)
    assert "minillm::lora" in seen.seen
    for found, expected in zip(by_kernels, by_torch, strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1e-3)
