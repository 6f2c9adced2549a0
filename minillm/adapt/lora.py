"""LoRA (Hu et al. 2021; place 3 of figure 1, the weights): W stays frozen, a low-rank dW = s B A is trained.

    x Wᵀ + bias + s (x Aᵀ) Bᵀ,    s = alpha / r

A has r rows and B has r columns. A starts uniform (Kaiming) and B at zero, so dW starts at zero and the adapted decoder
is the base, bit for bit. Only A and B are saved. Merged, the layer is a plain matrix again, W + s B A.

The arithmetic of one Linear is `lora` in `ops/lora.py`. The rest (which matrices the targets name, checks, saving) is
in `low_rank.py`: `trained` makes a parameter from a value, `merged` adds `change` to W.
"""

import math
from abc import ABC
from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from minillm.adapt.low_rank import AdaptedMatrix, LowRank, Matrix, Update
from minillm.adapt.surgery import trained_dtype
from minillm.decoder import Embedding
from minillm.operations import dropout, embedding, lora
from minillm.shapes import Float, Int


def initial_factors(weight: Float[Tensor, "O I"], rank: int) -> dict[str, Tensor]:
    """A uniform, B zero: dW = 0, and in the first step only B has a non-zero gradient."""
    rows, width = weight.shape
    a, b = (weight.new_zeros(shape, dtype=trained_dtype(weight)) for shape in ((rank, width), (rows, rank)))
    return {"a": nn.init.kaiming_uniform_(a, a=math.sqrt(5)), "b": b}


class LoRAMatrix(AdaptedMatrix, ABC):
    """A frozen W with its A and B."""

    def __init__(self, matrix: Matrix, update: Update, start: Mapping[str, Tensor] | None = None):
        super().__init__(matrix, update, start)
        factors = initial_factors(self.weight, update.rank) if start is None else start
        self.a, self.b = self.trained(factors["a"]), self.trained(factors["b"])

    def change(self) -> Float[Tensor, "O I"]:
        """dW = s B A: `merged()` is a plain matrix of W + dW."""
        return self.scale * self.b @ self.a


class LoRALinear(LoRAMatrix):
    """A frozen Linear with its update: 6 N R (I + O) FLOPs per step more than the Linear."""

    def forward(self, hidden: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        dropped = dropout(hidden, self.dropout) if self.training and self.dropout else None
        return lora(hidden, self.weight, self.bias, self.a, self.b, self.scale, dropped)


class LoRAEmbedding(LoRAMatrix):
    """A frozen embedding table with its update: rows `ids` of W + s B A, without dropout."""

    def forward(self, ids: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T D"]:
        hidden = embedding(ids, self.weight)
        return hidden + (F.linear(embedding(ids, self.b), self.a.T) * self.scale).to(hidden.dtype)


class LoRA(LowRank):
    """Low-rank updates, with the arguments of `LowRank`. Seam: linear layers. Equal to the base at the start.

    Besides the Linears of the blocks, `targets` may name `head`, `embed` and (learned) `positions`. An update of one
    side of a tied head does not change the other side.
    """

    layers: ClassVar = {nn.Linear: LoRALinear, Embedding: LoRAEmbedding}
