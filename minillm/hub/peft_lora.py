"""peft's LoRA format: its module names, and updates of the fused matrix of GPT-2.

peft scales the update of a module by alpha / r, as minillm does that of a matrix. GPT-2's c_attn fuses query, key and
value. Updates of some of them are exported as one update with the sum of their ranks, s [Bq 0; 0 0; 0 Bv] [Aq; Av]. On
import, each part keeps the columns of B that are not zero in its rows. Parts that share A stay one update.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
"""peft stores both factors of an embedding transposed, which exchanges A and B."""
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Other values of init_lora_weights change the matrices of the base."""
NAME = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+?)\.(?P<kind>(lora_|base_layer\.).+)")
# peft's patterns are regular expressions. They are untrusted and not executed: only plain paths and ends are accepted.
PATH = re.compile(r"\^?[\w.]+\$?")
SETTINGS = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "lora_dropout", "use_rslora", "use_dora",
    "fan_in_fan_out", "init_lora_weights", "exclude_modules", "layers_to_transform", "layers_pattern",
    "megatron_core", "qalora_group_size", "eva_config", "corda_config", "ensure_weight_tying",
}  # fmt: skip
"""Settings that are used here, describe training, or repeat the names of the tensors."""


@dataclass(frozen=True)
class Place:
    """A module of the base: its peft name, the shortest unambiguous end of it, and our matrices in it."""

    name: str
    short: str
    ours: tuple[str, ...]
    transposed: bool


def places(config: DecoderConfig) -> list[Place]:
    """The modules that peft can adapt. Raises InputError for a decoder that is of no family of transformers."""
    kind = huggingface_config.written(config)["model_type"]
    if kind == "minillm":
        raise InputError("peft adapters need a model of transformers; this decoder is neither a GPT-2 nor a Llama")
    layout = LAYOUTS[kind]
    outer = {**layout.outer, layout.head: "head"}
    found = [Place(name, name.rsplit(".", 1)[-1], (mine,), False) for name, mine in outer.items()]
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
    """Settings and tensors. Raises InputError if peft's format cannot express the method."""
    if method.low_rank.train_bias:
        raise InputError("peft would store trained biases as those of the base: train with train_bias=False")
    adapted, stabilised = adapted_matrices(method.decoder), method.low_rank.rank_stabilised
    tensors, ranks, alphas, transposed = {}, {}, {}, False
    for place in places(method.config):
        parts = {path: adapted[path] for path in place.ours if path in adapted}
        if parts:
            factors, rank, scale = _update(place, parts, method)
            tensors |= {f"{PREFIX}{place.name}.{name}": tensor for name, tensor in factors.items()}
            ranks[place.name], alphas[place.name] = rank, _alpha(scale, rank, stabilised)
            transposed |= place.transposed
    (rank, rank_pattern), (alpha, alpha_pattern) = _default_and_others(ranks), _default_and_others(alphas)
    settings = {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": _shortest({place.name: place.short for place in places(method.config)}, list(ranks)),
        "lora_dropout": method.low_rank.dropout, "use_rslora": stabilised, "use_dora": isinstance(method, DoRA),
        "fan_in_fan_out": transposed, "bias": "none", "init_lora_weights": True,
        "modules_to_save": None,
    }  # fmt: skip
    return settings, tensors


def _update(place: Place, parts: Mapping[str, AdaptedMatrix], method: LowRank) -> tuple[dict[str, Tensor], int, float]:
    """(tensors, rank, scale) of the update of one module."""
    states = {path: matrix.state() for path, matrix in parts.items()}
    first, scales = next(iter(parts.values())), {matrix.scale for matrix in parts.values()}
    if "magnitude" in next(iter(states.values())) and place.transposed:
        raise InputError(f"peft has no DoRA of {place.name}, which is stored as (in, out): use LoRA")
    if len(place.ours) == 1:
        factors = states[place.ours[0]]
        if first.kind is Embedding:
            tensors = {TABLE[name]: factors[name].T.contiguous() for name in TABLE}
        else:
            tensors = {PLAIN[name]: tensor for name, tensor in factors.items()}
        return tensors, len(factors["a"]), first.scale
    if len(scales) > 1:
        raise InputError(
            f"peft has one scale for {place.name}, but alpha / r differs between {', '.join(parts)}: use equal ones"
        )
    down = [factors["a"] for factors in states.values()]
    heights = {path: len(method.decoder.get_parameter(f"{path}.weight")) for path in place.ours}
    rows = [states[path]["b"] if path in states else down[0].new_empty(heights[path], 0) for path in place.ours]
    if len(parts) == len(place.ours) and all(torch.equal(a, down[0]) for a in down):
        return {PLAIN["a"]: down[0], PLAIN["b"]: torch.cat(rows)}, len(down[0]), first.scale
    # A part without an update has rows without columns, which block_diag fills with zeros.
    return {PLAIN["a"]: torch.cat(down), PLAIN["b"]: torch.block_diag(*rows)}, sum(map(len, down)), first.scale


