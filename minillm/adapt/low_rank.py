"""What the low-rank methods share: which matrices get an update, of which rank and scale, and how it is kept.

An update of rank r of a frozen W is dW = s B A, with A of r rows, B of r columns and s = alpha / r (Hu et al. 2021), or
alpha / √r, with which it does not fade as r grows (rank-stabilised LoRA, Kalajdzievski 2023). `lora.py`, `dora.py` and
`pissa.py` say what is computed with A and B.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from torch import Tensor

from minillm.adapt.adapted_matrix import AdaptedMatrix, Matrix, Update, adapted_matrices
from minillm.adapt.method import Method
from minillm.adapt.surgery import frozen, matching, replace
from minillm.decoder import Decoder
from minillm.errors import InputError

Self = TypeVar("Self", bound="LowRank")

JSON_TYPES = {
    "r": (int,), "alpha": (int, float), "targets": (list,), "ranks": (dict,), "alphas": (dict,),
    "rank_stabilised": (bool,), "dropout": (int, float), "train_bias": (bool,),
}  # fmt: skip
INNER_TYPES = {"targets": (str,), "ranks": (int,), "alphas": (int, float)}


@dataclass(frozen=True)
class LowRankOptions:
    """How matrices are adapted; `LowRank` says what each option is. Raises InputError for numbers that cannot be."""

    r: int
    alpha: int | float
    targets: tuple[str, ...]
    ranks: dict[str, int]
    alphas: dict[str, int | float]
    rank_stabilised: bool
    dropout: int | float
    train_bias: bool

    def __post_init__(self):
        for alpha in (self.alpha, *self.alphas.values()):
            if not 0 < alpha < math.inf:
                raise InputError(f"alpha is {alpha}; it must be a number above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"a dropout of {self.dropout} is no probability below 1")

    def updates(self, matrices: Mapping[str, Matrix], method: str) -> dict[str, Update]:
        """Each target's update by its path. Raises InputError for patterns that match nothing and for no rank."""
        if not self.targets:
            raise InputError(f"{method} has no target; all-linear would be every matrix of the blocks")
        targets = matching(matrices, self.targets, f"{method} target")
        ranks = _by_path(targets, self.r, self.ranks, f"{method} rank for")
        alphas = _by_path(targets, self.alpha, self.alphas, f"{method} alpha for")
        for path, rank in ranks.items():
            if rank < 1:
                raise InputError(f"a rank of {rank} does not fit {path}; it must be at least 1")
        if self.train_bias and all(getattr(matrices[path], "bias", None) is None for path in targets):
            raise InputError("train_bias is set, and none of the targets has a bias")
        share = math.sqrt if self.rank_stabilised else float
        return {
            path: Update(rank, alphas[path] / share(rank), self.dropout, self.train_bias)
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
    `rank_stabilised` the scale is alpha / √r. `dropout` is the probability at which what A reads is dropped while
    training. `train_bias` trains the targets' biases too. `state` is where to start from: what `state()` gave.

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
        named = (targets,) if isinstance(targets, str) else tuple(targets)
        self.low_rank = LowRankOptions(
            r, alpha, named, dict(ranks or {}), dict(alphas or {}), rank_stabilised, dropout, train_bias
        )
        matrices = self.candidates(self.decoder)
        updates = self.low_rank.updates(matrices, type(self).__name__)
        starts = self._fresh(matrices, updates) if state is None else self._starts(state, matrices, updates)
        for path, update in updates.items():
            layer = self.layer(matrices[path])(matrices[path], update, starts[path])
            replace(self.decoder, [path], lambda _, layer=layer: layer)

    @staticmethod
    @abstractmethod
    def candidates(body: Decoder) -> Mapping[str, Matrix]:
        """The matrices that can be adapted, by path."""

    @staticmethod
    @abstractmethod
    def layer(matrix: Matrix) -> type[AdaptedMatrix]:
        """What takes this matrix's place."""

    def prefix(self) -> None:
        return None

    def options(self) -> dict[str, Any]:
        return asdict(self.low_rank) | {"targets": list(self.low_rank.targets)}

    def state(self) -> dict[str, Tensor]:
        return {
            f"{path}.{name}": tensor
            for path, matrix in adapted_matrices(self.decoder).items()
            for name, tensor in matrix.kept().items()
        }

    @classmethod
    def from_state(cls: type[Self], decoder: Decoder, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The method that had these `options()` and this `state()`: the same logits, bit for bit.

        Raises InputError for options of another kind and for a tensor too few, too many, or of another shape.
        """
        _check_json(options, cls.__name__)
        return cls(decoder, **options, state=state)

    @staticmethod
    def _fresh(matrices: Mapping[str, Matrix], updates: Mapping[str, Update]) -> dict[str, None]:
        """Nothing to start from. A sum of updates may have a rank beyond its matrix's; fresh ones may not."""
        for path, update in updates.items():
            shape = tuple(matrices[path].weight.shape)
            if update.rank > min(shape):
                raise InputError(f"a rank of {update.rank} does not fit {path}, which is {shape}")
        return dict.fromkeys(updates)

    def _starts(
        self, state: Mapping[str, Tensor], matrices: Mapping[str, Matrix], updates: Mapping[str, Update]
    ) -> dict[str, dict[str, Tensor]]:
        """The state by path and name, if it is all there and nothing else is."""
        starts, expected = {}, set()
        for path, update in updates.items():
            rows, width = matrices[path].weight.shape
            shapes = self.layer(matrices[path]).shapes(rows, width, update.rank)
            bias = getattr(matrices[path], "bias", None)
            if update.train_bias and bias is not None:
                shapes |= {"bias": tuple(bias.shape)}
            starts[path] = {name: _kept(state, f"{path}.{name}", shape) for name, shape in shapes.items()}
            expected |= {f"{path}.{name}" for name in shapes}
        for name in state:
            if name not in expected:
                raise InputError(f"the state has a tensor {name}, for which its options have no place")
        return starts


def _kept(state: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in state:
        raise InputError(f"the state has no tensor {name}, which would be {shape}")
    if tuple(state[name].shape) != shape or not state[name].is_floating_point():
        found = f"{tuple(state[name].shape)} of {state[name].dtype}"
        raise InputError(f"the state's tensor {name} is {found}; it should be {shape}, of floating-point numbers")
    return state[name]


def _check_json(options: Mapping[str, Any], method: str) -> None:
    """Raises InputError for options that are not what `options()` gives: too few, too many, or of another type."""
    for name in (*JSON_TYPES, *options):
        if name not in options or name not in JSON_TYPES:
            what = "is missing" if name in JSON_TYPES else "is unknown"
            raise InputError(f"the {method} option {name!r} {what}; there are: {', '.join(JSON_TYPES)}")
        value = options[name]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        inside = INNER_TYPES.get(name, ())
        if type(value) not in JSON_TYPES[name] or any(type(part) not in inside for part in parts):
            raise InputError(f"the {method} option {name} is {value!r}, which is of another type than it should be")
