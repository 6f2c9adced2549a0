"""config.json of the GPT-2 and Llama families, to a DecoderConfig and back, by one table for each family.

A setting that would change the computation is refused unless it asks for what minillm computes. A decoder of
neither family is described in our own words, as `model_type` minillm, which transformers does not know.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_origin

from minillm.config import DecoderConfig
from minillm.errors import InputError

Settings = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """`names` maps config.json to the fields of a DecoderConfig (several names may have to agree on one field).

    `choices` is what the family fixes of a DecoderConfig, `silent` what a missing setting means, and `fixed` the
    settings that must have one of these values, where they are there; the first is written.
    """

    model_type: str
    architecture: str
    choices: Mapping[str, Any]
    names: Mapping[str, str]
    silent: Mapping[str, Any]
    fixed: Mapping[str, tuple[Any, ...]]


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    choices={"norm": "layer", "norm_first": True, "positions": "learned", "feed_forward": "gelu", "bias": True},
    names={
        "vocab_size": "vocabulary",
        "n_layer": "layers",
        "n_embd": "width",
        "n_head": "heads",
        "n_inner": "feed_forward_width",
        "n_positions": "context_length",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
        "resid_pdrop": "dropout",
        "embd_pdrop": "dropout",
        "attn_pdrop": "dropout",
    },
    silent={"norm_eps": 1e-5, "tie_embeddings": True, "dropout": 0.1},
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    },
)
LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    choices={"norm": "rms", "norm_first": True, "positions": "rotary", "feed_forward": "swiglu"},
    names={
        "vocab_size": "vocabulary",
        "num_hidden_layers": "layers",
        "hidden_size": "width",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "intermediate_size": "feed_forward_width",
        "max_position_embeddings": "context_length",
        "rms_norm_eps": "norm_eps",
        "rope_theta": "rope_theta",
        "attention_bias": "bias",
        "mlp_bias": "bias",
        "tie_word_embeddings": "tie_embeddings",
        # transformers' Llama has no such dropout; it passes over the name, and a decoder keeps it.
        "minillm_dropout": "dropout",
    },
    silent={"norm_eps": 1e-6, "rope_theta": 10_000.0, "bias": False, "tie_embeddings": False, "dropout": 0.0},
    fixed={"hidden_act": ("silu",), "attention_dropout": (0.0,), "quantization_config": (None,)},
)
FAMILIES = {family.model_type: family for family in (GPT2, LLAMA)}


def read(path: Path) -> tuple[str, DecoderConfig]:
    """The model_type and the config that a config.json describes, or InputError."""
    settings = read_json(path)
    kind = settings.get("model_type")
    if kind == "minillm":
        return kind, _own(path, settings)
    if kind not in FAMILIES:
        raise InputError(
            f"{path} has the model_type {kind!r}; minillm reads {', '.join(FAMILIES)} and its own, minillm"
        )
    family = FAMILIES[kind]
    settings |= _rope(path, settings)
    for name, allowed in family.fixed.items():
        if name in settings and settings[name] not in allowed:
            raise InputError(f"{path} has {name} = {settings[name]!r}; minillm computes with {allowed[0]!r}")
    config = DecoderConfig(**family.choices, **_sizes(path, settings, family))
    if settings.get("head_dim") not in (None, config.head_width):
        raise InputError(
            f"{path} has head_dim = {settings['head_dim']!r}; minillm computes with heads of width / heads, "
            f"{config.head_width}"
        )
    return kind, config


def written(config: DecoderConfig) -> Settings:
    """The config.json of a decoder, in the words of its family if it has one."""
    ours = asdict(config)
    for family in FAMILIES.values():
        alike = all(ours[name] == value for name, value in family.choices.items())
        # GPT-2 has no word for fewer key/value heads.
        if alike and ("kv_heads" in family.names.values() or config.kv_heads == config.heads):
            fixed = {name: values[0] for name, values in family.fixed.items() if values[0] is not None}
            sizes = {theirs: ours[mine] for theirs, mine in family.names.items()}
            return {"model_type": family.model_type, "architectures": [family.architecture], **fixed, **sizes}
    return {"model_type": "minillm", **ours}


def read_json(path: Path) -> Settings:
    """The object in a JSON file."""
    try:
        settings = json.loads(path.read_text("utf-8"))
    except OSError as problem:
        raise InputError(f"{path}, which such a directory begins with, cannot be read ({problem.strerror})") from None
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path} is no JSON: {problem}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path} holds a {type(settings).__name__}; an object of settings is needed")
    return settings


def _sizes(path: Path, settings: Settings, family: Family) -> dict[str, Any]:
    """The fields that config.json names, each of its type; two names of one field must agree."""
    sizes: dict[str, Any] = {}
    for theirs, mine in family.names.items():
        value = settings.get(theirs)
        if value is None:
            value = family.silent[mine] if mine in family.silent else _derived(path, theirs, mine, sizes)
        value = _typed(path, theirs, value, mine)
        if sizes.setdefault(mine, value) != value:
            raise InputError(
                f"{path} has {theirs} = {value!r} where another has {sizes[mine]!r}; minillm has one {mine}"
            )
    return {"kv_heads": sizes["heads"], **sizes}


def _derived(path: Path, theirs: str, mine: str, sizes: Mapping[str, Any]) -> Any:
    """A size that follows from others when it is not given (n_inner, num_key_value_heads)."""
    if theirs == "n_inner":
        return 4 * sizes["width"]
    if mine == "kv_heads":
        return sizes["heads"]
    raise InputError(f"{path} lacks {theirs}")


def _typed(path: Path, name: str, value: Any, field: str) -> Any:
    """The value if it is of the field's type; a whole number will do for a float."""
    kind = {entry.name: entry.type for entry in fields(DecoderConfig)}[field]
    kind = str if get_origin(kind) is not None else kind
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise InputError(f"{path} has {name} = {value!r}, and it must be of type {getattr(kind, '__name__', kind)}")
    return value


def _rope(path: Path, settings: Settings) -> Settings:
    """rope_theta, wherever this version of transformers wrote it; other rotary positions than plain are refused."""
    plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
    found: Settings = {}
    for name in ("rope_scaling", "rope_parameters"):
        rope = settings.get(name) or {}
        if not isinstance(rope, dict) or any(rope[key] != plain.get(key) for key in rope if key != "rope_theta"):
            raise InputError(f"{path} has {name} = {rope!r}; minillm computes with plain rotary positions")
        found |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if settings.get("partial_rotary_factor", 1) != 1:
        raise InputError(f"{path} has a partial_rotary_factor; minillm turns the whole of a head")
    return found


def _own(path: Path, settings: Settings) -> DecoderConfig:
    """The config of a directory that minillm wrote in its own words."""
    names = [entry.name for entry in fields(DecoderConfig)]
    if missing := [name for name in names if name not in settings]:
        raise InputError(f"{path} lacks {missing[0]}")
    return DecoderConfig(**{name: _typed(path, name, settings[name], name) for name in names})
