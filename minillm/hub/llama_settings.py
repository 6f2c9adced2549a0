"""The settings of config.json that are not one field of DecoderConfig under another name, each read and written."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from minillm.config import DecoderConfig, RopeScaling
from minillm.errors import InputError
from minillm.hub.family import Part, Settings, taken

Fields = Mapping[str, Any]


def _read_head_width(settings: Settings, fields: Fields) -> dict[str, Any]:
    # Qwen3 is the only family with a default of its own.
    head_width = taken(settings, "head_dim", int, 128 if settings.get("model_type") == "qwen3" else None)
    width = None if head_width is None else head_width * fields["heads"]
    return {"attention_width": None if width == fields["width"] else width}


HEAD_WIDTH = Part(("head_dim",), _read_head_width, lambda config: {"head_dim": config.head_width})


BIAS_OF = {(False, False): False, (True, False): "attention", (False, True): "feed_forward", (True, True): True}


def _read_biases(settings: Settings, fields: Fields) -> dict[str, Any]:
    return {"bias": BIAS_OF[tuple(taken(settings, name, bool, False) for name in BIASES.names)]}


def _write_biases(config: DecoderConfig) -> Settings:
    return {"attention_bias": config.has_bias("out"), "mlp_bias": config.has_bias("down")}


BIASES = Part(("attention_bias", "mlp_bias"), _read_biases, _write_biases)


def _read_window(settings: Settings, fields: Fields) -> dict[str, Any]:
    # Null means no window; only a missing setting has the default of Mistral 7B.
    return {"window": taken(settings, "sliding_window", int) if "sliding_window" in settings else 4096}


WINDOW = Part(("sliding_window",), _read_window, lambda config: {"sliding_window": config.window})


def _read_qwen_window(settings: Settings, fields: Fields) -> dict[str, Any]:
    """A window that has a switch of its own, and starts at a layer or is in the layers that a list names."""
    window = taken(settings, "sliding_window", int)
    if not taken(settings, "use_sliding_window", bool, False) or window is None:
        return {"window": None}
    layers, start = fields["layers"], taken(settings, "max_window_layers", int, 28)
    listed = taken(settings, "layer_types", list)
    sliding = max(layers - start, 0) if listed is None else sum(kind == "sliding_attention" for kind in listed)
    if sliding not in (0, layers):
        raise InputError(f"a sliding window must be in all layers or in none, got one in {sliding} of {layers}")
    return {"window": window if sliding else None}


def _write_qwen_window(config: DecoderConfig) -> Settings:
    if config.window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": config.window, "max_window_layers": 0}


QWEN_WINDOW = Part(
    ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"), _read_qwen_window, _write_qwen_window
)


MOST_LAYERS = 10_000
"""Above it, the numbers of the layers are not listed: a damaged file could fill the memory."""


def _read_unrotated(settings: Settings, fields: Fields) -> dict[str, Any]:
    """In spite of the name, no_rope_layers has a 1 for each layer with rotary positions."""
    layers, interval = fields["layers"], taken(settings, "no_rope_layer_interval", int, 4)
    if interval < 1:
        raise InputError(f"no_rope_layer_interval must be at least 1, got {interval}")
    if layers > MOST_LAYERS:
        raise InputError(f"num_hidden_layers must be at most {MOST_LAYERS}, got {layers}")
    rotated = taken(settings, "no_rope_layers", list)
    if rotated is None:
        return {"unrotated_layers": tuple(range(interval - 1, layers, interval))}
    if len(rotated) != layers or not all(flag in (0, 1) for flag in rotated):
        raise InputError(f"no_rope_layers must be {layers} numbers 0 or 1, got {str(rotated)[:100]}")
    return {"unrotated_layers": tuple(layer for layer, flag in enumerate(rotated) if not flag)}


def _write_unrotated(config: DecoderConfig) -> Settings:
    return {"no_rope_layers": [int(layer not in config.unrotated_layers) for layer in range(config.layers)]}


UNROTATED = Part(("no_rope_layers", "no_rope_layer_interval"), _read_unrotated, _write_unrotated)


# The settings of each kind of scaling, by the names of RopeScaling's fields. `dynamic` scales only texts longer than
# the context, which minillm refuses.
COMMON = {"factor": "factor", "original_context": "original_max_position_embeddings"}
SCALINGS: dict[str, dict[str, str]] = {
    "default": {},
    "dynamic": {"factor": "factor"},
    "linear": {"factor": "factor"},
    "llama3": COMMON | {"slow": "low_freq_factor", "fast": "high_freq_factor"},
    "yarn": COMMON | {"slow": "beta_slow", "fast": "beta_fast", "attention_factor": "attention_factor"},
}
OTHERS = {"yarn": ("mscale", "mscale_all_dim", "truncate")}
ABOUT_ROPE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def _read_rope(settings: Settings, fields: Fields) -> dict[str, Any]:
    """rope_theta and the scaling, from wherever this version of transformers wrote them."""
    rope = {**(taken(settings, "rope_scaling", dict) or taken(settings, "rope_parameters", dict) or {})}
    rope = {name: settings[name] for name in ("rope_theta", "partial_rotary_factor") if name in settings} | rope
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in tuple(SCALINGS):
        raise InputError(f"the rope_type must be {', '.join(SCALINGS)}, got {kind!r}")
    known = (*SCALINGS[kind].values(), *OTHERS.get(kind, ()), *ABOUT_ROPE)
    if unknown := [name for name, value in rope.items() if name not in known and value is not None]:
        raise InputError(f"minillm does not support {unknown[0]} = {rope[unknown[0]]!r} of rotary positions")
    if rope.get("partial_rotary_factor", 1) != 1 or rope.get("truncate", True) is not True:
        raise InputError("minillm supports partial_rotary_factor = 1 and truncate = true only")
    found: dict[str, Any] = {"rope_theta": taken(rope, "rope_theta", float, 10_000.0)}
    return found | {"rope_scaling": None if kind in ("default", "dynamic") else _scaling(kind, rope, settings, fields)}


def _scaling(kind: str, rope: Settings, settings: Settings, fields: Fields) -> RopeScaling:
    context = taken(settings, "original_max_position_embeddings", int, rope.get("original_max_position_embeddings"))
    rope = rope | {"original_max_position_embeddings": context or fields["context_length"]}
    found: dict[str, Any] = {"kind": kind}
    if kind == "yarn":
        found |= {"slow": 1.0, "fast": 32.0, "attention_factor": _attention_factor(rope)}
    for mine, theirs in SCALINGS[kind].items():
        found[mine] = taken(rope, theirs, int if mine == "original_context" else float, found.get(mine))
        if found[mine] is None:
            raise InputError(f"the rotary scaling {kind} lacks {theirs}")
    return RopeScaling(**found)


def _attention_factor(rope: Settings) -> float:
    """YaRN's factor of queries and keys where it is not given (Peng et al. 2023, equation 22); mscale is DeepSeek's."""
    factor, mscale, over_all = (taken(rope, name, float) for name in ("factor", "mscale", "mscale_all_dim"))

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(max(factor or 1.0, 1.0)) + 1.0

    return scale(mscale) / scale(over_all) if mscale and over_all else scale(1.0)


def _write_rope(config: DecoderConfig) -> Settings:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_theta": config.rope_theta}
    named = {theirs: getattr(scaling, mine) for mine, theirs in SCALINGS[scaling.kind].items()}
    return {"rope_theta": config.rope_theta, "rope_scaling": {"rope_type": scaling.kind, **named}}


ROPE = Part(("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"), _read_rope, _write_rope)


# minillm has one dropout. Where a model has several, they are taken if they agree, and otherwise 0.
GPT2_NAMES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def _read_dropouts(settings: Settings, fields: Fields) -> dict[str, Any]:
    given = {taken(settings, name, float, 0.1) for name in GPT2_NAMES}
    return {"dropout": given.pop() if len(given) == 1 else 0.0}


GPT2_DROPOUTS = Part(GPT2_NAMES, _read_dropouts, lambda config: dict.fromkeys(GPT2_NAMES, config.dropout))
# transformers' Llama has dropout in attention alone, and ignores this name.
DROPOUT = Part(
    ("minillm_dropout", "attention_dropout"),
    lambda settings, fields: {"dropout": taken(settings, "minillm_dropout", float, 0.0)},
    lambda config: {"minillm_dropout": config.dropout},
)


def _read_own(settings: Settings, fields: Fields) -> dict[str, Any]:
    """The fields of DecoderConfig that are not one number or word; older files lack most of them."""
    bias, scaling = settings.get("bias"), taken(settings, "rope_scaling", dict)
    kinds = {"kind": str, "original_context": int}
    if scaling is not None:
        names = asdict(RopeScaling("linear", 1.0))
        if scaling.keys() != names.keys():
            raise InputError(f"rope_scaling must have {', '.join(names)}, got {', '.join(map(str, scaling))}")
        scaling = RopeScaling(**{name: taken(scaling, name, kinds.get(name, float)) for name in names})
    unrotated = taken(settings, "unrotated_layers", list, [])
    if not all(type(layer) is int for layer in unrotated):
        raise InputError(f"unrotated_layers must be integers, got {str(unrotated)[:100]}")
    return {
        "bias": bias if isinstance(bias, str) else taken(settings, "bias", bool, False),
        "attention_width": taken(settings, "attention_width", int),
        "query_key_norm": taken(settings, "query_key_norm", bool, False),
        "rope_scaling": scaling,
        "window": taken(settings, "window", int),
        "unrotated_layers": tuple(unrotated),
    }


OWN_CHOICES = Part(
    ("bias", "attention_width", "query_key_norm", "rope_scaling", "window", "unrotated_layers"),
    _read_own,
    lambda config: (
        {name: value for name, value in asdict(config).items() if name in OWN_CHOICES.names}
        | {"unrotated_layers": list(config.unrotated_layers)}
    ),
)
