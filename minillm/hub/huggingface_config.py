"""Conversion between config.json and DecoderConfig, by one table per family: GPT-2, Llama and the relatives of Llama.

A setting with a value that minillm does not compute with is refused. A decoder of no family is written with the field
names of DecoderConfig, as `model_type` minillm.
"""

from pathlib import Path
from typing import Any

from minillm.config import GPT2_CHOICES, LLAMA_CHOICES, DecoderConfig
from minillm.errors import InputError
from minillm.hub.family import Family, Part, Settings, as_written, config_of
from minillm.hub.llama_settings import (
    BIASES,
    DROPOUT,
    GPT2_DROPOUTS,
    HEAD_WIDTH,
    OWN_CHOICES,
    QWEN_WINDOW,
    ROPE,
    UNROTATED,
    WINDOW,
)
from minillm.runtime.progress import note
from minillm.runtime.reading import read_json, reading

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    choices=GPT2_CHOICES,
    names={
        "vocab_size": "vocabulary", "n_layer": "layers", "n_embd": "width", "n_head": "heads",
        "n_inner": "feed_forward_width", "n_positions": "context_length", "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={"feed_forward_width": lambda sizes: 4 * sizes["width"], "norm_eps": 1e-5, "tie_embeddings": True},
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,), "quantization_config": (None,),
    },
    parts=(GPT2_DROPOUTS,),
)  # fmt: skip


def _relative(model_type: str, architecture: str, *parts: Part, tied: bool = False, **choices: Any) -> Family:
    """Llama itself, or a family with its names and with other settings beside them."""
    return Family(
        model_type=model_type,
        architecture=architecture,
        choices=LLAMA_CHOICES | choices,
        names={
            "vocab_size": "vocabulary", "num_hidden_layers": "layers", "hidden_size": "width",
            "num_attention_heads": "heads", "num_key_value_heads": "kv_heads",
            "intermediate_size": "feed_forward_width", "max_position_embeddings": "context_length",
            "rms_norm_eps": "norm_eps", "tie_word_embeddings": "tie_embeddings",
        },
        defaults={"kv_heads": lambda sizes: sizes["heads"], "norm_eps": 1e-6, "tie_embeddings": tied},
        fixed={"hidden_act": ("silu",), "quantization_config": (None,)},
        parts=(HEAD_WIDTH, ROPE, DROPOUT, *parts),
    )  # fmt: skip


# Any other decoder, described by the fields of DecoderConfig.
OWN = Family(
    "minillm", None, {},
    {name: name for name in (
        "norm", "norm_first", "positions", "feed_forward", "vocabulary", "layers", "width", "heads", "kv_heads",
        "feed_forward_width", "context_length", "tie_embeddings", "rope_theta", "norm_eps", "dropout",
    )},
    {}, {}, (OWN_CHOICES,),
)  # fmt: skip
FAMILIES = {
    family.model_type: family
    for family in (
        GPT2,
        _relative("llama", "LlamaForCausalLM", BIASES),
        _relative("mistral", "MistralForCausalLM", WINDOW, bias=False),
        _relative("qwen2", "Qwen2ForCausalLM", QWEN_WINDOW, bias="query_key_value"),
        _relative("qwen3", "Qwen3ForCausalLM", QWEN_WINDOW, BIASES, query_key_norm=True),
        _relative("smollm3", "SmolLM3ForCausalLM", QWEN_WINDOW, BIASES, UNROTATED, tied=True),
        OWN,
    )
}
GEMMA = "scales its embeddings, adds 1 to the weights of its norms and has a gated GELU"
REFUSED = {
    "gemma": GEMMA, "gemma2": f"{GEMMA}, four norms per block and capped logits",
    "gemma3_text": f"{GEMMA}, four norms per block and local layers with other rotary frequencies",
    "phi": "rotates a part of each head and adds attention and feed-forward in one step",
    "phi3": "stores fused matrices and scales rotary positions by a list of factors",
    "mixtral": "has a mixture of experts", "qwen2_moe": "has a mixture of experts",
    "qwen3_moe": "has a mixture of experts",
}  # fmt: skip
"""Models that people ask for, and what the decoder of minillm does not have."""


def read(path: Path) -> tuple[str, DecoderConfig]:
    """The model_type and the config of a config.json."""
    settings = read_json(path)
    kind = settings.get("model_type")
    if kind not in tuple(FAMILIES):
        reason = f": a {kind} model {REFUSED[kind]}" if isinstance(kind, str) and kind in REFUSED else ""
        raise InputError(f"{path}: the model_type must be {', '.join(FAMILIES)}, got {kind!r}{reason}")
    family = FAMILIES[kind]
    with reading(path):
        for name, allowed in family.fixed.items():
            if name in settings and settings[name] not in allowed:
                raise InputError(f"minillm supports {name} = {allowed[0]!r}, got {settings[name]!r}")
        config = config_of(settings, family)
    _report_dropouts(path, settings, config)
    return kind, config


def _report_dropouts(path: Path, settings: Settings, config: DecoderConfig) -> None:
    """minillm has one dropout: several that differ are 0, which changes training and not inference."""
    given = {name: settings[name] for name in (*GPT2_DROPOUTS.names, "attention_dropout") if settings.get(name)}
    if given and config.dropout == 0:
        listed = ", ".join(f"{name} = {value}" for name, value in given.items())
        note(f"{path}: minillm has one dropout; it is 0 here, instead of {listed}")


def written(config: DecoderConfig) -> Settings:
    """The config.json of a decoder, with the names of the first family that describes it whole."""
    for family in FAMILIES.values():
        settings = as_written(config, family)
        if settings is not None:
            return settings
    raise AssertionError("every decoder has the fields of DecoderConfig")
