"""Heads: classifiers of features (place 4 of figure 1, on top of the output).

Each is fitted to the features h_i and labels y_i of N texts in float64, whatever dtype it is held in, and returns a
score for each class, of which the largest is its choice. Features are processed in pieces, so that for those of a
memory-mapped file all but the neighbours need no more memory than one piece.

    logistic     p(c | h) = softmax(W h + b)                        min ½ |W|² + C Σ wᵢ cross-entropy(yᵢ)
    ridge        W h + b, towards 1 for the class and -1 for others min Σ wᵢ |W hᵢ + b - tᵢ|² + alpha |W|²
    centroid     -|h - mean of the class's features|²
    neighbours   the share of the class among the k nearest hᵢ
    mlp          p(c | h) = softmax(W₂ tanh(W₁ h + b₁) + b₂)        as logistic, with both matrices in the penalty

The weights wᵢ are 1, one number a class, or "balanced": N / (classes x texts of the class).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.errors import InputError
from minillm.shapes import Float, Int

PIECE = 4096
ClassWeight = str | Sequence[float | int] | None


class Head(nn.Module, ABC):
    """A classifier of features. What it is built with is `settings`, in JSON's types."""

    def __init__(self, classes: int, **settings: Any):
        super().__init__()
        self.classes, self.settings = classes, settings

    @abstractmethod
    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """A score for each class."""

    @abstractmethod
    def fit(self, features: Float[Tensor, "_ D"], labels: Int[Tensor, "N"]) -> None:
        """Fit the head from its start. Raises InputError for labels that cannot be told apart."""

    @torch.no_grad()
    def scores(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """The scores of many texts, on the CPU."""
        home = next(tensor for tensor in [*self.parameters(), *self.buffers()])
        return torch.cat([self(piece.to(home)).cpu() for piece in features.split(PIECE)])


class Logistic(Head):
    """Multinomial logistic regression: convex, with one best answer. `c` is the penalty's inverse strength.

    With `standardise` the penalty weighs all features alike: it is put on W for features that are centred and divided
    by their spread over the training rows (a decoder's differ a hundredfold), and W is then that for plain ones.
    """

    def __init__(
        self, width: int, classes: int, c: float | int = 1.0, class_weight: ClassWeight = None,
        standardise: bool = False,
    ):  # fmt: skip
        super().__init__(classes, c=c, class_weight=class_weight, standardise=standardise)
        self.weight, self.bias = nn.Parameter(torch.zeros(classes, width)), nn.Parameter(torch.zeros(classes))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return F.linear(features, self.weight, self.bias)

    def reset(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def fit(self, features: Float[Tensor, "_ D"], labels: Int[Tensor, "N"]) -> None:
        if not self.settings["standardise"]:
            _descend(self, features, labels, iterations=2000)
            return
        mean, spread = _mean_and_spread(features)
        _descend(self, features, labels, iterations=2000, standard=(mean, spread))
        with torch.no_grad():
            weight = self.weight.double() / spread.to(self.weight.device)
            self.weight.copy_(weight)
            self.bias.sub_((weight @ mean.to(weight.device)).to(self.bias.dtype))


class MLP(Head):
    """One hidden layer of `hidden` tanh units. Not convex: `seed` decides where it starts, and so where it ends."""

    def __init__(
        self, width: int, classes: int, hidden: int = 32, c: float | int = 1.0, class_weight: ClassWeight = None,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__(classes, hidden=hidden, c=c, class_weight=class_weight, seed=seed)
        self.hidden, self.out = nn.Linear(width, hidden), nn.Linear(hidden, classes)
        self.reset()

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return self.out(self.hidden(features).tanh())

    @torch.no_grad()
    def reset(self) -> None:
        generator = torch.Generator().manual_seed(self.settings["seed"])
        for linear in (self.hidden, self.out):
            spread = linear.in_features**-0.5
            drawn = torch.randn(linear.weight.shape, generator=generator, dtype=torch.float64, device="cpu")
            linear.weight.copy_(spread * drawn)
            linear.bias.zero_()

    def fit(self, features: Float[Tensor, "_ D"], labels: Int[Tensor, "N"]) -> None:
        _descend(self, features, labels, iterations=300)


def _mean_and_spread(features: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "D"], Float[Tensor, "D"]]:
    """In float64. The spread of a feature that is the same for all rows is 1: it is left as it is."""
    mean = torch.stack([rows.double().cpu().sum(0) for rows in features.split(PIECE)]).sum(0) / len(features)
    squares = [(rows.double().cpu() - mean).square().sum(0) for rows in features.split(PIECE)]
    spread = (torch.stack(squares).sum(0) / len(features)).sqrt()
    return mean, spread.where(spread > 0, 1.0)


def _descend(
    head: Logistic | MLP, features: Float[Tensor, "_ D"], labels: Int[Tensor, "N"], iterations: int,
    standard: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """½ |matrices|² + c Σ wᵢ cross-entropy, to its (nearest) minimum by L-BFGS. Biases are not penalised.

    With `standard`, a mean and a spread, features are centred and divided by these.
    """
    weights = row_weights(labels, head.classes, head.settings["class_weight"])
    exact = copy.deepcopy(head).double().cpu()
    exact.reset()
    parameters = list(exact.parameters())
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=iterations, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def objective():
        optimizer.zero_grad()
        loss = torch.stack([matrix.square().sum() for matrix in parameters if matrix.dim() > 1]).sum() / 2
        loss.backward()
        for rows, targets, weight in _pieces(features, labels, weights):
            rows = rows if standard is None else (rows - standard[0]) / standard[1]
            fit = head.settings["c"] * (weight * F.cross_entropy(exact(rows), targets, reduction="none")).sum()
            fit.backward()
            loss = loss + fit.detach()
        return loss

    optimizer.step(objective)
    _take(head, exact)


class Ridge(Head):
    """Linear regression to 1 for a text's own class and -1 for the others, in closed form."""

    def __init__(self, width: int, classes: int, alpha: float | int = 1.0, class_weight: ClassWeight = None):
        super().__init__(classes, alpha=alpha, class_weight=class_weight)
        self.weight, self.bias = nn.Parameter(torch.zeros(classes, width)), nn.Parameter(torch.zeros(classes))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return F.linear(features, self.weight, self.bias)

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "_ D"], labels: Int[Tensor, "N"]) -> None:
        weights = row_weights(labels, self.classes, self.settings["class_weight"])
        total, width = weights.sum(), features.shape[1]
        targets = 2.0 * F.one_hot(labels.cpu(), self.classes).double() - 1
        # Centred by their weighted means, features and targets need no bias, and their products lose no digits.
        rows_mean = sum(weight @ rows for rows, _, weight in _pieces(features, labels, weights)) / total
        target_mean = weights @ targets / total
        square, product = torch.zeros(width, width).double(), torch.zeros(width, self.classes).double()
        for rows, target, weight in _pieces(features, targets - target_mean, weights):
            centred = rows - rows_mean
            square += centred.T @ (weight[:, None] * centred)
            product += centred.T @ (weight[:, None] * target)
        square.diagonal().add_(self.settings["alpha"])
        solved = torch.linalg.solve(square, product).T
        self.weight.copy_(solved)
        self.bias.copy_(target_mean - solved @ rows_mean)


class Centroid(Head):
    """The class whose mean is nearest (Rocchio's): nothing to choose, and hardly anything to overfit."""

    centroids: Tensor

    def __init__(self, width: int, classes: int):
        super().__init__(classes)
        self.register_buffer("centroids", torch.zeros(classes, width))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return -torch.stack([(features - centroid).square().sum(-1) for centroid in self.centroids], -1)

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "_ D"], labels: Int[Tensor, "N"]) -> None:
        counts = class_counts(labels, self.classes)
        if (counts == 0).any():
            raise InputError(f"no training row is of class {int(counts.argmin())}: it has no centroid")
        sums = torch.zeros(self.classes, features.shape[1]).double()
        for rows, targets in _pieces(features, labels):
            sums.index_add_(0, targets, rows)
        self.centroids.copy_(sums / counts[:, None])


