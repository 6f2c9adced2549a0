"""The arithmetic of the decoder: pure functions on tensors, which own no parameters.

Each file has its numpy twin, forward and backward, under the same name in `minillm.reference`, and, where a kernel of
our own is worth having on a GPU, that kernel under the same name in `minillm.kernels`. Which of the two programs
computes is decided here, anew for each call; on a CPU nothing of it is to be seen.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minillm.errors import InputError

TORCH, TRITON = "torch", "triton"
# Kernels sum in float32: float64 is left to torch.
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_forced: str | None = None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within it every operation that has a kernel is computed by `"torch"`, or by its kernel (`"triton"`).

    Kernels run on a GPU, or on a CPU in triton's interpreter if TRITON_INTERPRET=1 was set before triton was imported.
    Raises InputError for another name, and where triton is not installed.
    """
    global _forced
    if name not in (TORCH, TRITON):
        raise InputError(f"there is no backend {name!r}; there are: {TORCH}, {TRITON}")
    if name == TRITON and importlib.util.find_spec("triton") is None:
        raise InputError("triton is not installed, and the kernels need it: pip install 'minillm[kernels]' (Linux)")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def by_kernel(operation: str, tensor: torch.Tensor, *sizes: int) -> bool:
    """Whether a kernel is to compute this: if one is forced, or was measured to be quicker on this GPU at these sizes.

    Before anything else comes the question that a CPU answers with no: it costs less than a microsecond there.
    """
    if _forced is None and not tensor.is_cuda:
        return False
    if _forced == TORCH or tensor.dtype not in KERNEL_DTYPES:
        return False
    if _forced == TRITON:
        return True
    from minillm.kernels._measured import quicker

    return quicker(tensor.device, operation, tensor.dtype, sizes)