def read_low_rank(decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LowRank:
    """The LoRA or DoRA of a peft adapter. Raises InputError for unsupported settings, and for tensors that are
    unexpected, incomplete or misshapen."""
    if settings.get("init_lora_weights") not in STARTS:
        raise InputError(
            f"init_lora_weights = {settings['init_lora_weights']!r} also changes the matrices of the base: convert the "
            "adapter to a plain LoRA"
        )
    stabilised, state, ranks, alphas = settings.get("use_rslora") is True, {}, {}, {}
    for place, factors in _by_place(decoder, tensors).items():
        _check_factors(place, factors, decoder)
        rank, alpha = (_by_pattern(settings, place.name, *names) for names in
                       (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")))  # fmt: skip
        if rank != len(factors["a"]):
            raise InputError(f"{place.name} has the rank {rank} in the settings, {len(factors['a'])} in its tensors")
        scale = alpha / _share(rank, stabilised)
        for path, update in _parts(place, factors, decoder).items():
            state |= {f"{path}.{name}": tensor for name, tensor in update.items()}
            ranks[path] = len(update["a"])
            alphas[path] = alpha if ranks[path] == rank else _alpha(scale, ranks[path], stabilised)
    if not ranks:
        raise InputError("the adapter changes nothing: all of its updates are zero")
    (rank, other_ranks), (alpha, other_alphas) = _default_and_others(ranks), _default_and_others(alphas)
    options = {
        "r": rank, "alpha": alpha, "ranks": other_ranks, "alphas": other_alphas,
        "targets": _shortest({path: path.rsplit(".", 1)[-1] for path in matrices(decoder)}, list(ranks)),
        "rank_stabilised": stabilised, "dropout": settings.get("lora_dropout", 0.0), "train_bias": False,
    }  # fmt: skip
    method = DoRA if settings.get("use_dora") else LoRA
    return method.from_state(decoder, options, state)


def _by_place(decoder: Decoder, tensors: Mapping[str, Tensor]) -> dict[Place, dict[str, Tensor]]:
    """The factors of each module by our names, in the orientation of a Linear."""
    known, ours = {place.name: place for place in places(decoder.config)}, matrices(decoder)
    found: dict[Place, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        named = NAME.fullmatch(full)
        place = known.get(named["module"]) if named else None
        if named is None or place is None or not all(path in ours for path in place.ours):
            raise InputError(f"the tensor {full} does not belong to a matrix of this decoder"[:500])
        matrix = ours[place.ours[0]]
        kinds = {theirs: mine for mine, theirs in (TABLE if isinstance(matrix, Embedding) else PLAIN).items()}
        if named["kind"] == "base_layer.weight":
            # peft also saves the whole matrix of an adapted embedding or head.
            if not torch.equal(tensor.to(matrix.weight), matrix.weight):
                raise InputError(f"the adapter has another {named['module']} than this decoder: the base differs")
        elif named["kind"] in kinds:
            turned = tensor.T.contiguous() if isinstance(matrix, Embedding) else tensor
            found.setdefault(place, {})[kinds[named["kind"]]] = turned
        else:
            raise InputError(f"the tensor {full} is of a kind that minillm does not support"[:500])
    return found


def _check_factors(place: Place, factors: Mapping[str, Tensor], decoder: Decoder) -> None:
    shapes = [tuple(decoder.get_parameter(f"{path}.weight").shape) for path in place.ours]
    rows, width = sum(shape[0] for shape in shapes), shapes[0][1]
    a, b = (tuple(factors[name].shape) if name in factors else () for name in ("a", "b"))
    if len(a) != 2 or a[1] != width or b != (rows, a[0]):
        raise InputError(f"the update of {place.name} must be {(rows, 'r')} times {('r', width)}, got {b} times {a}")


def _parts(place: Place, factors: Mapping[str, Tensor], decoder: Decoder) -> dict[str, dict[str, Tensor]]:
    """The update of each of our matrices in a module: the whole of it, or the non-zero columns in its rows."""
    if len(place.ours) == 1:
        return {place.ours[0]: dict(factors)}
    if "magnitude" in factors:
        raise InputError(f"minillm does not support DoRA of {place.name}, which is stored as (in, out)")
    rows = [len(decoder.get_parameter(f"{path}.weight")) for path in place.ours]
    parts = {}
    for path, b in zip(place.ours, factors["b"].split(rows), strict=True):
        used = b.ne(0).any(0)
        if used.any():
            parts[path] = {"a": factors["a"][used], "b": b[:, used].contiguous()}
    return parts


def _by_pattern(settings: Mapping[str, Any], name: str, patterns: str, default: str) -> Any:
    """The number of a module: of the first pattern that it matches, else the default."""
    chosen, given = settings.get(default), settings.get(patterns) or {}
    for pattern in given if isinstance(given, dict) else [given]:
        if not isinstance(pattern, str) or not PATH.fullmatch(pattern):
            raise InputError(f"{patterns} must have names of modules, not regular expressions, got {pattern!r}")
        plain = pattern.removeprefix("^").removesuffix("$")
        if name == plain or (name.endswith(f".{plain}") and not pattern.startswith("^")):
            chosen = given[pattern]
            break
    if isinstance(chosen, bool) or not isinstance(chosen, int | float) or not 0 < chosen < math.inf:
        raise InputError(f"{default} of {name} must be a positive number, got {chosen!r}")
    return chosen


def _share(rank: int, stabilised: bool) -> float:
    return math.sqrt(rank) if stabilised else float(rank)


def _alpha(scale: float, rank: int, stabilised: bool) -> int | float:
    """The alpha with this scale, bit for bit if possible, preferably an integer."""
    share = _share(rank, stabilised)
    near = scale * share
    candidates = (round(near), near, math.nextafter(near, 0.0), math.nextafter(near, math.inf))
    return next((alpha for alpha in candidates if alpha / share == scale), near)


def _default_and_others(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most common value, and the other values by name."""
    default = Counter(values.values()).most_common(1)[0][0]
    return default, {name: value for name, value in values.items() if value != default}


def _shortest(short: Mapping[str, str], chosen: list[str]) -> list[str]:
    """The chosen names, shortened if every module with the same short name is chosen."""
    partial = {short[name] for name in short if name not in chosen}
    return list(dict.fromkeys(name if short[name] in partial else short[name] for name in chosen))