class Neighbours(Head):
    """The classes of the `k` nearest texts. It saves, and so publishes, the features of all `rows` training texts."""

    features: Tensor
    labels: Tensor

    def __init__(self, width: int, classes: int, k: int = 5, rows: int = 0):
        super().__init__(classes, k=k, rows=rows)
        self.register_buffer("features", torch.zeros(rows, width))
        self.register_buffer("labels", torch.zeros(rows, dtype=torch.long))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        if not len(self.features):
            raise InputError("nearest neighbours have no rows yet: fit them first")
        # By matrix products the distance of near rows would lose half of its digits.
        distances = torch.cdist(features, self.features, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(self.settings["k"], largest=False).indices
        return F.one_hot(self.labels[nearest], self.classes).to(features.dtype).mean(1)

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "_ D"], labels: Int[Tensor, "N"]) -> None:
        class_counts(labels, self.classes)
        if not 1 <= self.settings["k"] <= len(labels):
            raise InputError(f"of {len(labels)} training rows the {self.settings['k']} nearest cannot be taken")
        self.features = features.to(self.features, copy=True)
        self.labels, self.settings["rows"] = labels.to(self.labels), len(labels)


HEADS: dict[str, type[Head]] = {
    "logistic": Logistic, "ridge": Ridge, "centroid": Centroid, "neighbours": Neighbours, "mlp": MLP,
}  # fmt: skip


