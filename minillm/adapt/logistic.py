"""Logistic regression on features (place 4 of figure 1, on top of the output): p(c | h) = softmax(W h + b).

    min ½ |W|² + C Σ wᵢ cross-entropy(yᵢ | hᵢ)

Convex; W is unique, b up to a constant added to all classes. Solved by L-BFGS in float64 for any dtype of features and
W. Features are processed in pieces, so that those of a memory-mapped file need no more memory than one piece. The
weights wᵢ are 1, one number per class, or "balanced": N / (classes x texts of the class).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.errors import InputError
from minillm.shapes import Float, Int

PIECE = 4096


class Logistic(nn.Module):
    """Multinomial logistic regression. `c` is the inverse strength of the penalty.

    With `standardise`, W is penalised as if features had mean 0 and standard deviation 1 over the training rows (a
    decoder's have scales that differ by a factor of 100), then rescaled to the features as given. Raises InputError for
    fewer than two classes and for a `class_weight` that is neither "balanced" nor one number per class.
    """

    def __init__(
        self, width: int, classes: int, c: float | int = 1.0, class_weight: str | Sequence[float | int] | None = None,
        standardise: bool = False,
    ):  # fmt: skip
        super().__init__()
        if classes < 2:
            raise InputError(f"a classifier needs at least 2 classes, got {classes}")
        if class_weight not in (None, "balanced") and (
            isinstance(class_weight, str) or len(class_weight) != classes or min(class_weight) < 0
        ):
            raise InputError(f"class_weight must be 'balanced' or {classes} numbers >= 0, got {class_weight!r}")
        self.classes, self.c, self.class_weight, self.standardise = classes, c, class_weight, standardise
        self.weight, self.bias = nn.Parameter(torch.zeros(classes, width)), nn.Parameter(torch.zeros(classes))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return F.linear(features, self.weight, self.bias)

    @torch.no_grad()
    def scores(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """The logits of many texts, on the CPU."""
        return torch.cat([self(piece.to(self.weight)).cpu() for piece in features.split(PIECE)])

    def fit(self, features: Float[Tensor, "_ D"], labels: Int[Tensor, "N"]) -> None:
        """Fit W and b, from zero. Raises InputError for labels that are not class numbers, or all the same."""
        weights = self._row_weights(labels)
        zero = torch.zeros(features.shape[1], dtype=torch.float64)
        mean, spread = _mean_and_spread(features) if self.standardise else (zero, zero + 1)
        weight, bias = (torch.zeros(side.shape).double().requires_grad_() for side in (self.weight, self.bias))
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=2000, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            loss = weight.square().sum() / 2
            loss.backward()
            for rows, targets, each in _pieces(features, labels, weights):
                plain = weight / spread
                logits = F.linear(rows, plain, bias - plain @ mean)
                fit = self.c * (each * F.cross_entropy(logits, targets, reduction="none")).sum()
                fit.backward()
                loss = loss + fit.detach()
            return loss

        optimizer.step(objective)
        with torch.no_grad():
            self.weight.copy_((weight / spread).to(self.weight.dtype))
            self.bias.copy_((bias - (weight / spread) @ mean).to(self.bias.dtype))

    def _row_weights(self, labels: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= self.classes:
            raise InputError(f"labels must be integers in [0, {self.classes - 1}], one per row")
        counts = torch.bincount(labels.cpu(), minlength=self.classes)
        if (counts > 0).sum() < 2:
            raise InputError("all training rows have the same label; a classifier needs rows of at least 2 classes")
        if self.class_weight == "balanced":
            return (len(labels) / (self.classes * counts.double()))[labels.cpu()]
        return torch.tensor(self.class_weight or [1] * self.classes, dtype=torch.float64)[labels.cpu()]


def _mean_and_spread(features: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "D"], Float[Tensor, "D"]]:
    """Mean and standard deviation of each feature in float64; 1 instead of the standard deviation of a constant one."""
    mean = torch.stack([rows.sum(0) for (rows,) in _pieces(features)]).sum(0) / len(features)
    squares = torch.stack([(rows - mean).square().sum(0) for (rows,) in _pieces(features)])
    spread = (squares.sum(0) / len(features)).sqrt()
    return mean, spread.where(spread > 0, 1.0)


def _pieces(features: Float[Tensor, "_ D"], *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Up to `PIECE` rows at a time, in float64 on the CPU, with their part of the others."""
    if any(len(other) != features.shape[0] for other in others):
        raise InputError(f"{features.shape[0]} rows of features do not fit {len(others[0])} labels")
    for start in range(0, features.shape[0], PIECE):
        piece = slice(start, start + PIECE)
        yield features[piece].cpu().double(), *(other[piece].cpu() for other in others)
