"""peft's LoRA: which of its modules is which matrix of ours, and one update of a fused matrix for several of its parts.

peft's scale is alpha / r of a module, as ours is of a matrix. GPT-2's c_attn holds query, key and value. Updates of
some of them are there one update of the sum of their ranks, s [Bq 0; 0 0; 0 Bv] [Aq; Av]; read back, a part keeps the
columns of B that are not zero in its rows. Parts with one and the same A stay one update.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minillm.adapt.dora import DoRA
from minillm.adapt.lora import LoRA
from minillm.adapt.low_rank import AdaptedMatrix, LowRank, adapted_matrices
from minillm.adapt.surgery import matrices
from minillm.config import DecoderConfig
from minillm.decoder import Decoder, Embedding
from minillm.errors import InputError
from minillm.hub import huggingface_config
from minillm.hub.huggingface import LAYOUTS

PREFIX = "base_model.model."
PLAIN = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
TABLE = {"b": "lora_embedding_A", "a": "lora_embedding_B"}
"""Of an embedding the two are transposed, and so A is in B's place."""
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Other values of init_lora_weights change the base's own matrices."""
NAME = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+?)\.(?P<kind>(lora_|base_layer\.).+)")
# A pattern of peft is a regular expression. A stranger's is not run: the path or its end is compared.
PATH = re.compile(r"\^?[\w.]+\$?")
TOLD = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "lora_dropout", "use_rslora", "use_dora",
    "fan_in_fan_out", "init_lora_weights", "exclude_modules", "layers_to_transform", "layers_pattern",
    "megatron_core", "qalora_group_size", "eva_config", "corda_config", "ensure_weight_tying",
}  # fmt: skip
"""Settings that are read, or that tell of training and of what the tensors' names say too."""


@dataclass(frozen=True)
class Place:
    """A module of the base in peft's words, what is enough of its name in every block, and our matrices in it."""

    name: str
    short: str
    ours: tuple[str, ...]
    transposed: bool


class Piece(NamedTuple):
    """One module's update."""

    tensors: dict[str, Tensor]
    rank: int
    scale: float


def places(config: DecoderConfig) -> list[Place]:
    """Raises InputError for a decoder that is of no family that peft knows."""
    kind = huggingface_config.written(config)["model_type"]
    if kind == "minillm":
        raise InputError("peft adapts transformers' models, and this decoder is neither a GPT-2 nor a Llama")
    layout = LAYOUTS[kind]
    found = [Place(name, name.rsplit(".", 1)[-1], (mine,), False) for name, mine in layout.outer.items()]
    found.append(Place(layout.head, layout.head, ("head",), False))
    ends = Counter(inner.rsplit(".", 1)[-1] for inner in layout.inner)
    for index in range(config.layers):
        for inner, mine in layout.inner.items():
            end = inner.rsplit(".", 1)[-1]
            names = (mine,) if isinstance(mine, str) else mine
            ours = tuple(f"blocks.{index}.{name}" for name in names)
            short = end if ends[end] == 1 else inner
            found.append(Place(layout.block.format(index) + inner, short, ours, inner in layout.transposed))
    return found


def written_low_rank(method: LowRank) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors. Raises InputError for what peft's format cannot say."""
    if method.low_rank.train_bias:
        raise InputError("trained biases go into peft's file as the base's own; save without train_bias for peft")
    adapted, tensors, pieces = adapted_matrices(method.decoder), {}, {}
    for place in places(method.config):
        parts = {path: adapted[path] for path in place.ours if path in adapted}
        if parts:
            pieces[place] = piece = _piece(place, parts, method)
            tensors |= {f"{PREFIX}{place.name}.{name}": tensor for name, tensor in piece.tensors.items()}
    stabilised = method.low_rank.rank_stabilised
    ranks = {place.name: piece.rank for place, piece in pieces.items()}
    alphas = {place.name: _alpha(piece.scale, piece.rank, stabilised) for place, piece in pieces.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: each for name, each in ranks.items() if each != rank},
        "alpha_pattern": {name: each for name, each in alphas.items() if each != alpha},
        "target_modules": _shortest({place.name: place.short for place in places(method.config)}, list(ranks)),
        "lora_dropout": method.low_rank.dropout,
        "use_rslora": stabilised,
        "use_dora": isinstance(method, DoRA),
        "fan_in_fan_out": any(place.transposed for place in pieces),
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    return settings, tensors