def make_head(name: str, width: int, classes: int, settings: Mapping[str, Any]) -> Head:
    """The head of that name. Raises InputError for a name or a setting that there is not."""
    if name not in HEADS:
        raise InputError(f"there is no head {name!r}; there is: {', '.join(HEADS)}")
    if classes < 2:
        raise InputError(f"a classifier needs two classes at least, not {classes}")
    known = HEADS[name].__init__.__annotations__.keys() - {"width", "classes", "return"}
    if odd := sorted(settings.keys() - known):
        raise InputError(f"the head {name} has no setting {odd[0]!r}; it has: {', '.join(sorted(known)) or 'none'}")
    return HEADS[name](width, classes, **settings)  # pyright: ignore[reportCallIssue]


def class_counts(labels: Int[Tensor, "N"], classes: int) -> Int[Tensor, "C"]:
    """How many rows each class has. Raises InputError for a label beyond the classes, and for one class only."""
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"the labels must be numbers from 0 to {classes - 1}, one for each row")
    counts = torch.bincount(labels.cpu(), minlength=classes)
    if (counts > 0).sum() < 2:
        raise InputError("the training rows are all of one class: there is nothing to tell apart")
    return counts


def row_weights(labels: Int[Tensor, "N"], classes: int, class_weight: ClassWeight) -> Float[Tensor, "N"]:
    """How much each row counts in the fit."""
    counts = class_counts(labels, classes)
    if class_weight is None:
        weights = torch.ones(classes, dtype=torch.float64)
    elif class_weight == "balanced":
        weights = len(labels) / (classes * counts.double())
    elif isinstance(class_weight, str) or len(class_weight) != classes or min(class_weight) < 0:
        raise InputError(f"class_weight is {class_weight!r}; it can be 'balanced' or {classes} numbers of 0 or above")
    else:
        weights = torch.tensor(list(class_weight), dtype=torch.float64)
    return weights[labels.cpu()]


def _pieces(features: Float[Tensor, "_ D"], *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Up to `PIECE` rows at a time, in float64 on the CPU, with their part of the others."""
    if any(len(other) != features.shape[0] for other in others):
        raise InputError(f"{features.shape[0]} rows of features do not fit {len(others[0])} labels")
    start = 0
    for rows in features.split(PIECE):
        yield rows.double().cpu(), *(other[start : start + len(rows)].cpu() for other in others)
        start += len(rows)


@torch.no_grad()
def _take(head: Head, exact: Head) -> None:
    for mine, theirs in zip(head.parameters(), exact.parameters(), strict=True):
        mine.copy_(theirs)
