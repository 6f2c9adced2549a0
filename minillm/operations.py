"""The operations of figure 1 as the decoder and the methods call them: chooses the implementation and the dtype.

Each operation has up to four implementations in files of the same name: `reference/norm.py` is the mathematics in
numpy, `ops/norm.py` the formula in torch, `fast/norm.py` is optimised for a CPU, and `kernels/norm.py` for a GPU. The
backend that is forced (`with minillm.backend("plain")`) is used, else the kernel where it was measured to be faster on
this GPU, else the fast implementation. Each thread has its own choice; `bound` carries it into a later call.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from minillm import fast, ops
from minillm.errors import InputError
from minillm.ops.attention import Prefix, attention_weights, visible_keys
from minillm.ops.dropout import dropout
from minillm.ops.embedding import embedding
from minillm.ops.feed_forward import relu
from minillm.ops.linear_cross_entropy import IGNORED
from minillm.ops.positions import rotary_tables, sinusoidal, token_positions
from minillm.ops.softmax import log_softmax, softmax
from minillm.shapes import Float, Int, Mask

__all__ = [
    "BACKENDS", "IGNORED", "Prefix", "attention", "attention_weights", "backend", "bound", "current_backend", "dropout",
    "embedding", "gelu", "layer_norm", "linear", "linear_cross_entropy", "log_softmax", "lora", "lora_by_row", "relu",
    "rms_norm", "rotary", "rotary_tables", "sinusoidal", "softmax", "swiglu", "token_positions", "updated_norms",
    "visible_keys",
]  # fmt: skip

BACKENDS = PLAIN, FAST, TRITON = "plain", "fast", "triton"
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Kernels sum in float32: float64 is left to torch."""
KERNEL_RANK = 64
"""A kernel holds x Aᵀ of its rows in registers: higher ranks are left to torch."""


class _Choice(threading.local):
    """The backend that this thread has forced. (torch.compile guards on an attribute, and not on a ContextVar.)"""

    def __init__(self):
        self.name: str | None = None
        self.asked: list[tuple[int, ...]] | None = None


