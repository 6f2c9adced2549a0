"""The common part of LoRA, DoRA and PiSSA: choice of the matrices, their ranks and scales, saving of the update.

An update of rank r is scaled by s = alpha / r (Hu et al. 2021) or, rank-stabilised, by alpha / √r, which keeps its size
as r grows (Kalajdzievski 2023). The formulas of dW are in `lora.py`, `dora.py` and `pissa.py`. W itself is never
written to: an update is merged into a new matrix.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import UnionType
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from minillm.adapt.method import Method, check_state
from minillm.adapt.surgery import frozen, matching, matrices, replace, trained_dtype
from minillm.decoder import Decoder, Embedding, Linear
from minillm.errors import InputError, check_at_least
from minillm.shapes import Float

Matrix = nn.Linear | Embedding
Self = TypeVar("Self", bound="LowRank")


class Update(NamedTuple):
    """The settings of one matrix's dW: its rank and scale, dropout, and whether the bias is trained too."""

    rank: int
    scale: float
    dropout: int | float
    train_bias: bool


class AdaptedMatrix(nn.Module, ABC):
    """A frozen W and its update dW. `start` is a saved `state()`; without it the update is initialised."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, matrix: Matrix, update: Update, start: Mapping[str, Tensor] | None):
        super().__init__()
        self.kind, self.rank, self.scale, self.dropout = type(matrix), update.rank, update.scale, update.dropout
        self.weight, self.bias = matrix.weight, getattr(matrix, "bias", None)
        self.trains_bias = update.train_bias and self.bias is not None
        if update.train_bias and self.bias is not None:
            self.frozen_bias = self.bias
            self.bias = self.trained(self.bias if start is None else start["bias"])

    def trained(self, value: Tensor) -> nn.Parameter:
        """A new trainable parameter that starts as a copy of a value."""
        return nn.Parameter(value.detach().to(self.weight.device, trained_dtype(self.weight), copy=True))

    @classmethod
    def shapes(cls, rows: int, width: int, rank: int) -> dict[str, tuple[int, ...]]:
        """The shapes in `state` for a matrix of this size, without its bias."""
        return {"a": (rank, width), "b": (rows, rank)}

    @abstractmethod
    def change(self) -> Float[Tensor, "O I"]:
        """dW, in the dtype of the trained factors."""

    def state(self) -> dict[str, Tensor]:
        """The saved tensors of the update, by name."""
        names = [*self.shapes(1, 1, self.rank), *(("bias",) if self.trains_bias else ())]
        return {name: getattr(self, name).detach() for name in names}

    def merged(self) -> Matrix:
        """W + dW as a plain module of the replaced one's type and dtype, in new memory."""
        with torch.no_grad():
            weight = (self.weight + self.change()).to(self.weight.dtype)
            bias = None if self.bias is None else nn.Parameter(self.bias.to(weight.dtype, copy=True))
        return self._plain(nn.Parameter(weight), bias)

    def unadapted(self) -> Matrix:
        """The replaced module with its own parameters: a tied one stays tied."""
        return self._plain(self.weight, self.frozen_bias if self.trains_bias else self.bias)

    def _plain(self, weight: Tensor, bias: Tensor | None) -> Matrix:
        rows, width = weight.shape
        with torch.device("meta"):
            plain = Embedding(rows, width) if self.kind is Embedding else Linear(width, rows, bias is not None)
        for name, parameter in (("weight", weight), ("bias", bias)):
            if parameter is not None:
                setattr(plain, name, parameter)
        return plain

    def extra_repr(self) -> str:
        rows, width = self.weight.shape
        ends = (rows, width) if self.kind is Embedding else (width, rows)
        return f"{ends[0]} -> {ends[1]}, rank {self.rank}"


def adapted_matrices(body: Decoder) -> dict[str, AdaptedMatrix]:
    """The adapted matrices of a body by path."""
    return {path: module for path, module in body.named_modules() if isinstance(module, AdaptedMatrix)}


def unadapted(body: Decoder) -> Decoder:
    """A frozen body without the updates, over the same weights."""
    base = frozen(body)
    for path, matrix in adapted_matrices(base).items():
        replace(base, path, matrix.unadapted())
    return base


@dataclass(frozen=True)
class LowRankOptions:
    """The arguments of `LowRank`. Raises InputError for numbers that are out of range."""

    r: int
    alpha: int | float
    targets: list[str]
    ranks: dict[str, int]
    alphas: dict[str, int | float]
    rank_stabilised: bool
    dropout: int | float
    train_bias: bool

    def __post_init__(self):
        for alpha in (self.alpha, *self.alphas.values()):
            if not 0 < alpha < math.inf:
                raise InputError(f"alpha must be a number above 0, got {alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")

    def updates(self, candidates: Mapping[str, Matrix], method: str) -> dict[str, Update]:
        """The settings of each target, by path. Raises InputError if a pattern matches nothing or a rank is below 1."""
        if not self.targets:
            raise InputError(f"{method} needs at least one target; all-linear is every matrix of the blocks")
        targets = matching(candidates, self.targets, f"{method} target")
        ranks = _by_path(targets, self.r, self.ranks, f"{method} rank for")
        alphas = _by_path(targets, self.alpha, self.alphas, f"{method} alpha for")
        check_at_least(1, **{f"the rank of {path}": rank for path, rank in ranks.items()})
        if self.train_bias and all(getattr(candidates[path], "bias", None) is None for path in targets):
            raise InputError("train_bias is set, but none of the targets has a bias")
        divisor = math.sqrt if self.rank_stabilised else float
        return {
            path: Update(rank, alphas[path] / divisor(rank), self.dropout, self.train_bias)
            for path, rank in ranks.items()
        }


