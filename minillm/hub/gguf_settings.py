"""Fields of DecoderConfig that are not one key of a GGUF file's metadata, each read and written.

Names that begin with `tensors.` are not metadata, but what the tensors of the file show.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from minillm.config import DecoderConfig, RopeScaling
from minillm.errors import InputError
from minillm.hub.family import Part, Settings, taken
from minillm.hub.llama_settings import MOST_LAYERS
from minillm.ops.positions import unscaled_share

Fields = Mapping[str, Any]
TENSORS = "tensors."
BIASES: dict[tuple[bool, ...], Any] = {
    (False, False, False): False, (True, False, False): "query_key_value", (True, True, False): "attention",
    (False, False, True): "feed_forward", (True, True, True): True,
}  # fmt: skip
"""`bias` by the biases of attn_q, attn_output and ffn_up."""


def of_tensors(shapes: Mapping[str, tuple[int, ...]], rope_freqs: list[float] | None) -> Settings:
    """What the tensors of a file show."""
    present = tuple(f"blk.0.{name}.bias" in shapes for name in ("attn_q", "attn_output", "ffn_up"))
    found = {"vocabulary": shapes["token_embd.weight"][0], "tied": "output.weight" not in shapes}
    found |= {"bias": BIASES.get(present, False), "rope_freqs": rope_freqs}
    return {f"{TENSORS}{name}": value for name, value in found.items()}


BIAS = Part(
    ("tensors.bias",),
    lambda settings, fields: {"bias": settings["tensors.bias"]},
    lambda config: {"tensors.bias": config.bias},
)


def _read_head_width(settings: Settings, fields: Fields) -> dict[str, Any]:
    heads, width = fields["heads"], fields["width"]
    head_width = taken(settings, "attention.key_length", int)
    if head_width is None and (heads < 1 or width % heads):
        return {}  # DecoderConfig refuses these heads
    head_width = width // heads if head_width is None else head_width
    for name in HEAD_WIDTH.names:
        if settings.get(name, head_width) != head_width:
            raise InputError(f"the metadata {name} = {settings[name]!r}; minillm supports only {head_width} here")
    return {"attention_width": None if head_width * heads == width else head_width * heads}


HEAD_WIDTH = Part(
    ("attention.key_length", "attention.value_length", "rope.dimension_count"),
    _read_head_width,
    lambda config: dict.fromkeys(HEAD_WIDTH.names, config.head_width),
)

TYPE, FACTOR, ORIGINAL = "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"
OLD_FACTOR, DIVISORS = "rope.scale_linear", f"{TENSORS}rope_freqs"


def _read_rope(settings: Settings, fields: Fields) -> dict[str, Any]:
    kind, factor = taken(settings, TYPE, str, "linear"), taken(settings, FACTOR, float, settings.get(OLD_FACTOR))
    if kind not in ("none", "linear", "yarn"):
        raise InputError(f"the metadata {TYPE} = {kind!r}; minillm supports none, linear and yarn")
    scaling = None
    if kind == "yarn" and factor is not None:
        original = taken(settings, ORIGINAL, int, fields["context_length"])
        scaling = RopeScaling("yarn", factor, original, 1.0, 32.0, 0.1 * math.log(max(factor, 1.0)) + 1.0)
    elif kind == "linear" and factor is not None and (factor != 1.0 or TYPE in settings):
        scaling = RopeScaling("linear", taken({FACTOR: factor}, FACTOR, float))
    return {"rope_theta": taken(settings, "rope.freq_base", float, 10_000.0), "rope_scaling": scaling}


def _write_rope(config: DecoderConfig) -> Settings:
    found: Settings = {"rope.freq_base": config.rope_theta}
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "llama3":
        return found
    original = {ORIGINAL: scaling.original_context} if scaling.kind == "yarn" else {}
    return found | {TYPE: scaling.kind, FACTOR: scaling.factor} | original


ROPE = Part(("rope.freq_base", TYPE, FACTOR, OLD_FACTOR, ORIGINAL), _read_rope, _write_rope)

# llama.cpp's converter writes the scaling of Llama 3 as a tensor, and nowhere the numbers from which it follows. Those
# of all released models are these; only the factor differs, which is the largest number in the tensor.
LLAMA_3 = RopeScaling("llama3", 8.0, original_context=8192, slow=1.0, fast=4.0)


def _read_freqs(settings: Settings, fields: Fields) -> dict[str, Any]:
    if settings.get(DIVISORS) is None:
        return {}
    divisors = settings[DIVISORS]
    original = taken(settings, ORIGINAL, int, LLAMA_3.original_context)
    scaling = replace(LLAMA_3, factor=max(divisors), original_context=original)
    expected = _divisors(2 * len(divisors), fields["rope_theta"], scaling)
    if not torch.allclose(torch.tensor(divisors), expected, rtol=1e-4):
        raise InputError("rope_freqs.weight differs from the scaling of Llama 3.1, which minillm supports")
    return {"rope_scaling": scaling}


def _divisors(head_width: int, theta: float, scaling: RopeScaling) -> torch.Tensor:
    """The numbers by which llama.cpp divides the frequency of each pair, in float32."""
    frequencies = theta ** (-torch.arange(0, head_width, 2) / head_width)
    share = unscaled_share(frequencies, theta, scaling)
    return 1 / (share + (1 - share) / scaling.factor)


def _write_freqs(config: DecoderConfig) -> Settings:
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return {}
    same = scaling.original_context == LLAMA_3.original_context
    original = {} if same else {ORIGINAL: scaling.original_context}
    return original | {DIVISORS: _divisors(config.head_width, config.rope_theta, scaling).tolist()}


ROPE_FREQS = Part((ORIGINAL, DIVISORS), _read_freqs, _write_freqs)


def _read_unrotated(settings: Settings, fields: Fields) -> dict[str, Any]:
    """llama.cpp's SmolLM3 has no rotary positions in every fourth layer; the file does not say it."""
    return {"unrotated_layers": tuple(range(3, min(fields["layers"], MOST_LAYERS), 4))}


UNROTATED = Part((), _read_unrotated, lambda config: {})
