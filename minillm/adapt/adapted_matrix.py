"""What takes a matrix's place in an adapted body: the frozen W, and an update dW that is computed beside it.

`lora.py`, `dora.py` and `pissa.py` say what dW is. Whatever it is, it can be formed, merged into a new matrix, and
dropped again, for W itself is never written to.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minillm.adapt.surgery import frozen, replace
from minillm.decoder import Decoder, Embedding, Linear
from minillm.shapes import Float

Matrix = nn.Linear | Embedding


class Update(NamedTuple):
    """How one matrix is adapted: with dW of this rank at most, times this scale."""

    rank: int
    scale: float
    dropout: int | float
    train_bias: bool


class AdaptedMatrix(nn.Module, ABC):
    """A frozen matrix and its update. `start` holds what `kept` gave of one; without it the update begins anew."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, matrix: Matrix, update: Update, start: Mapping[str, Tensor] | None):
        super().__init__()
        self.kind, self.scale, self.dropout = type(matrix), update.scale, update.dropout
        self.weight, self.bias = matrix.weight, getattr(matrix, "bias", None)
        self.trains_bias = update.train_bias and self.bias is not None
        if update.train_bias and self.bias is not None:
            self.frozen_bias = self.bias
            self.bias = self.trained(self.bias if start is None else start["bias"])

    @property
    def wide(self) -> torch.dtype:
        """The update keeps float32 (or float64) where the frozen matrix is held in half precision."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    def trained(self, value: Tensor) -> nn.Parameter:
        """A parameter that begins as a copy of a value."""
        return nn.Parameter(value.detach().to(self.weight.device, self.wide, copy=True))

    def fresh_factors(self, rank: int) -> dict[str, Tensor]:
        """A uniform (Kaiming), B zero: dW = 0, and the first gradient is B's alone."""
        rows, width = self.weight.shape
        a = self.weight.new_empty(rank, width, dtype=self.wide)
        return {
            "a": nn.init.kaiming_uniform_(a, a=math.sqrt(5)),
            "b": self.weight.new_zeros(rows, rank, dtype=self.wide),
        }

    @staticmethod
    @abstractmethod
    def shapes(rows: int, width: int, rank: int) -> dict[str, tuple[int, ...]]:
        """The shapes of what `kept` gives of a matrix, its bias apart."""

    @abstractmethod
    def change(self) -> Float[Tensor, "O I"]:
        """dW, in the update's dtype."""

    def kept(self) -> dict[str, Tensor]:
        """What is saved of the update, by name."""
        rows, width = self.weight.shape
        names = [*self.shapes(rows, width, rank=1), *(("bias",) if self.trains_bias else ())]
        return {name: getattr(self, name).detach() for name in names}

    def merged(self) -> Matrix:
        """W + dW as a matrix of the replaced one's kind and dtype. It shares nothing with it."""
        with torch.no_grad():
            weight = (self.weight + self.change()).to(self.weight.dtype)
            bias = None if self.bias is None else nn.Parameter(self.bias.to(weight.dtype, copy=True))
        return self._plain(nn.Parameter(weight), bias)

    def unadapted(self) -> Matrix:
        """The replaced matrix again, of the very same parameters: a tied one stays tied."""
        return self._plain(self.weight, self.frozen_bias if self.trains_bias else self.bias)

    def _plain(self, weight: Tensor, bias: Tensor | None) -> Matrix:
        rows, width = weight.shape
        with torch.device("meta"):
            plain = Embedding(rows, width) if self.kind is Embedding else Linear(width, rows, bias is not None)
        for name, parameter in (("weight", weight), ("bias", bias)):
            if parameter is not None:
                setattr(plain, name, parameter)
        return plain


def adapted_matrices(body: Decoder) -> dict[str, AdaptedMatrix]:
    """The adapted matrices of a body by path."""
    return {path: module for path, module in body.named_modules() if isinstance(module, AdaptedMatrix)}


def unadapted(body: Decoder) -> Decoder:
    """The frozen body as it was before its matrices were adapted, over the same weights."""
    base = frozen(body)
    for path, matrix in adapted_matrices(base).items():
        replace(base, [path], lambda _, matrix=matrix: matrix.unadapted())
    return base