def _piece(place: Place, parts: Mapping[str, AdaptedMatrix], method: LowRank) -> Piece:
    states = {path: matrix.state() for path, matrix in parts.items()}
    first, scales = next(iter(parts.values())), {matrix.scale for matrix in parts.values()}
    if "magnitude" in next(iter(states.values())) and place.transposed:
        raise InputError(f"DoRA of {place.name}: peft's file has no place for it in a matrix stored input by output")
    if len(place.ours) == 1:
        factors = states[place.ours[0]]
        if first.kind is Embedding:
            factors = {name: factors[name].T.contiguous() for name in TABLE}
        names = TABLE if first.kind is Embedding else PLAIN
        rank = len(states[place.ours[0]]["a"])
        return Piece({names[name]: tensor for name, tensor in factors.items()}, rank, first.scale)
    if len(scales) > 1:
        raise InputError(
            f"peft has one scale for {place.name}, and alpha / r differs between {', '.join(parts)}: give them one"
        )
    down = [factors["a"] for factors in states.values()]
    rows = [states[path]["b"] if path in states else _no_update(method, path) for path in place.ours]
    if len(parts) == len(place.ours) and all(torch.equal(a, down[0]) for a in down):
        return Piece({PLAIN["a"]: down[0], PLAIN["b"]: torch.cat(rows)}, len(down[0]), first.scale)
    # Where a part has no update its rows have no columns, and blocks on a diagonal leave them zero.
    return Piece({PLAIN["a"]: torch.cat(down), PLAIN["b"]: torch.block_diag(*rows)}, sum(map(len, down)), first.scale)


def _no_update(method: LowRank, path: str) -> Tensor:
    weight = method.decoder.get_parameter(f"{path}.weight")
    return torch.empty(len(weight), 0, dtype=next(iter(method.state().values())).dtype)


