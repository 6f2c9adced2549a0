"""Export and import of adapters in the format of peft (Hugging Face).

    LoRA, DoRA, PiSSA   peft's LoRA (`peft_lora.py`); PiSSA becomes a LoRA of twice its rank
    PrefixTuning        peft's prefix tuning: kv_heads heads, keys after the rotation, text positions from P on
    SoftPrompt          peft's prompt tuning

The tensors are bit for bit the same. What peft's format cannot express, and settings that minillm does not compute
with, are refused. The format does not identify the weights of the base, so the caller must know it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from minillm.adapt.description import most_bytes
from minillm.adapt.low_rank import LowRank
from minillm.adapt.method import Adaptation
from minillm.adapt.prefix_tuning import PrefixTuning
from minillm.adapt.soft_prompt import SoftPrompt
from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.hub import peft_lora
from minillm.runtime.files import commit, complete
from minillm.runtime.finite import check_finite
from minillm.runtime.reading import open_tensors, read_json, reading

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PROMPT = "prompt_embeddings"
# Settings that are used here, or that describe training and not the computation: of all adapters, and of prompts.
ABOUT = {
    "peft_type", "peft_version", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping",
}  # fmt: skip
PROMPT_SETTINGS = {
    "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
    "encoder_hidden_size", "encoder_reparameterization_type", "prefix_projection", "init_weights",
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
}  # fmt: skip
Settings = Mapping[str, Any]


def export_peft(method: Adaptation, directory: str | Path, base_name: str | None = None) -> None:
    """Write adapter_config.json and adapter_model.safetensors for `PeftModel.from_pretrained(model, directory)`.

    `base_name` is stored as the name of the base. Raises InputError for a method that peft lacks or cannot express, and
    for a base of no family of transformers.
    """
    if isinstance(method, LowRank):
        settings, tensors = peft_lora.written_low_rank(method)
    elif isinstance(method, PrefixTuning):
        settings, tensors = _written_prefix(method)
    elif isinstance(method, SoftPrompt):
        settings, tensors = _written_prompt(method)
    else:
        raise InputError(f"peft has no {type(method).__name__}; export LoRA, DoRA, PiSSA, PrefixTuning or SoftPrompt")
    about = {"base_model_name_or_path": base_name, "task_type": "CAUSAL_LM", "inference_mode": True}
    with commit(directory) as new:
        new.tensors(TENSORS, tensors, {"format": "pt"})
        new.text(CONFIG, json.dumps(about | settings, indent=2) + "\n")


def import_peft(decoder: Decoder, directory: str | Path) -> Adaptation:
    """The method of a peft adapter on this decoder, in evaluation mode.

    Raises InputError for a peft_type other than LORA, PREFIX_TUNING and PROMPT_TUNING, for settings that minillm does
    not compute with, and for tensors that are missing, unexpected or misshapen.
    """
    directory = Path(directory)
    complete(directory)
    settings = read_json(directory / CONFIG)
    kinds = {
        "LORA": (peft_lora.read_low_rank, peft_lora.SETTINGS),
        "PREFIX_TUNING": (_read_prefix, PROMPT_SETTINGS),
        "PROMPT_TUNING": (_read_prompt, PROMPT_SETTINGS),
    }
    if settings.get("peft_type") not in list(kinds):
        raise InputError(f"{directory}: the peft_type must be {', '.join(kinds)}, got {settings.get('peft_type')!r}")
    peft_lora.places(decoder.config)
    read, known = kinds[settings["peft_type"]]
    for name, value in settings.items():
        if name not in known | ABOUT and value not in (None, False, "none", [], {}):
            raise InputError(f"{directory} has {name} = {value!r}, which minillm does not support"[:500])
    with reading(directory, "an adapter of peft"):
        return read(decoder, settings, _tensors(directory, decoder)).eval()


def _tensors(directory: Path, decoder: Decoder) -> dict[str, Tensor]:
    path = directory / TENSORS
    if not path.is_file():
        pickled = "; adapter_model.bin is a pickle, which is never opened: save it as safetensors"
        raise InputError(f"{path} is missing{pickled if path.with_suffix('.bin').exists() else ''}")
    if path.stat().st_size > (most := most_bytes(decoder)):
        raise InputError(f"an adapter of this base has at most {most} bytes, got {path.stat().st_size}")
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"the tensor {name} must have a floating-point dtype, got {tensor.dtype}"[:500])
    check_finite(tensors, str(path))
    return tensors


def _prompt_settings(kind: str, method: PrefixTuning | SoftPrompt, length: int, heads: int, width: int) -> dict:
    peft_lora.places(method.config)
    return {
        "peft_type": kind, "num_virtual_tokens": length, "token_dim": width, "num_transformer_submodules": 1,
        "num_attention_heads": heads, "num_layers": method.config.layers,
    }  # fmt: skip


def _written_prompt(method: SoftPrompt) -> tuple[dict[str, Any], dict[str, Tensor]]:
    prompt, config = method.state()["prompt"], method.config
    settings = _prompt_settings("PROMPT_TUNING", method, len(prompt), config.heads, config.width)
    return settings | {"prompt_tuning_init": "RANDOM"}, {PROMPT: prompt}


def _read_prompt(decoder: Decoder, settings: Settings, tensors: Mapping[str, Tensor]) -> SoftPrompt:
    prompt = _only(settings, tensors, decoder.config.width)
    return SoftPrompt.from_state(decoder, {"length": len(prompt), "init": "vocabulary"}, {"prompt": prompt})


def _written_prefix(method: PrefixTuning) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The row of a position concatenates, layer by layer, the keys of all heads and the values of all heads."""
    state, config = method.state(), method.config
    if "gate" in state:
        raise InputError("peft's prefix tuning has no gate: train with gated=False")
    if not method.shift_positions:
        raise InputError("in peft's prefix tuning the text's positions start at P: train with shift_positions=True")
    _check_window(config)
    sides = torch.stack((state["keys"], state["values"]), 1)
    width = config.kv_heads * config.head_width
    settings = _prompt_settings("PREFIX_TUNING", method, sides.shape[3], config.kv_heads, width)
    settings |= {"encoder_hidden_size": width, "prefix_projection": False}
    return settings, {PROMPT: rearrange(sides, "L sides G P K -> P (L sides G K)")}


