"""What LoRA, DoRA and PiSSA share: which matrices are adapted, at which rank and scale, and how the update is saved.

An update of rank r is scaled by s = alpha / r (Hu et al. 2021) or, rank-stabilised, by alpha / √r, with which it does
not fade as r grows (Kalajdzievski 2023). The formulas of dW are in `lora.py`, `dora.py` and `pissa.py`. W itself is
never written to, so an update can be merged into a new matrix, and dropped again.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from minillm.adapt.method import Method
from minillm.adapt.surgery import frozen, matching, matrices, replace, trained_dtype
from minillm.decoder import Decoder, Embedding, Linear
from minillm.errors import InputError
from minillm.shapes import Float

Matrix = nn.Linear | Embedding
Self = TypeVar("Self", bound="LowRank")


class Update(NamedTuple):
    """How one matrix is adapted: by dW of this rank at most, with this scale in it."""

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
        """A parameter that starts as a copy of a value."""
        return nn.Parameter(value.detach().to(self.weight.device, trained_dtype(self.weight), copy=True))

    @classmethod
    def shapes(cls, rows: int, width: int, rank: int) -> dict[str, tuple[int, ...]]:
        """What `state` holds for a matrix of this size, its bias apart."""
        return {"a": (rank, width), "b": (rows, rank)}

    @abstractmethod
    def change(self) -> Float[Tensor, "O I"]:
        """dW, in the update's dtype."""

    def state(self) -> dict[str, Tensor]:
        """What is saved of the update, by name."""
        names = [*self.shapes(1, 1, self.rank), *(("bias",) if self.trains_bias else ())]
        return {name: getattr(self, name).detach() for name in names}

    def merged(self) -> Matrix:
        """W + dW as a matrix of the replaced one's kind and dtype, which shares no memory with it."""
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

    def extra_repr(self) -> str:
        rows, width = self.weight.shape
        ends = (rows, width) if self.kind is Embedding else (width, rows)
        return f"{ends[0]} -> {ends[1]}, rank {self.rank}"


def adapted_matrices(body: Decoder) -> dict[str, AdaptedMatrix]:
    """The adapted matrices of a body by path."""
    return {path: module for path, module in body.named_modules() if isinstance(module, AdaptedMatrix)}


def unadapted(body: Decoder) -> Decoder:
    """The frozen body as it was before its matrices were adapted, over the same weights."""
    base = frozen(body)
    for path, matrix in adapted_matrices(base).items():
        replace(base, path, matrix.unadapted())
    return base


@dataclass(frozen=True)
class LowRankOptions:
    """How matrices are adapted: the arguments of `LowRank`. Raises InputError for numbers that are out of range."""

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
        """Each target's update by path. Raises InputError for a pattern that matches nothing and for a rank below 1."""
        if not self.targets:
            raise InputError(f"{method} has no target; all-linear would be every matrix of the blocks")
        targets = matching(candidates, self.targets, f"{method} target")
        ranks = _by_path(targets, self.r, self.ranks, f"{method} rank for")
        alphas = _by_path(targets, self.alpha, self.alphas, f"{method} alpha for")
        for path, rank in ranks.items():
            if rank < 1:
                raise InputError(f"a rank of {rank} does not fit {path}; it must be at least 1")
        if self.train_bias and all(getattr(candidates[path], "bias", None) is None for path in targets):
            raise InputError("train_bias is set, and none of the targets has a bias")
        divisor = math.sqrt if self.rank_stabilised else float
        return {
            path: Update(rank, alphas[path] / divisor(rank), self.dropout, self.train_bias)
            for path, rank in ranks.items()
        }


def _by_path(paths: Sequence[str], default: Any, patterns: dict[str, Any], what: str) -> dict[str, Any]:
    """The value of each path: that of the first pattern which matches it, or the default."""
    values = dict.fromkeys(paths, default)
    for pattern in reversed(patterns):
        values |= dict.fromkeys(matching(paths, [pattern], what), patterns[pattern])
    return values