def read_low_rank(decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LowRank:
    """The LoRA, or DoRA, of a peft file. Raises InputError for what it asks for and is not computed here, and for
    tensors that are unknown, incomplete or do not fit the decoder."""
    if settings.get("init_lora_weights") not in STARTS:
        raise InputError(
            "a peft LoRA that starts from the base's own matrices changes them too: convert it to a plain one"
        )
    stabilised, state, ranks, alphas = settings.get("use_rslora") is True, {}, {}, {}
    for place, factors in _by_place(decoder, tensors).items():
        _check_factors(place, factors, decoder)
        rank, alpha = (_by_pattern(settings, place.name, *names) for names in
                       (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")))  # fmt: skip
        if rank != len(factors["a"]):
            raise InputError(f"peft's settings give {place.name} the rank {rank}, its tensors {len(factors['a'])}")
        scale = alpha / _share(rank, stabilised)
        for path, update in _parts(place, factors, decoder).items():
            state |= {f"{path}.{name}": tensor for name, tensor in update.items()}
            ranks[path] = len(update["a"])
            alphas[path] = alpha if ranks[path] == rank else _alpha(scale, ranks[path], stabilised)
    if not ranks:
        raise InputError("peft's file changes nothing: it has no update that is not zero")
    rank, alpha = _commonest(ranks), _commonest(alphas)
    options = {
        "r": rank,
        "alpha": alpha,
        "targets": _shortest({path: path.rsplit(".", 1)[-1] for path in matrices(decoder)}, list(ranks)),
        "ranks": {path: each for path, each in ranks.items() if each != rank},
        "alphas": {path: each for path, each in alphas.items() if each != alpha},
        "rank_stabilised": stabilised,
        "dropout": settings.get("lora_dropout", 0.0),
        "train_bias": False,
    }
    method = DoRA if settings.get("use_dora") else LoRA
    return method.from_state(decoder, options, state)


def _by_place(decoder: Decoder, tensors: Mapping[str, Tensor]) -> dict[Place, dict[str, Tensor]]:
    """Each module's factors by our names, turned as a Linear has them."""
    known, ours = {place.name: place for place in places(decoder.config)}, matrices(decoder)
    found: dict[Place, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        named = NAME.fullmatch(full)
        place = known.get(named["module"]) if named else None
        if named is None or place is None or not all(path in ours for path in place.ours):
            raise InputError(f"peft's tensor {full} is no update of a matrix of this decoder"[:500])
        matrix = ours[place.ours[0]]
        kinds = {theirs: mine for mine, theirs in (TABLE if isinstance(matrix, Embedding) else PLAIN).items()}
        if named["kind"] == "base_layer.weight":
            # peft saves the whole matrix along with an adapted embedding or head.
            if not torch.equal(tensor.to(matrix.weight), matrix.weight):
                raise InputError(f"peft's file has another {named['module']} than this decoder: the base differs")
        elif named["kind"] in kinds:
            turned = tensor.T.contiguous() if isinstance(matrix, Embedding) else tensor
            found.setdefault(place, {})[kinds[named["kind"]]] = turned
        else:
            raise InputError(f"peft's tensor {full} is of a kind that minillm does not compute with"[:500])
    return found


def _check_factors(place: Place, factors: Mapping[str, Tensor], decoder: Decoder) -> None:
    shapes = [tuple(decoder.get_parameter(f"{path}.weight").shape) for path in place.ours]
    rows, width = sum(shape[0] for shape in shapes), shapes[0][1]
    a, b = (tuple(factors[name].shape) if name in factors else () for name in ("a", "b"))
    if len(a) != 2 or a[1] != width or b != (rows, a[0]):
        raise InputError(f"peft's update of {place.name} is {b} times {a}, and the matrix is {(rows, width)}")


def _parts(place: Place, factors: Mapping[str, Tensor], decoder: Decoder) -> dict[str, dict[str, Tensor]]:
    """The update of each of our matrices in a module: the whole of it, or what is not zero in a part's rows."""
    if len(place.ours) == 1:
        return {place.ours[0]: dict(factors)}
    if "magnitude" in factors:
        raise InputError(f"DoRA of {place.name}, a matrix stored input by output, is not read")
    rows = [len(decoder.get_parameter(f"{path}.weight")) for path in place.ours]
    parts = {}
    for path, b in zip(place.ours, factors["b"].split(rows), strict=True):
        kept = b.ne(0).any(0)
        if kept.any():
            parts[path] = {"a": factors["a"][kept], "b": b[:, kept].contiguous()}
    return parts


def _by_pattern(settings: Mapping[str, Any], name: str, patterns: str, default: str) -> Any:
    """A module's number: that of the first pattern which it matches, or the default."""
    chosen, given = settings.get(default), settings.get(patterns) or {}
    for pattern in given if isinstance(given, dict) else [given]:
        if not isinstance(pattern, str) or not PATH.fullmatch(pattern):
            raise InputError(
                f"peft's {patterns} has {pattern!r}; names of modules are read, and no regular expressions"
            )
        plain = pattern.removeprefix("^").removesuffix("$")
        if name == plain or (name.endswith(f".{plain}") and not pattern.startswith("^")):
            chosen = given[pattern]
            break
    if isinstance(chosen, bool) or not isinstance(chosen, int | float) or not 0 < chosen < math.inf:
        raise InputError(f"peft's {default} of {name} is {chosen!r}, and it must be a number above 0")
    return chosen


def _share(rank: int, stabilised: bool) -> float:
    return math.sqrt(rank) if stabilised else float(rank)


def _alpha(scale: float, rank: int, stabilised: bool) -> int | float:
    """The alpha that gives this scale, to the bit if there is one: a whole one rather than another."""
    share = _share(rank, stabilised)
    near = scale * share
    candidates = (round(near), near, math.nextafter(near, 0.0), math.nextafter(near, math.inf))
    return next((alpha for alpha in candidates if alpha / share == scale), near)


def _commonest(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _shortest(short: Mapping[str, str], chosen: list[str]) -> list[str]:
    """The chosen modules, those of a name of which all are chosen by that name alone."""
    return list(
        dict.fromkeys(
            short[name] if all(other in chosen for other in short if short[other] == short[name]) else name
            for name in chosen
        )
    )
