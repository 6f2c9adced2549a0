"""Conversion between config.json and DecoderConfig, by one table per family: GPT-2 and Llama.

A setting with a value that minillm does not compute with is refused. A decoder of neither family is written with the
field names of DecoderConfig, as `model_type` minillm.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_origin

from minillm.config import GPT2_CHOICES, LLAMA_CHOICES, DecoderConfig
from minillm.errors import InputError

Settings = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """`names` maps settings (config.json, GGUF metadata) to fields of DecoderConfig; names of one field must agree.

    `choices` are the fields that the family fixes, `defaults` the values of missing settings (or functions of the
    fields so far), and `fixed` the allowed values of other settings, of which the first is written.
    """

    model_type: str
    architecture: str | None
    choices: Mapping[str, Any]
    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, tuple[Any, ...]]


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    choices=GPT2_CHOICES,
    names={
        "vocab_size": "vocabulary", "n_layer": "layers", "n_embd": "width", "n_head": "heads",
        "n_inner": "feed_forward_width", "n_positions": "context_length", "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
        "resid_pdrop": "dropout", "embd_pdrop": "dropout", "attn_pdrop": "dropout",
    },
    defaults={
        "feed_forward_width": lambda sizes: 4 * sizes["width"],
        "norm_eps": 1e-5, "tie_embeddings": True, "dropout": 0.1,
    },
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,), "quantization_config": (None,),
    },
)  # fmt: skip
LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    choices=LLAMA_CHOICES,
    names={
        "vocab_size": "vocabulary", "num_hidden_layers": "layers", "hidden_size": "width",
        "num_attention_heads": "heads", "num_key_value_heads": "kv_heads",
        "intermediate_size": "feed_forward_width", "max_position_embeddings": "context_length",
        "rms_norm_eps": "norm_eps", "rope_theta": "rope_theta", "attention_bias": "bias", "mlp_bias": "bias",
        "tie_word_embeddings": "tie_embeddings",
        # transformers' Llama has no such dropout and ignores the name.
        "minillm_dropout": "dropout",
    },
    defaults={
        "kv_heads": lambda sizes: sizes["heads"],
        "norm_eps": 1e-6, "rope_theta": 10_000.0, "bias": False, "tie_embeddings": False, "dropout": 0.0,
    },
    fixed={"hidden_act": ("silu",), "attention_dropout": (0.0,), "quantization_config": (None,)},
)  # fmt: skip
# Any other decoder, described by the fields of DecoderConfig.
OWN = Family("minillm", None, {}, {field.name: field.name for field in fields(DecoderConfig)}, {}, {})
FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, OWN)}
KINDS = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string"}


def read(path: Path) -> tuple[str, DecoderConfig]:
    """The model_type and the config of a config.json."""
    settings = read_json(path)
    kind = settings.get("model_type")
    if kind not in tuple(FAMILIES):
        raise InputError(f"{path}: the model_type must be {', '.join(FAMILIES)}, got {kind!r}")
    family = FAMILIES[kind]
    settings |= _rope(path, settings)
    for name, allowed in family.fixed.items():
        if name in settings and settings[name] not in allowed:
            raise InputError(f"{path}: minillm supports {name} = {allowed[0]!r}, got {settings[name]!r}")
    config = DecoderConfig(**family.choices, **sizes(path, settings, family))
    if settings.get("head_dim") not in (None, config.head_width):
        raise InputError(
            f"{path}: minillm supports head_dim = width / heads = {config.head_width}, got {settings['head_dim']!r}"
        )
    return kind, config


def written(config: DecoderConfig) -> Settings:
    """The config.json of a decoder, with the names of its family if it has one."""
    ours = asdict(config)
    for family in FAMILIES.values():
        alike = all(ours[name] == value for name, value in family.choices.items())
        # GPT-2 has no setting for fewer key/value heads.
        if alike and ("kv_heads" in family.names.values() or config.kv_heads == config.heads):
            break
    fixed = {name: values[0] for name, values in family.fixed.items() if values[0] is not None}
    named = {theirs: ours[mine] for theirs, mine in family.names.items()}
    architectures = {"architectures": [family.architecture]} if family.architecture else {}
    return {"model_type": family.model_type, **architectures, **fixed, **named}


def read_json(path: Path) -> Settings:
    """The object in a JSON file."""
    try:
        settings = json.loads(path.read_text("utf-8"))
    except OSError as problem:
        raise InputError(
            f"{path} cannot be read ({problem.strerror}); give a model or an adapter that has it"
        ) from None
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path} is not valid JSON: {problem}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path} must be a JSON object, got {type(settings).__name__}")
    return settings


def sizes(path: Path, settings: Settings, family: Family) -> dict[str, Any]:
    """The fields of DecoderConfig in the settings, checked for their types."""
    found: dict[str, Any] = {}
    for theirs, mine in family.names.items():
        value = settings.get(theirs)
        if value is None:
            if mine not in family.defaults:
                raise InputError(f"{path} lacks {theirs}")
            default = family.defaults[mine]
            value = default(found) if callable(default) else default
        value = _typed(path, theirs, value, mine)
        if found.setdefault(mine, value) != value:
            raise InputError(f"{path} has {theirs} = {value!r}; minillm has one {mine}, already {found[mine]!r}")
    return {"kv_heads": found["heads"], **found}


def _typed(path: Path, name: str, value: Any, field: str) -> Any:
    """The value, if it has the type of the field; an integer is accepted for a float."""
    kind = {entry.name: entry.type for entry in fields(DecoderConfig)}[field]
    kind = str if get_origin(kind) is not None else kind
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise InputError(f"{path}: {name} must be {KINDS[kind]}, got {value!r}")
    return value


def _rope(path: Path, settings: Settings) -> Settings:
    """rope_theta, from wherever this version of transformers wrote it. Refuses scaled rotary positions."""
    plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
    found: Settings = {}
    for name in ("rope_scaling", "rope_parameters"):
        rope = settings.get(name) or {}
        if not isinstance(rope, dict) or any(rope[key] != plain.get(key) for key in rope if key != "rope_theta"):
            raise InputError(f"{path}: minillm supports unscaled rotary positions, got {name} = {rope!r}")
        found |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if settings.get("partial_rotary_factor", 1) != 1:
        raise InputError(f"{path}: minillm supports partial_rotary_factor = 1, got {settings['partial_rotary_factor']}")
    return found
