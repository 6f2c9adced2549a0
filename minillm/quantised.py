"""A frozen matrix in 4 or 8 bits, dequantised where it is multiplied: the base of QLoRA (Dettmers et al. 2023).

32 numbers of a row share a scale and, in 4 bits, an offset in float16, as in GGUF's blocks Q4_1 and Q8_0:

    4 bits: w = offset + scale · q,  q = 0 ... 15       8 bits: w = scale · q,  q = -127 ... 127

which is 5 and 8.5 bits a weight. Numbers that come from such blocks are stored without loss. torch sees a tensor in
float32 on which every operation first computes the numbers, so that all methods and formulas are those of any other
matrix; `fast/linear.py` computes them again in the backward pass instead of keeping them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from minillm.errors import InputError
from minillm.shapes import Float

GROUP, LARGEST = 32, torch.finfo(torch.float16).max
BLOCK = 1024
aten = torch.ops.aten


class Quantised(Tensor):
    """The matrix. `codes` are the q, for 4 bits the second half of a group above the first; for 8 `offset` is None."""

    codes: Tensor  # (O, I) in int8, or (O, I / 2) in uint8
    scale: Float[Tensor, "O I//32"]
    offset: Float[Tensor, "O I//32"] | None

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor, offset: Tensor | None):
        shape = scale.shape[0], scale.shape[1] * GROUP
        found = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=codes.device)
        found.codes, found.scale, found.offset = codes, scale, offset
        return found

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.codes, self.scale, self.offset

    def data_ptr(self) -> int:
        """The place of the codes, which tells matrices apart."""
        return self.codes.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """Over the same codes, which do not change."""
        return memo.setdefault(id(self), nn.Parameter(Quantised(*self.parts), requires_grad=False))

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Quantised({tuple(self.shape)}, {8 if self.offset is None else 4} bits)"

    def dense(self, rows: Any = slice(None)) -> Float[Tensor, "*N I"]:
        """The numbers of some rows."""
        codes, scale = self.codes[rows], self.scale[rows].float()[..., None]
        if self.offset is None:  # a product of two dtypes would take 20 times as long
            return codes.float().unflatten(-1, (-1, GROUP)).mul_(scale).flatten(-2)
        groups = halves(codes, torch.float32)
        return groups.mul_(scale).add_(self.offset[rows].float()[..., None]).flatten(-2)

    def blocks(self) -> Iterator[Float[Tensor, "_ I"]]:
        """The numbers, a block of rows at a time, which stays in a CPU's cache."""
        return (self.dense(slice(start, start + BLOCK)) for start in range(0, len(self), BLOCK))

    def contiguous(self, *_: Any, **__: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The numbers, as they are written to a file."""
        return self.dense()

    def half(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """In float16, without a whole matrix in float32."""
        found = torch.empty(self.shape, dtype=torch.float16, device=self.device)
        for place, block in zip(found.split(BLOCK), self.blocks(), strict=True):
            place.copy_(block)
        return found

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (aten.detach.default, aten.alias.default):
            return cls(*args[0].parts)
        if func is aten._to_copy.default and (kwargs or {}).get("dtype") in (None, torch.float32):
            device, (codes, scale, offset) = (kwargs or {}).get("device"), args[0].parts
            return cls(codes.to(device), scale.to(device), None if offset is None else offset.to(device))
        if func is aten.embedding.default:
            return args[0].dense(args[1])
        if func._schema.is_mutable and isinstance(args[0], cls):
            raise InputError("quantised weights are frozen; train an adapter, or load the base without quantise")
        dense: Any = tree_map_only(cls, cls.dense, (tuple(args), dict(kwargs or {})))
        return func(*dense[0], **dense[1])


def quantised(matrix: Float[Tensor, "O I"], bits: int) -> Quantised:
    """The nearest numbers of this form. Raises InputError for a width that is no multiple of 32, and for numbers that
    exceed float16."""
    if matrix.shape[1] % GROUP:
        raise InputError(f"only rows of a multiple of {GROUP} numbers can be quantised, got {matrix.shape[1]}")
    groups = matrix.detach().float().unflatten(1, (-1, GROUP))
    least, most = groups.aminmax(dim=-1)
    if not max(-least.min(), most.max()) <= LARGEST:
        raise InputError(f"only weights up to {LARGEST:g} can be quantised")
    low, steps = (least, most - least) if bits == 4 else (None, torch.maximum(-least, most))
    scale = (steps / (15 if bits == 4 else 127)).half()
    inverse = torch.where(scale == 0, 0, 1 / scale.float())[..., None]
    if low is None:
        return Quantised((groups * inverse).round_().clamp_(-127, 127).to(torch.int8).flatten(1), scale, None)
    offset = low.half()
    codes = ((groups - offset.float()[..., None]) * inverse).round_().clamp_(0, 15).to(torch.uint8)
    first, second = codes.chunk(2, -1)
    return Quantised((first | second << 4).flatten(1), scale, offset)


def halves(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers q of 4 bits by group: (*N, I / 32, 32) from (*N, I / 2)."""
    found = torch.empty(*codes.shape[:-1], 2 * codes.shape[-1] // GROUP, GROUP, dtype=dtype, device=codes.device)
    pairs = codes.unflatten(-1, (-1, GROUP // 2))
    found[..., : GROUP // 2], found[..., GROUP // 2 :] = pairs & 15, pairs >> 4
    return found


def in_bits(name: str, tensor: Tensor, bits: int) -> Tensor:
    """How `minillm.load` keeps the tensor of this name: matrices of the blocks in `bits`, embeddings and head in 8, and
    those whose rows are no multiple of 32 numbers as they are."""
    if tensor.dim() != 2 or name == "positions.weight" or tensor.shape[1] % GROUP:
        return tensor
    return nn.Parameter(quantised(tensor, bits if name.startswith("blocks.") else 8), requires_grad=False)
