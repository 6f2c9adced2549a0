"""DoRA (Liu et al. 2024; place 3 of figure 1, the weights): LoRA turns W's rows, their lengths are trained separately.

    W' = m (W + s B A) / |W + s B A|,    |.| the length of each row: one number m per output

The paper writes W with a column per output, ours has a row. m starts at |W|, so the adapted decoder is the base. The
gradient goes through the length too. The paper (section 4.3) holds the length constant there, to save the memory of
W + s B A; `ops/dora.py` computes it without forming that matrix.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from minillm.adapt.lora import initial_factors
from minillm.adapt.low_rank import AdaptedMatrix, LowRank, Matrix, Update
from minillm.operations import dropout, lora, updated_norms
from minillm.shapes import Float


class DoRALinear(AdaptedMatrix):
    """A frozen Linear whose rows are turned and stretched: LoRA's FLOPs, and 4 R I O + 6 R² (I + O) for the lengths."""

    def __init__(self, matrix: Matrix, update: Update, start: Mapping[str, Tensor] | None = None):
        super().__init__(matrix, update, start)
        factors = initial_factors(self.weight, update.rank) if start is None else start
        self.a, self.b = self.trained(factors["a"]), self.trained(factors["b"])
        self.magnitude = self.trained(self._norms() if start is None else start["magnitude"])

    @classmethod
    def shapes(cls, rows: int, width: int, rank: int) -> dict[str, tuple[int, ...]]:
        return super().shapes(rows, width, rank) | {"magnitude": (rows,)}

    def _norms(self) -> Float[Tensor, "O"]:
        return updated_norms(self.weight, self.a, self.b, self.scale)

    def forward(self, hidden: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        dropped = dropout(hidden, self.dropout) if self.training and self.dropout else None
        turned = lora(hidden, self.weight, None, self.a, self.b, self.scale, dropped)
        # In half precision a stretch by less than 0.4 % would be lost.
        out = turned * (self.magnitude / self._norms())
        return (out if self.bias is None else out + self.bias).to(turned.dtype)

    def change(self) -> Float[Tensor, "O I"]:
        stretch = (self.magnitude / self._norms())[:, None]
        return stretch * (self.weight + self.scale * self.b @ self.a) - self.weight


class DoRA(LowRank):
    """Updates of direction and magnitude, with the arguments of `LowRank`, of the Linears of the blocks and the head.

    Seam: LINEARS. Equal to the base at the start, to rounding.
    """

    @staticmethod
    def layer(matrix: Matrix) -> type[AdaptedMatrix] | None:
        return DoRALinear if isinstance(matrix, nn.Linear) else None
