"""On a CPU no kernel stands in the way: an operation is the very calls of torch that it is with torch forced."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minillm import ops
from minillm.ops import lora, norm


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


def numbers(*shape):
    return torch.randn(shape, requires_grad=True)


CASES = {
    "layer_norm": lambda: norm.layer_norm(numbers(3, 5), numbers(5), numbers(5), 1e-5),
    "rms_norm": lambda: norm.rms_norm(numbers(3, 5), numbers(5), 1e-5),
    "add_layer_norm": lambda: norm.add_layer_norm(numbers(3, 5), numbers(3, 5), numbers(5), numbers(5), 1e-5)[1],
    "add_rms_norm": lambda: norm.add_rms_norm(numbers(3, 5), numbers(3, 5), numbers(5), 1e-5)[1],
    "lora": lambda: lora.lora(numbers(3, 5), torch.ones(7, 5), numbers(7), numbers(2, 5), numbers(7, 2), 0.5),
    "lora_by_row": lambda: lora.lora_by_row(
        numbers(2, 3, 5), torch.ones(7, 5), numbers(7), numbers(1, 2, 5), numbers(1, 7, 2), torch.tensor([0, -1])
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_costs_on_a_cpu_what_torchs_own_does(name):
    here = calls(CASES[name])
    with ops.backend(ops.TORCH):
        assert calls(CASES[name]) == here
    assert not any(call.startswith("minillm") for call in here)