class LowRank(Method):
    """A low-rank update of every matrix that `targets` name. Seam: LINEARS.

    `targets` are roles (`query`), paths with wildcards (`blocks.3.*`) or `all-linear`, those in the blocks. `ranks` and
    `alphas` give some of them another r and alpha, by the first pattern that matches: `{"blocks.0.*": 4}`. With
    `rank_stabilised` the scale is alpha / √r. `dropout` is the probability with which the input of A is dropped in
    training. `train_bias` trains the targets' biases too. `state` is a saved `state()` to start from.

    Raises InputError for a target that matches nothing, for a rank that no matrix of that size can have, and for a
    state that does not fit.
    """

    def __init__(
        self,
        decoder: Decoder,
        r: int = 8,
        alpha: int | float = 16,
        targets: str | Sequence[str] = ("query", "value"),
        *,
        ranks: Mapping[str, int] | None = None,
        alphas: Mapping[str, int | float] | None = None,
        rank_stabilised: bool = False,
        dropout: int | float = 0.0,
        train_bias: bool = False,
        state: Mapping[str, Tensor] | None = None,
    ):
        super().__init__(frozen(decoder))
        self.r, self.alpha = r, alpha
        named = [targets] if isinstance(targets, str) else list(targets)
        self.low_rank = LowRankOptions(
            r, alpha, named, dict(ranks or {}), dict(alphas or {}), rank_stabilised, dropout, train_bias
        )
        candidates = {path: matrix for path, matrix in matrices(self.decoder).items() if self.layer(matrix)}
        updates = self.low_rank.updates(candidates, type(self).__name__)
        starts = self._initial(candidates, updates) if state is None else self._starts(state, candidates, updates)
        for path, update in updates.items():
            layer = self.layer(candidates[path])
            assert layer is not None
            replace(self.decoder, path, layer(candidates[path], update, starts[path]))

    @staticmethod
    @abstractmethod
    def layer(matrix: Matrix) -> type[AdaptedMatrix] | None:
        """What replaces this matrix; None if the method does not adapt its kind."""

    def prefix(self) -> None:
        return None

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

    @staticmethod
    def _initial(candidates: Mapping[str, Matrix], updates: Mapping[str, Update]) -> dict[str, None]:
        """Nothing to start from. A sum of updates may have a rank beyond its matrix's; an initial one may not."""
        for path, update in updates.items():
            shape = tuple(candidates[path].weight.shape)
            if update.rank > min(shape):
                raise InputError(f"a rank of {update.rank} does not fit {path}, which is {shape}")
        return dict.fromkeys(updates)

    def _starts(
        self, state: Mapping[str, Tensor], candidates: Mapping[str, Matrix], updates: Mapping[str, Update]
    ) -> dict[str, dict[str, Tensor]]:
        """The state by path and name, if it is complete and has nothing else."""
        starts = {}
        for path, update in updates.items():
            layer, bias = self.layer(candidates[path]), getattr(candidates[path], "bias", None)
            assert layer is not None
            rows, width = candidates[path].weight.shape
            shapes = layer.shapes(rows, width, update.rank)
            if update.train_bias and bias is not None:
                shapes |= {"bias": tuple(bias.shape)}
            starts[path] = {name: _checked(state, f"{path}.{name}", shape) for name, shape in shapes.items()}
        if unknown := sorted(state.keys() - {f"{path}.{name}" for path in starts for name in starts[path]}):
            raise InputError(f"the state has a tensor {unknown[0]}, for which its options have no place")
        return starts


def _checked(state: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in state:
        raise InputError(f"the state has no tensor {name}, which would be {shape}")
    if tuple(state[name].shape) != shape or not state[name].is_floating_point():
        found = f"{tuple(state[name].shape)} of {state[name].dtype}"
        raise InputError(f"the state's tensor {name} is {found}; it should be {shape}, of floating-point numbers")
    return state[name]


def _check_types(options: Mapping[str, Any], method: str) -> None:
    """Raises InputError for options that are not what `options()` gives: one missing, unknown or of another type."""
    types = get_type_hints(LowRankOptions)
    for name in (*types, *options):
        if name not in options or name not in types:
            what = "is missing" if name in types else "is unknown"
            raise InputError(f"the {method} option {name!r} {what}; there are: {', '.join(types)}")
        if not _is_of(options[name], types[name]):
            raise InputError(
                f"the {method} option {name} is {options[name]!r}, which is of another type than it should be"
            )


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON has this very type: a bool is no int."""
    inner = get_args(kind)
    if isinstance(kind, UnionType) or not inner:
        return type(value) in (inner or (kind,))
    parts = value.values() if isinstance(value, dict) else value
    return type(value) is get_origin(kind) and all(_is_of(part, inner[-1]) for part in parts)
