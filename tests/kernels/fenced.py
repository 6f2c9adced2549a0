"""Detects a kernel that writes outside of its output, which no comparison of outputs would notice."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

EMPTY = {torch.ops.aten.empty.memory_format, torch.ops.aten.new_empty.default, torch.ops.aten.empty_like.default}
WIDTH, FENCE = 4096, 7.0


class Fences(TorchDispatchMode):
    """A context in which all newly allocated memory lies between two fences."""

    def __init__(self):
        super().__init__()
        self.fields: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func not in EMPTY or not out.is_floating_point():
            return out
        field = torch.full((WIDTH + out.numel() + WIDTH,), FENCE, dtype=out.dtype, device=out.device)
        self.fields.append((field, out := field.as_strided(out.shape, out.stride(), WIDTH)))
        return out


def assert_nothing_else_is_written(operation, *arguments):
    """A registered operation writes only to its results and to its own memory."""
    with Fences() as fences, torch.no_grad():
        operation._init_fn(*arguments)
    assert fences.fields
    for field, inside in fences.fields:
        end = WIDTH + inside.numel()
        assert (field[:WIDTH] == FENCE).all(), "written before the beginning"
        assert (field[end:] == FENCE).all(), "written beyond the end"
