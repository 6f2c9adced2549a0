"""PiSSA (Meng et al. 2024; place 3 of figure 1, the weights): LoRA that starts at the principal part of W itself.

    dW = s (B A - B₀ A₀),    s B₀ A₀ = the best approximation of W of rank r, by its SVD U S Vᵀ

A = A₀ = √(S / s) Vᵀ and B = B₀ = U √(S / s) at the start, so dW starts at zero, up to rounding, and the first gradient
step moves both along W's principal directions. The paper replaces the base's W by W - s B₀ A₀; here the base is not
written to, and a LoRA of rank 2 r is saved, with [A; A₀] as A and [B, -B₀] as B.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from minillm.adapt.low_rank import AdaptedMatrix, LowRank, Matrix, Update
from minillm.adapt.surgery import trained_dtype
from minillm.operations import dropout, lora
from minillm.runtime.device import decomposable
from minillm.shapes import Float


class PiSSALinear(AdaptedMatrix):
    """A frozen Linear and its update, a LoRA of rank 2 r: 12 N R (I + O) FLOPs per step more than the Linear."""

    first_a: Tensor
    first_b: Tensor

    def __init__(self, matrix: Matrix, update: Update, start: Mapping[str, Tensor] | None = None):
        super().__init__(matrix, update, start)
        factors = self._principal() if start is None else start
        (a, first_a), (b, first_b) = factors["a"].chunk(2), factors["b"].chunk(2, 1)
        self.a, self.b = self.trained(a), self.trained(b)
        self.register_buffer("first_a", self.trained(first_a).detach())
        self.register_buffer("first_b", self.trained(first_b).detach())

    @torch.no_grad()
    def _principal(self) -> dict[str, Tensor]:
        wide = decomposable(self.weight.to(trained_dtype(self.weight)))
        left, singular, right = torch.linalg.svd(wide, full_matrices=False)
        root = (singular[: self.rank] / self.scale).sqrt()
        a, b = root[:, None] * right[: self.rank], left[:, : self.rank] * root
        return {"a": torch.cat((a, a)), "b": torch.cat((b, -b), 1)}

    @classmethod
    def shapes(cls, rows: int, width: int, rank: int) -> dict[str, tuple[int, ...]]:
        return super().shapes(rows, width, 2 * rank)

    def factors(self) -> tuple[Float[Tensor, "R I"], Float[Tensor, "O R"]]:
        """[A; A₀] and [B, -B₀]."""
        return torch.cat((self.a, self.first_a)), torch.cat((self.b, self.first_b), 1)

    def state(self) -> dict[str, Tensor]:
        a, b = self.factors()
        return super().state() | {"a": a.detach(), "b": b.detach()}

    def forward(self, hidden: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        dropped = dropout(hidden, self.dropout) if self.training and self.dropout else None
        a, b = self.factors()
        return lora(hidden, self.weight, self.bias, a, b, self.scale, dropped)

    def change(self) -> Float[Tensor, "O I"]:
        a, b = self.factors()
        return self.scale * b @ a


class PiSSA(LowRank):
    """PiSSA of the matrices that `targets` name: Linears of the blocks, and the head. Arguments as in `LowRank`.

    Seam: linear layers. Equal to the base at the start, up to rounding. `state()` is a LoRA's, of twice the rank.
    """

    layers: ClassVar = {nn.Linear: PiSSALinear}
