"""DoRA (Liu et al. 2024; place 3 of figure 1, the weights): LoRA for the direction of each row of W, m for its norm.

    W' = m (W + s B A) / |W + s B A|,    |.| the norm of each row: one number m per output

The paper writes W with a column per output; here an output is a row. m starts at |W|, so the adapted decoder is the
base. The gradient goes through the norm too. The paper (section 4.3) treats the norm as a constant in the backward pass
to save the memory of W + s B A; `ops/dora.py` computes it without forming that matrix.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from minillm.adapt.lora import LoRAMatrix
from minillm.adapt.low_rank import LowRank, Matrix, Update
from minillm.operations import dropout, lora, updated_norms
from minillm.shapes import Float


class DoRALinear(LoRAMatrix):
    """A frozen Linear with trained row directions and norms: LoRA's FLOPs, and 4 R I O + 6 R² (I + O) for the norms."""

    def __init__(self, matrix: Matrix, update: Update, start: Mapping[str, Tensor] | None = None):
        super().__init__(matrix, update, start)
        self.magnitude = self.trained(self._norms() if start is None else start["magnitude"])

    @classmethod
    def shapes(cls, rows: int, width: int, rank: int) -> dict[str, tuple[int, ...]]:
        return super().shapes(rows, width, rank) | {"magnitude": (rows,)}

    def _norms(self) -> Float[Tensor, "O"]:
        return updated_norms(self.weight, self.a, self.b, self.scale)

    def forward(self, hidden: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        dropped = dropout(hidden, self.dropout) if self.training and self.dropout else None
        turned = lora(hidden, self.weight, None, self.a, self.b, self.scale, dropped)
        # The norms stay in float32: in bfloat16 a change of less than 0.4 % would be lost.
        out = turned * (self.magnitude / self._norms())
        return (out if self.bias is None else out + self.bias).to(turned.dtype)

    def change(self) -> Float[Tensor, "O I"]:
        stretch = (self.magnitude / self._norms())[:, None]
        return stretch * (self.weight + self.scale * self.b @ self.a) - self.weight


class DoRA(LowRank):
    """DoRA of the matrices that `targets` name: Linears of the blocks, and the head. Arguments as in `LowRank`.

    Seam: linear layers. Equal to the base at the start, up to rounding.
    """

    layers: ClassVar = {nn.Linear: DoRALinear}