def _by_path(paths: Sequence[str], default: Any, patterns: dict[str, Any], what: str) -> dict[str, Any]:
    """The value of each path: that of the first pattern that matches it, or the default."""
    values = dict.fromkeys(paths, default)
    for pattern in reversed(patterns):
        values |= dict.fromkeys(matching(paths, [pattern], what), patterns[pattern])
    return values


class LowRank(Method):
    """A low-rank update of every matrix that `targets` name. Seam: linear layers.

    `targets` are roles (`query`, or peft's `q_proj`), paths with wildcards (`blocks.3.*`) or `all-linear`, all Linears
    of the blocks. `ranks` and `alphas` override r and alpha of some targets, by the first pattern that matches:
    `{"blocks.0.*": 4}`. With `rank_stabilised` the scale is alpha / √r. `dropout` is the probability of dropping an
    input of A in training. `train_bias` trains the targets' biases too. `state` is a saved `state()` to start from.

    Raises InputError for a target that matches nothing, for a rank larger than its matrix allows, and for a state that
    does not fit.
    """

    layers: ClassVar[Mapping[type[Matrix], type[AdaptedMatrix]]]
    """The types of module that the method adapts, and the module that replaces each."""

    def __init__(
        self, decoder: Decoder, r: int = 8, alpha: int | float = 16, targets: str | Sequence[str] = ("query", "value"),
        *, ranks: Mapping[str, int] | None = None, alphas: Mapping[str, int | float] | None = None,
        rank_stabilised: bool = False, dropout: int | float = 0.0, train_bias: bool = False,
        state: Mapping[str, Tensor] | None = None,
    ):  # fmt: skip
        super().__init__(frozen(decoder))
        self.r, self.alpha = r, alpha
        named = [targets] if isinstance(targets, str) else list(targets)
        ranks, alphas = dict(ranks or {}), dict(alphas or {})
        self.low_rank = LowRankOptions(r, alpha, named, ranks, alphas, rank_stabilised, dropout, train_bias)
        found = matrices(self.decoder)
        candidates = {path: matrix for path, matrix in found.items() if isinstance(matrix, tuple(self.layers))}
        updates = self.low_rank.updates(candidates, type(self).__name__)
        if state is None:
            _check_ranks(candidates, updates)
        starts = {} if state is None else self._starts(state, candidates, updates)
        for path, update in updates.items():
            replace(self.decoder, path, self._layer(candidates[path])(candidates[path], update, starts.get(path)))

    def _layer(self, matrix: Matrix) -> type[AdaptedMatrix]:
        return next(layer for kind, layer in self.layers.items() if isinstance(matrix, kind))

    def options(self) -> dict[str, Any]:
        return asdict(self.low_rank)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{path}.{name}": tensor
            for path, matrix in adapted_matrices(self.decoder).items()
            for name, tensor in matrix.state().items()
        }

    @classmethod
    def from_state(cls: type[Self], decoder: Decoder, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The method that had these `options()` and this `state()`: the same logits, bit for bit.

        Raises InputError for options of another type and for a tensor that is missing, unknown or of another shape.
        """
        _check_types(options, cls.__name__)
        return cls(decoder, **options, state=state)

    def _starts(
        self, state: Mapping[str, Tensor], candidates: Mapping[str, Matrix], updates: Mapping[str, Update]
    ) -> dict[str, dict[str, Tensor]]:
        """The state by path and name. Raises InputError as `check_state`."""
        shapes = {}
        for path, update in updates.items():
            matrix, bias = candidates[path], getattr(candidates[path], "bias", None)
            rows, width = matrix.weight.shape
            shapes[path] = self._layer(matrix).shapes(rows, width, update.rank)
            if update.train_bias and bias is not None:
                shapes[path] |= {"bias": tuple(bias.shape)}
        named = {f"{path}.{name}": shape for path, each in shapes.items() for name, shape in each.items()}
        check_state(state, named)
        return {path: {name: state[f"{path}.{name}"] for name in each} for path, each in shapes.items()}


def _check_ranks(candidates: Mapping[str, Matrix], updates: Mapping[str, Update]) -> None:
    """A new update's rank is limited by its matrix. (A saved one, a sum of updates, may have a higher rank.)"""
    for path, update in updates.items():
        shape = tuple(candidates[path].weight.shape)
        if update.rank > min(shape):
            raise InputError(f"the rank of {path}, which is {shape}, must be at most {min(shape)}, got {update.rank}")


def _check_types(options: Mapping[str, Any], method: str) -> None:
    """Raises InputError for options that are not what `options()` gives: one missing, unknown or of another type."""
    types = get_type_hints(LowRankOptions)
    for name in (*types, *options):
        if name not in options or name not in types:
            what = "is missing" if name in types else "is unknown"
            raise InputError(f"the {method} option {name!r} {what}; the options are: {', '.join(types)}")
        if not _is_of(options[name], types[name]):
            raise InputError(f"the {method} option {name} has the wrong type: {options[name]!r}")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value from JSON has exactly this type; a bool is not an int."""
    inner = get_args(kind)
    if isinstance(kind, UnionType) or not inner:
        return type(value) in (inner or (kind,))
    parts = value.values() if isinstance(value, dict) else value
    return type(value) is get_origin(kind) and all(_is_of(part, inner[-1]) for part in parts)
