"""The rms norm in CUDA C++, forward and backward: read `norm.cu` next to `kernels/norm.py`, which has the formulas.

`operations` never chooses it: a norm is bound by memory traffic, Triton's kernel moves as few bytes, and Triton needs
no compiler. This one is compiled by nvcc on its first call, on a machine with a GPU. Not timed yet.
"""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.errors import InputError

HERE = Path(__file__).parent
STRIPES = 256
"""Maximum number of blocks of the backward pass, as in `kernels/norm.py`."""
WIDEST = 8192
"""Elements that a block holds: 256 threads with 32 each."""


@cache
def compiled() -> Any:
    """The launchers, `forward` and `backward`. Raises InputError if they cannot be compiled or run."""
    if not torch.cuda.is_available():
        raise InputError("the CUDA C++ kernels run on a GPU, and CUDA finds none here")
    if not all(map(shutil.which, ("nvcc", "ninja"))):
        raise InputError("compiling the CUDA C++ kernels needs nvcc (the CUDA toolkit) and ninja")
    from torch.utils import cpp_extension

    return cpp_extension.load("minillm_rms_norm", [str(HERE / "norm.cu"), str(HERE / "binding.cpp")])


@torch.library.custom_op("minillm::cuda_rms_norm", mutates_args=())
def _rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(out, 1 / deviation)."""
    _check(hidden, weight)
    hidden, weight = hidden.contiguous(), weight.contiguous()
    out, inverse = _fake(hidden, weight, eps)
    if inverse.numel():
        with torch.cuda.device_of(hidden):
            compiled().forward(hidden, weight, out, inverse, eps, _stream(hidden))
    return out, inverse


@_rms_norm.register_fake
def _fake(hidden: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out = hidden.new_empty(hidden.shape)
    return out, hidden.new_empty(hidden.shape[:-1].numel(), dtype=torch.float32)


@torch.library.custom_op("minillm::cuda_rms_norm_backward", mutates_args=())
def _rms_norm_backward(dout: Tensor, hidden: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of hidden and weight."""
    dout, hidden, weight = dout.contiguous(), hidden.contiguous(), weight.contiguous()
    rows = len(inverse)
    stripe = max(1, -(-rows // STRIPES))
    dhidden = torch.empty_like(hidden)
    weight_sums = weight.new_empty((-(-rows // stripe), len(weight)), dtype=torch.float32)
    if rows:
        with torch.cuda.device_of(hidden):
            compiled().backward(dout, hidden, weight, inverse, dhidden, weight_sums, stripe, _stream(hidden))
    return dhidden, weight_sums.sum(0).to(weight.dtype)


@_rms_norm_backward.register_fake
def _(dout: Tensor, hidden: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _check(hidden: Tensor, weight: Tensor) -> None:
    if hidden.dtype not in (torch.float32, torch.bfloat16) or weight.dtype != hidden.dtype:
        raise InputError(
            f"hidden and weight must both be float32 or both bfloat16, got {hidden.dtype} and {weight.dtype}"
        )
    if len(weight) > WIDEST:
        raise InputError(f"the width must be at most {WIDEST}, got {len(weight)}")


def _stream(tensor: Tensor) -> int:
    """The current CUDA stream of torch."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, _ = inputs
    ctx.save_for_backward(hidden, weight, output[1])


def _differentiate(ctx: Any, dout: Tensor, _: Any) -> tuple[Tensor, Tensor, None]:
    return *_rms_norm_backward(dout, *ctx.saved_tensors), None


_rms_norm.register_autograd(_differentiate, setup_context=_save)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _rms_norm(hidden, weight, eps)[0]
