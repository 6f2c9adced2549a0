"""Where no one asks for a kernel, a CPU computes as if there were none: torch's operations, and none of ours."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minillm import ops
from minillm.ops.attention import Prefix, attention
from minillm.ops.feed_forward import gelu, swiglu
from minillm.ops.linear_cross_entropy import IGNORED, linear_cross_entropy
from minillm.ops.lora import lora, lora_by_row
from minillm.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from minillm.ops.positions import rotary

X, Y, ROW = torch.randn(2, 5, 6), torch.randn(2, 5, 6), torch.ones(6)
CALLS = {
    gelu: (X,),
    swiglu: (X, Y),
    linear_cross_entropy: (X[0], Y[0], torch.tensor([1, 0, IGNORED, 4, 2])),
    layer_norm: (X, ROW, ROW, 1e-5),
    rms_norm: (X, ROW, 1e-5),
    add_layer_norm: (X, Y, ROW, ROW, 1e-5),
    add_rms_norm: (X, Y, ROW, 1e-5),
    lora: (X, Y[0], X[0, :, 0], Y[1, :2], X[1, :, :2], 0.5, Y),
    lora_by_row: (X, Y[0], None, Y[:, :3], X[:, :, :3], torch.tensor([1, -1])),
    rotary: (X[None], Y[0, :, :3], Y[1, :, :3]),
}


class Dispatched(TorchDispatchMode):
    """What torch is asked to compute within it, by name and in order."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def dispatched(operation, arguments):
    """Forward and back."""
    floats = [torch.is_tensor(each) and each.is_floating_point() for each in arguments]
    arguments = [
        each.detach().requires_grad_() if is_float else each for each, is_float in zip(arguments, floats, strict=True)
    ]
    with Dispatched() as seen:
        out = operation(*arguments)
        (sum(part.sum() for part in out) if isinstance(out, tuple) else out.sum()).backward()
    return seen.names


@pytest.mark.parametrize("operation", CALLS, ids=lambda operation: operation.__name__)
def test_a_cpu_computes_what_it_did_before_there_were_kernels(operation):
    with ops.backend(ops.TORCH):
        expected = dispatched(operation, CALLS[operation])
    assert dispatched(operation, CALLS[operation]) == expected
    assert not any(name.startswith("minillm::") for name in expected)


def _attention(padded=False, gate=None, dtype=torch.float32):
    query, key, value, *prefix = (torch.randn(2, 2, 5, 4, dtype=dtype) for _ in range(5))
    mask = torch.ones(2, 5, dtype=torch.bool) if padded else None
    before = Prefix(*prefix, gate) if padded else None
    return (lambda *sides: attention(*sides, mask=mask, prefix=before)), (query, key, value)


@pytest.mark.parametrize(
    "how", [{}, {"padded": True}, {"padded": True, "gate": torch.ones(2)}, {"padded": True, "dtype": torch.bfloat16}]
)
def test_nor_does_attention_cost_more(how):
    operation, sides = _attention(**how)
    with ops.backend(ops.TORCH):
        expected = dispatched(operation, sides)
    found = dispatched(operation, sides)
    assert found == expected
    assert not any(name.startswith("minillm") for name in found)
