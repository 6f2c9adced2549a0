"""The rms norm in CUDA C++, forward and backward: read `norm.cu` next to `kernels/norm.py`, which has the formulas.

`operations` never chooses it: a norm is bound by memory traffic, Triton's kernel moves as few bytes, and Triton needs
no compiler. This one is compiled by nvcc on its first call, on a machine with a GPU. Not timed yet.
"""

import ctypes
import shutil
import subprocess
from ctypes import c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from minillm.errors import InputError

SOURCE = Path(__file__).parent / "norm.cu"
STRIPES = 256
"""Maximum number of blocks of the backward pass, as in `kernels/norm.py`."""
WIDEST = 8192
"""Elements that a block holds: 256 threads with 32 each."""


@cache
def compiled() -> ctypes.CDLL:
    """The launchers at the end of `norm.cu`. Raises InputError if they cannot be compiled or run."""
    if not torch.cuda.is_available():
        raise InputError("the CUDA C++ kernels run on a GPU, and CUDA finds none here")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise InputError("compiling the CUDA C++ kernels needs nvcc, which is part of the CUDA toolkit")
    major, minor = torch.cuda.get_device_capability()
    return build([nvcc, "-O3", f"-arch=sm_{major}{minor}", "-Xcompiler", "-fPIC"], SOURCE)


def build(compiler: list[str], source: Path) -> ctypes.CDLL:
    """The source as a shared library. Raises InputError with the compiler's message if it does not compile."""
    with TemporaryDirectory() as directory:
        library = str(Path(directory, "norm.so"))
        done = subprocess.run([*compiler, "-shared", source, "-o", library], capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{compiler[0]} cannot compile {source}: {done.stderr}")
        return ctypes.CDLL(library)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    if hidden.dtype not in (torch.float32, torch.bfloat16) or weight.dtype != hidden.dtype:
        raise InputError(
            f"hidden and weight must both be float32 or both bfloat16, got {hidden.dtype} and {weight.dtype}"
        )
    if len(weight) > WIDEST:
        raise InputError(f"the width must be at most {WIDEST}, got {len(weight)}")
    return _RMSNorm.apply(hidden.contiguous(), weight.contiguous(), eps)  # pyright: ignore[reportReturnType]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows, out = hidden.shape[:-1].numel(), torch.empty_like(hidden)
        inverse = hidden.new_empty(rows, dtype=torch.float32)
        if rows:
            sizes = c_int64(rows), len(weight), c_float(eps)
            _launch(compiled().rms_norm_forward, [hidden, weight, out, inverse], *sizes)
        ctx.save_for_backward(hidden, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (hidden, weight, inverse), dout = ctx.saved_tensors, gradients[0].contiguous()
        rows, dhidden = len(inverse), torch.empty_like(hidden)
        stripe = max(1, -(-rows // STRIPES))
        weight_sums = weight.new_empty((-(-rows // stripe), len(weight)), dtype=torch.float32)
        if rows:
            sizes = c_int64(rows), c_int64(stripe), c_int64(len(weight_sums)), len(weight)
            _launch(compiled().rms_norm_backward, [dout, hidden, weight, inverse, dhidden, weight_sums], *sizes)
        return dhidden, weight_sums.sum(0).to(weight.dtype), None


def _launch(launcher: Any, tensors: list[Tensor], *sizes: Any) -> None:
    """Pass pointers, sizes, the dtype and torch's current CUDA stream. Raises RuntimeError for an error of CUDA."""
    first = tensors[0]
    stream = torch.cuda.current_stream(first.device).cuda_stream if first.is_cuda else 0
    pointers = [c_void_p(tensor.data_ptr()) for tensor in tensors]
    with torch.cuda.device_of(first):
        error = launcher(*pointers, *sizes, first.dtype == torch.bfloat16, c_void_p(stream))
    if error:
        raise RuntimeError(f"{launcher.__name__} failed with CUDA error {error}")