def _read_prefix(decoder: Decoder, settings: Settings, tensors: Mapping[str, Tensor]) -> PrefixTuning:
    config = decoder.config
    _check_window(config)
    flat = _only(settings, tensors, 2 * config.layers * config.kv_heads * config.head_width)
    sides = rearrange(flat, "P (L sides G K) -> sides L G P K", L=config.layers, sides=2, G=config.kv_heads)
    keys, values = (side.contiguous() for side in sides)
    options = {"length": len(flat), "init": "random", "hidden": None, "gated": False, "shift_positions": True}
    return PrefixTuning.from_state(decoder, options, {"keys": keys, "values": values})


def _check_window(config: DecoderConfig) -> None:
    if config.window is not None and config.window < config.context_length:
        raise InputError("in transformers a sliding window passes over peft's prefix, and in minillm over tokens only")


def _only(settings: Settings, tensors: Mapping[str, Tensor], width: int) -> Tensor:
    """The tensor of a prompt, checked for its shape."""
    if set(tensors) != {PROMPT}:
        raise InputError(f"a prompt must be the one tensor {PROMPT}, got {', '.join(tensors) or 'none'}"[:500])
    shape, length = tuple(tensors[PROMPT].shape), settings.get("num_virtual_tokens")
    if shape != (length, width):
        raise InputError(f"the prompt must have the shape {(length, width)}, got {shape}")
    return tensors[PROMPT]
