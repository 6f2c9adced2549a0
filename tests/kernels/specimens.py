"""Calls of every kernel, forward and backward, at the sizes that it is for: what is compiled ahead of time.

Nothing of them is computed there: only dtypes, widths and the alignment of the tensors matter.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from minillm.kernels import attention, norm
from minillm.ops.attention import Prefix


class Specimen(NamedTuple):
    """A call for a dtype, and the kernels in it that must multiply on tensor cores in half precision."""

    run: Callable[[torch.dtype], None]
    multiplies: tuple[str, ...] = ()


def tensors(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def _norms(width: int) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        hidden, update, weight, bias = tensors(dtype, (64, width), (64, width), (width,), (width,))
        for out in (
            norm.layer_norm(hidden, weight, bias, 1e-5),
            norm.rms_norm(hidden, weight, 1e-5),
            sum(norm.add_layer_norm(hidden, update, weight, bias, 1e-5)),
            sum(norm.add_rms_norm(hidden, update, weight, 1e-5)),
        ):
            out.sum().backward()

    return run


def _attention(heads: int, groups: int, width: int, padded: bool, queries: int = 256) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        text, prompt = (2, groups, 256, width), (1, groups, 32, width)
        query, key, value, *prefix = tensors(dtype, (2, heads, queries, width), text, text, prompt, prompt)
        mask = torch.ones(2, 256, dtype=torch.bool) if padded else None
        attention.attention(query, key, value, mask=mask, prefix=Prefix(*prefix) if padded else None).sum().backward()

    return run


ATTENTION = ("_forward_kernel", "queries_kernel", "keys_kernel")
SPECIMENS = {
    "norms of 576": Specimen(_norms(576)),
    "norms of 4096": Specimen(_norms(4096)),
    "attention, heads of 64": Specimen(_attention(4, 4, 64, False), ATTENTION),
    "attention, heads of 64 in groups, padding, a prefix": Specimen(_attention(9, 3, 64, True), ATTENTION),
    "attention, heads of 128 in groups, padding, a prefix": Specimen(_attention(8, 2, 128, True), ATTENTION),
    "attention, heads of 80": Specimen(_attention(2, 2, 80, True), ATTENTION),
    "attention, one query": Specimen(_attention(9, 3, 64, True, queries=1), ATTENTION),
}
