"""Calls of every kernel, forward and backward, at its typical sizes, to compile ahead of time.

Nothing is computed there: only dtypes, widths and the alignment of the tensors matter.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from minillm.kernels import attention, feed_forward, linear_cross_entropy, lora, lora_by_row, norm, positions
from minillm.operations import Prefix


class Specimen(NamedTuple):
    """A call for a dtype, and the kernels that must use tensor cores in half precision."""

    run: Callable[[torch.dtype], None]
    multiplies: tuple[str, ...] = ()


def tensors(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def _norms(width: int) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        hidden, weight, bias = tensors(dtype, (64, width), (width,), (width,))
        norm.layer_norm(hidden, weight, bias, 1e-5).sum().backward()
        norm.rms_norm(hidden, weight, 1e-5).sum().backward()

    return run


def _loss(vocabulary: int) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        hidden, weight = tensors(dtype, (2, 16), (vocabulary, 16))
        linear_cross_entropy.linear_cross_entropy(hidden, weight, torch.tensor([0, 1])).backward()

    return run


def _non_linearities(dtype: torch.dtype) -> None:
    gate, up = tensors(dtype, (64, 1536), (64, 1536))
    feed_forward.gelu(up).sum().backward()
    feed_forward.swiglu(gate, up).sum().backward()


def _rotary(width: int, tables: torch.dtype) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        (projected,) = tensors(dtype, (2, 16, 9 * width))
        cos, sin = torch.zeros(2, 2, 16, width // 2, dtype=tables)
        vectors = projected.unflatten(-1, (9, width)).transpose(1, 2)
        positions.rotary(vectors, cos, sin).mul(2.0).sum().backward()

    return run


def _lora(width: int, rank: int) -> Callable[[torch.dtype], None]:
    """A long batch with one adapter, and a short one with two; the factors are float32."""

    def run(dtype: torch.dtype) -> None:
        weight, bias, x, rows = tensors(dtype, (width, width), (width,), (8192, width), (2, 64, width))
        a, b = tensors(torch.float32, (2, rank, width), (2, width, rank))
        lora.lora(x, weight, None, a[0], b[0], 0.5).sum().backward()
        lora_by_row.lora_by_row(rows, weight, bias, a, b, torch.arange(2)).sum().backward()

    return run


def _attention(heads: int, groups: int, width: int, padded: bool, queries: int = 256) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        text, prompt = (2, groups, 256, width), (1, groups, 32, width)
        query, key, value, *prefix = tensors(dtype, (2, heads, queries, width), text, text, prompt, prompt)
        mask = torch.ones(2, 256, dtype=torch.bool) if padded else None
        attention.attention(query, key, value, mask=mask, prefix=Prefix(*prefix) if padded else None).sum().backward()

    return run


ATTENTION = ("_forward_kernel", "queries_kernel", "keys_kernel")
LORA = ("_update_kernel", "_stripes_kernel")
SPECIMENS = {
    "norms of 576": Specimen(_norms(576)),
    "norms of 4096": Specimen(_norms(4096)),
    "loss over 50257": Specimen(_loss(50_257)),
    "loss over 131072": Specimen(_loss(131_072)),
    "non-linearities": Specimen(_non_linearities),
    "rotary, heads of 64": Specimen(_rotary(64, torch.float32)),
    "rotary, heads of 128": Specimen(_rotary(128, torch.bfloat16)),
    "LoRA of rank 8": Specimen(_lora(576, 8), LORA),
    "LoRA of rank 64": Specimen(_lora(576, 64), LORA),
    "attention, heads of 64": Specimen(_attention(4, 4, 64, False), ATTENTION),
    "attention, heads of 64 in groups, padding, a prefix": Specimen(_attention(9, 3, 64, True), ATTENTION),
    "attention, heads of 128 in groups, padding, a prefix": Specimen(_attention(8, 2, 128, True), ATTENTION),
    "attention, heads of 80": Specimen(_attention(2, 2, 80, True), ATTENTION),
    "attention, one query": Specimen(_attention(9, 3, 64, True, queries=1), ATTENTION),
}
