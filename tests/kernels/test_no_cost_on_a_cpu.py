"""On a CPU no kernel stands in the way: an operation is the very calls of torch that it is with torch forced."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minillm import ops
from minillm.ops.attention import Prefix, attention


class Calls(TorchDispatchMode):
    """Notes every operation that torch dispatches within it, in order."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def calls(run):
    with Calls() as noted:
        run().sum().backward()
    return noted.seen


def numbers(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def _attention(padded=False, gate=None, dtype=torch.float32):
    query, key, value, *prefix = (numbers(2, 2, 5, 4, dtype=dtype) for _ in range(5))
    mask = torch.ones(2, 5, dtype=torch.bool) if padded else None
    return attention(query, key, value, mask=mask, prefix=Prefix(*prefix, gate) if padded else None)


CASES = {
    "attention": _attention,
    "attention behind a prefix": lambda: _attention(padded=True),
    "attention beside a gated prefix": lambda: _attention(padded=True, gate=numbers(2)),
    "attention in bfloat16": lambda: _attention(padded=True, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_costs_on_a_cpu_what_torchs_own_does(name):
    here = calls(CASES[name])
    with ops.backend(ops.TORCH):
        assert calls(CASES[name]) == here
    assert not any(call.startswith("minillm") for call in here)
