"""LoRA (Hu et al. 2021; place 3 of figure 1, the weights): W stays frozen, a low-rank dW = s B A is trained.

    x Wᵀ + c + s (x Aᵀ) Bᵀ,    s = alpha / r

A starts uniform (Kaiming), B at zero, so that dW starts at zero and the adapted decoder is the base, bit for bit. Only
A and B are saved: we only publish dW. The arithmetic of one Linear is in `ops/lora.py`, the options in `low_rank.py`.
"""

from abc import ABC
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from minillm.adapt.adapted_matrix import AdaptedMatrix, Matrix, Update
from minillm.adapt.low_rank import LowRank
from minillm.adapt.surgery import matrices
from minillm.decoder import Decoder
from minillm.operations import dropout, embedding, lora
from minillm.shapes import Float, Int


class LoRAMatrix(AdaptedMatrix, ABC):
    """W + s B A, however it is read."""

    def __init__(self, matrix: Matrix, update: Update, start: Mapping[str, Tensor] | None = None):
        super().__init__(matrix, update, start)
        factors = self.fresh_factors(update.rank) if start is None else start
        self.a, self.b = self.trained(factors["a"]), self.trained(factors["b"])

    @staticmethod
    def shapes(rows: int, width: int, rank: int) -> dict[str, tuple[int, ...]]:
        return {"a": (rank, width), "b": (rows, rank)}

    def change(self) -> Float[Tensor, "O I"]:
        return self.scale * self.b @ self.a


class LoRALinear(LoRAMatrix):
    """A frozen Linear with its update: 6 N R (I + O) FLOPs a step more than it."""

    def forward(self, hidden: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        dropped = dropout(hidden, self.dropout) if self.training and self.dropout else None
        return lora(hidden, self.weight, self.bias, self.a, self.b, self.scale, dropped)


class LoRAEmbedding(LoRAMatrix):
    """A frozen table with its update: row `ids` of W + s B A. Dropout is for what A reads, and ids are not dropped."""

    def forward(self, ids: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T D"]:
        hidden = embedding(ids, self.weight)
        return hidden + (F.linear(embedding(ids, self.b), self.a.T) * self.scale).to(hidden.dtype)


class LoRA(LowRank):
    """Low-rank updates, as `LowRank` takes them. Seam: LINEARS. Equal to the base at the start.

    Beside the Linears of the blocks `targets` may name `head`, `embed` and (learned) `positions`. A tied head has two
    sides: an update of one of them is not the other's.
    """

    @staticmethod
    def candidates(body: Decoder) -> Mapping[str, Matrix]:
        return matrices(body)

    @staticmethod
    def layer(matrix: Matrix) -> type[AdaptedMatrix]:
        return LoRALinear if isinstance(matrix, nn.Linear) else LoRAEmbedding
