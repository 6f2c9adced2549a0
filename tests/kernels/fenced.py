"""A kernel that drops the mask of a store writes beyond its output, where no comparison of outputs looks."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

EMPTY = {torch.ops.aten.empty.memory_format, torch.ops.aten.new_empty.default, torch.ops.aten.empty_like.default}
WIDTH, POST = 4096, 7.0


class Fences(TorchDispatchMode):
    """Within it all new memory that is to be written to lies between two fences."""

    def __init__(self):
        super().__init__()
        self.fields: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func not in EMPTY or not out.is_floating_point():
            return out
        field = torch.full((WIDTH + out.numel() + WIDTH,), POST, dtype=out.dtype, device=out.device)
        self.fields.append((field, out := field.as_strided(out.shape, out.stride(), WIDTH)))
        return out


def assert_nothing_else_is_written(operation, *arguments):
    """A registered operation writes to what it returns, and to memory of its own, and to nothing beside them."""
    with Fences() as fences, torch.no_grad():
        operation._init_fn(*arguments)
    assert fences.fields
    for field, inside in fences.fields:
        end = WIDTH + inside.numel()
        assert (field[:WIDTH] == POST).all(), "written before the beginning"
        assert (field[end:] == POST).all(), "written beyond the end"