_choice = _Choice()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """A context in which this thread computes every operation by the formula ("plain"), "fast" or by kernel ("triton").

    An operation without this implementation uses the next simpler one. Kernels run on a GPU, or on a CPU in triton's
    interpreter if TRITON_INTERPRET=1 was set before triton was imported. Raises InputError for another name, or if
    triton is not installed.
    """
    if name not in BACKENDS:
        raise InputError(f"the backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == TRITON and find_spec("triton") is None:
        raise InputError("triton is not installed, and the kernels need it: pip install 'minillm[kernels]' (Linux)")
    with _chosen(name):
        yield


@contextmanager
def _chosen(name: str | None) -> Iterator[None]:
    before, _choice.name = _choice.name, name
    try:
        yield
    finally:
        _choice.name = before


def current_backend() -> str | None:
    """The backend that is forced in this thread, if one is."""
    return _choice.name


def bound(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the current backend, for a later call in any thread: the recomputation of a block."""
    name = _choice.name

    def under_backend(*arguments: Any) -> Any:
        with _chosen(name):
            return function(*arguments)

    return under_backend


@contextmanager
def asked() -> Iterator[list[tuple[int, ...]]]:
    """A context that lists the sizes by which kernels that are forced would be chosen."""
    _choice.asked = found = []
    try:
        yield found
    finally:
        _choice.asked = None


def by_kernel(operation: str, tensor: Tensor, sizes: Callable[[], tuple[int, ...]]) -> bool:
    """Whether a kernel is forced, or was measured to be faster on this GPU at these sizes (computed only if needed)."""
    name = _choice.name
    if name is None and not tensor.is_cuda:
        return False
    if name in (PLAIN, FAST) or tensor.dtype not in KERNEL_DTYPES:
        return False
    if name == TRITON:
        if _choice.asked is not None:
            _choice.asked.append(sizes())
        return True
    from minillm.kernels._measured import faster

    return faster(tensor.device, operation, tensor.dtype, sizes())


def _torch() -> Any:
    return ops if _choice.name == PLAIN else fast


# Kernels are imported where they are called, because triton is optional and slow to import. They are imported by
# statements, because torch.compile does not trace `importlib`.


def linear(
    x: Float[Tensor, "*N I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None = None
) -> Float[Tensor, "*N O"]:
    """x Wᵀ + b, over the last axis."""
    return _torch().linear.linear(x, weight, bias)


def layer_norm(
    hidden: Float[Tensor, "*N D"], weight: Float[Tensor, "D"], bias: Float[Tensor, "D"], eps: float
) -> Float[Tensor, "*N D"]:
    """(x - mean x) / sqrt(var x + eps) · weight + bias, over the last axis."""
    if by_kernel("layer_norm", hidden, lambda: (hidden.shape[:-1].numel(), hidden.shape[-1])):
        from minillm.kernels import norm as kernels

        return kernels.layer_norm(hidden, weight, bias, eps)
    return _torch().norm.layer_norm(hidden, weight, bias, eps)


def rms_norm(hidden: Float[Tensor, "*N D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*N D"]:
    """x / sqrt(mean x² + eps) · weight, over the last axis."""
    if by_kernel("rms_norm", hidden, lambda: (hidden.shape[:-1].numel(), hidden.shape[-1])):
        from minillm.kernels import norm as kernels

        return kernels.rms_norm(hidden, weight, eps)
    return ops.norm.rms_norm(hidden, weight, eps)


def rotary(
    vectors: Float[Tensor, "B H T K"], cos: Float[Tensor, "*B T K//2"], sin: Float[Tensor, "*B T K//2"]
) -> Float[Tensor, "B H T K"]:
    """Rotate the pair (x[i], x[i + K/2]) by the angle of its position."""
    # The kernel has no gradient for the tables.
    if by_kernel("rotary", vectors, lambda: (vectors.numel(),)) and not (cos.requires_grad or sin.requires_grad):
        from minillm.kernels import positions as kernels

        return kernels.rotary(vectors, cos, sin)
    return ops.positions.rotary(vectors, cos, sin)


def attention(
    query: Float[Tensor, "B H T K"], key: Float[Tensor, "B G S K"], value: Float[Tensor, "B G S K"], *,
    mask: Mask[Tensor, "B S"] | None = None, prefix: Prefix | None = None, window: int | None = None,
    dropout_probability: float = 0.0,
) -> Float[Tensor, "B H T K"]:  # fmt: skip
    """Causal attention to the prefix and to the real tokens (`mask`), the last `window` of them, among the keys."""
    # The kernel has no window, no dropout and no packed rows.
    packed = mask is not None and mask.dtype != torch.bool
    by_torch = packed or window is not None or dropout_probability > 0
    if not by_torch and by_kernel("attention", query, lambda: _attention_sizes(query, key, mask, prefix)):
        from minillm.kernels import attention as kernels

        return kernels.attention(query, key, value, mask=mask, prefix=prefix)
    return _torch().attention.attention(
        query, key, value, mask=mask, prefix=prefix, window=window, dropout_probability=dropout_probability
    )


def _attention_sizes(query: Tensor, key: Tensor, mask: Tensor | None, prefix: Prefix | None) -> tuple[int, ...]:
    """Heads, queries, keys, head width, length of the prefix, elements of the mask."""
    heads, prompt = query.shape[:2].numel(), 0 if prefix is None or prefix.gate is not None else prefix.key.shape[2]
    return heads, query.shape[2], key.shape[2], query.shape[3], prompt, 0 if mask is None else mask.numel()


def gelu(up: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
    """x Φ(x) by its tanh approximation."""
    if by_kernel("gelu", up, lambda: (up.numel(),)):
        from minillm.kernels import feed_forward as kernels

        return kernels.gelu(up)
    return _torch().feed_forward.gelu(up)


def swiglu(gate: Float[Tensor, "*N F"], up: Float[Tensor, "*N F"]) -> Float[Tensor, "*N F"]:
    """gate σ(gate) · up."""
    if by_kernel("swiglu", gate, lambda: (gate.numel(),)):
        from minillm.kernels import feed_forward as kernels

        return kernels.swiglu(gate, up)
    return _torch().feed_forward.swiglu(gate, up)


def linear_cross_entropy(
    hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], labels: Int[Tensor, "N"]
) -> Float[Tensor, ""]:
    """-Σ log softmax(hidden Wᵀ)[label], in nats, summed over the labelled rows."""
    if by_kernel("linear_cross_entropy", hidden, lambda: (*hidden.shape, len(weight))):
        from minillm.kernels import linear_cross_entropy as kernels

        return kernels.linear_cross_entropy(hidden, weight, labels)
    return _torch().linear_cross_entropy.linear_cross_entropy(hidden, weight, labels)


def lora(
    x: Float[Tensor, "*N I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None,
    a: Float[Tensor, "R I"], b: Float[Tensor, "O R"], scale: int | float, dropped: Float[Tensor, "*N I"] | None = None,
) -> Float[Tensor, "*N O"]:  # fmt: skip
    """x Wᵀ + bias + scale (x Aᵀ) Bᵀ, where A multiplies `dropped`, x after dropout, if it is given.

    W is a constant; the bias gets a gradient if it needs one. Computed in the dtype of W, or in autocast's where W is
    float32; A, B and the bias may be held in a wider one.
    """
    dtype = _computed_in(weight)
    x, weight, dropped = _cast(x, dtype), _constant(weight, dtype), None if dropped is None else dropped.to(dtype)
    if a.shape[0] <= KERNEL_RANK and by_kernel("lora", x, lambda: (x.shape[:-1].numel(), *weight.shape, len(a))):
        from minillm.kernels import lora as kernels

        return kernels.lora(x, weight, bias, a, b, scale, dropped)
    bias, a, b = None if bias is None else bias.to(dtype), _cast(a, dtype), _cast(b, dtype)
    return _torch().lora.lora(x, weight, bias, a, b, scale, dropped)


def lora_by_row(
    x: Float[Tensor, "B T I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None,
    a: Float[Tensor, "M R I"], b: Float[Tensor, "M O R"], adapter: Int[Tensor, "B"],
) -> Float[Tensor, "B T O"]:  # fmt: skip
    """x Wᵀ + bias + (x Aᵀ) Bᵀ with A and B of adapter[i] for row i, and without an update where that is -1.

    Constants and dtypes are as in `lora`.
    """
    dtype = _computed_in(weight)
    x, weight = _cast(x, dtype), _constant(weight, dtype)
    if a.shape[1] <= KERNEL_RANK and by_kernel("lora_by_row", x, lambda: (*x.shape[:-1], *weight.shape, a.shape[1])):
        from minillm.kernels import lora_by_row as kernels

        return kernels.lora_by_row(x, weight, bias, a, b, adapter)
    bias, a, b = None if bias is None else bias.to(dtype), _cast(a, dtype), _cast(b, dtype)
    return _torch().lora_by_row.lora_by_row(x, weight, bias, a, b, adapter)


def updated_norms(
    weight: Float[Tensor, "O I"], a: Float[Tensor, "R I"], b: Float[Tensor, "O R"], scale: int | float
) -> Float[Tensor, "O"]:
    """The norm of each row of W + scale B A; W is a constant.

    Computed in the dtype of A and B even under autocast: sums in bfloat16 would be too inexact.
    """
    kind = weight.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        return ops.dora.updated_norms(_constant(weight, a.dtype), a, b, scale)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # The comparison takes a tenth of the microsecond that `to` takes to return the same tensor.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _constant(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return _cast(weight.detach() if weight.requires_grad else weight, dtype)


def _computed_in(weight: Tensor) -> torch.dtype:
    """The dtype of W, or autocast's where W is float32."""
    dtype, kind = weight.dtype, weight.device.type
    if dtype == torch.float32 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return dtype
