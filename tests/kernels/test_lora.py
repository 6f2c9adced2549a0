"""The kernels of LoRA: stripes, gradients that are not needed, and a family of adapters in a decoder."""

from dataclasses import replace

import pytest
import torch

from minillm.adapt import Family, LoRA
from minillm.kernels import lora as kernels
from minillm.lab.trust import OurKernels
from minillm.operations import KERNEL_RANK, TRITON, backend, lora, lora_by_row
from tests.decoders import STYLES, random_decoder
from tests.kernels.against_numpy import DEVICE, opcheck
from tests.kernels.fenced import assert_nothing_else_is_written

IDS = torch.tensor([[3, 1, 4], [2, 7, 1], [9, 2, 6], [5, 8, 9]], device=DEVICE)


def adapted(dtype=torch.float32, tokens=5, inner=13, outer=11, rank=3):
    shapes = (1, tokens, inner), (outer, inner), (outer,), (1, rank, inner), (1, outer, rank)
    return [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.slow
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


@pytest.mark.parametrize("needs", range(4))
def test_each_gradient_is_right_alone(needs):
    inputs = [tensor.detach() for tensor in adapted()]
    dropped = inputs.pop(2).new_ones(inputs[0].shape)
    x, weight, a, b = inputs
    needed = (x, a, b, dropped)[needs].requires_grad_()
    out = kernels.lora(x, weight, None, a[0], b[0], 0.5, dropped)
    expected = x @ weight.T + 0.5 * dropped @ a[0].T @ b[0].T
    (found,), (right,) = (torch.autograd.grad(result.square().sum(), needed) for result in (out, expected))
    assert torch.allclose(found, right, rtol=1e-4, atol=1e-4)


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


def outputs_of(family):
    """Logits and gradients of a batch whose rows use different adapters."""
    out = family(IDS, ["one", "other", "base", "one"])
    return [out, *torch.autograd.grad(out.square().mean(), [*family.trainable().values()])]


@pytest.mark.slow
def test_a_family_is_the_same_with_kernels_and_with_torch():
    decoder = random_decoder(replace(STYLES["Llama"], layers=1)).float().to(DEVICE)
    one, other = LoRA(decoder, r=3, targets="all-linear"), LoRA(decoder, r=2)
    for parameter in (*one.trainable().values(), *other.trainable().values()):
        torch.nn.init.normal_(parameter, std=0.2)
    family = Family(decoder, {"one": one, "other": other})
    by_torch = outputs_of(family)
    with backend(TRITON), OurKernels() as seen:
        by_kernels = outputs_of(family)
    assert "minillm::lora" in seen.seen
    for found, expected in zip(by_kernels, by_torch, strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1e-3)
