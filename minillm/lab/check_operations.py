"""Cases with single operations for `minillm check`: arguments in the sizes of a config, and the numpy reference.

If an operation has several cases, the worst one is reported.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minillm import operations
from minillm.config import DecoderConfig
from minillm.lab.trust import Arrays, Case
from minillm.operations import IGNORED, Prefix
from minillm.reference.attention import Prefix as NumpyPrefix
from minillm.reference.attention import visible_keys

BATCH, TOKENS, CACHED, PROMPT, RANK, ADAPTERS = 2, 7, 4, 3, 5, 2
WINDOW = 2
"""Of the cases with a window, which must be shorter than the text to have an effect."""
WIDE = {"sinusoidal", "rotary_tables"}
FROZEN = {"lora", "lora_by_row", "updated_norms"}
"""Operations with a frozen weight."""


def operation_cases(config: DecoderConfig, random: np.random.Generator) -> Iterator[Case]:
    """One case or more for each operation."""
    normal, lead = random.normal, (BATCH, TOKENS)
    width, inner, head, vocabulary = config.width, config.feed_forward_width, config.head_width, config.vocabulary
    mask = padded(BATCH, TOKENS)
    positions = mask.cumsum(-1).astype(float)
    yield operation_case(
        "embedding", "embedding", ids=random.integers(0, vocabulary, lead), weight=normal(size=(vocabulary, width))
    )
    yield operation_case("positions", "token_positions", mask=mask, start=PROMPT)
    yield operation_case("positions", "token_positions", mask=packed(mask), start=PROMPT)
    yield operation_case("positions", "sinusoidal", positions=positions, width=width + width % 2)
    even = head + head % 2
    tables = {"positions": positions, "head_width": even, "theta": config.rope_theta, "scaling": config.rope_scaling}
    yield operation_case("positions", "rotary_tables", **tables)
    angles = normal(size=(*lead, (head + 1) // 2))
    vectors = normal(size=(BATCH, config.heads, TOKENS, even))
    yield operation_case("positions", "rotary", vectors=vectors, cos=np.cos(angles), sin=np.sin(angles))
    hidden, gain = normal(size=(*lead, width)), 1 + 0.3 * normal(size=width)
    yield operation_case("linear", "linear", x=hidden, weight=normal(size=(inner, width)), bias=normal(size=inner))
    yield operation_case("norm", "layer_norm", hidden=hidden, weight=gain, bias=normal(size=width), eps=config.norm_eps)
    yield operation_case("norm", "rms_norm", hidden=hidden, weight=gain, eps=config.norm_eps)
    yield from _attention_cases(config, random, mask)
    up = normal(size=(*lead, inner))
    # Away from 0, where relu has no derivative.
    yield operation_case("feed_forward", "relu", up=np.sign(up) * (np.abs(up) + 0.01))
    yield operation_case("feed_forward", "gelu", up=up)
    yield operation_case("feed_forward", "swiglu", gate=normal(size=up.shape), up=up)
    yield operation_case("dropout", "dropout", hidden=hidden, probability=0.3, keep=random.random(hidden.shape) > 0.3)
    yield operation_case("softmax", "softmax", scores=normal(size=(*lead, TOKENS)))
    yield operation_case("softmax", "log_softmax", scores=normal(size=(*lead, TOKENS)))
    labels = np.where(mask.ravel(), random.integers(0, vocabulary, mask.size), IGNORED)
    table = normal(size=(vocabulary, width)) / np.sqrt(width)
    yield operation_case(
        "linear_cross_entropy", "linear_cross_entropy", hidden=hidden.reshape(-1, width), weight=table, labels=labels
    )
    yield from _low_rank_cases(config, random, hidden)


def _attention_cases(config: DecoderConfig, random: np.random.Generator, mask: np.ndarray) -> Iterator[Case]:
    """Plain, padded, with cached keys, with a shared prefix, with a gated one, and with a window, packed or not."""
    shared = (BATCH, config.kv_heads, TOKENS, config.head_width)
    query = random.normal(size=(BATCH, config.heads, TOKENS, config.head_width))
    key, value = random.normal(size=(2, *shared))
    prompt = {
        side: random.normal(size=(1, config.kv_heads, PROMPT, config.head_width))
        for side in ("prefix.key", "prefix.value")
    }
    gated = prompt | {"prefix.gate": random.normal(size=config.heads)}
    case = partial(operation_case, "attention", "attention", key=key, value=value)
    yield case(query=query)
    yield case(query=query, mask=mask)
    yield case(query=query[:, :, CACHED:])
    yield case(query=query, mask=mask, **prompt)
    yield case(query=query, **gated)
    for kind in (mask, packed(mask)):
        yield case(query=query, mask=kind, window=WINDOW, **prompt)
    visible = visible_keys(TOKENS, TOKENS, mask)
    yield operation_case("attention", "attention_weights", query=query, key=key, visible=visible)
    yield operation_case("attention", "visible_keys", queries=TOKENS - CACHED, keys=TOKENS, mask=mask)


def _low_rank_cases(config: DecoderConfig, random: np.random.Generator, hidden: np.ndarray) -> Iterator[Case]:
    narrow = config.kv_heads * config.head_width
    shapes = {"weight": (narrow, config.width), "a": (RANK, config.width), "b": (narrow, RANK)}
    factors = {name: random.normal(size=shape) / np.sqrt(shape[1]) for name, shape in shapes.items()}
    bias, dropped = random.normal(size=narrow), hidden * (random.random(hidden.shape) > 0.3)
    yield operation_case("lora", "lora", x=hidden, bias=None, scale=0.7, **factors)
    yield operation_case("lora", "lora", x=hidden, bias=bias, scale=0.7, dropped=dropped, **factors)
    stacked = {side: random.normal(size=(ADAPTERS, *factors[side].shape)) / 2 for side in ("a", "b")}
    adapter, weight = np.resize([ADAPTERS - 1, -1], BATCH), factors["weight"]
    yield operation_case("lora_by_row", "lora_by_row", x=hidden, weight=weight, bias=bias, adapter=adapter, **stacked)
    yield operation_case("dora", "updated_norms", scale=0.7, **factors)


def padded(batch: int, tokens: int) -> np.ndarray:
    """A mask with left padding in the first row and right padding in the last."""
    mask = np.ones((batch, tokens), bool)
    mask[0, :2] = mask[-1, -1:] = False
    return mask


def packed(mask: np.ndarray) -> np.ndarray:
    """The mask of packed rows with the same padding: the last two tokens are another conversation's."""
    return mask * np.where(np.arange(TOKENS) < TOKENS - 2, 1, 2)


def operation_case(file: str, name: str, **arguments: Any) -> Case:
    """A case whose inputs are the arrays among the arguments. `prefix.key` is the key of the argument `prefix`."""
    inputs = {argument: value for argument, value in arguments.items() if isinstance(value, np.ndarray)}
    rest = {argument: value for argument, value in arguments.items() if argument not in inputs}
    reference = importlib.import_module(f"minillm.reference.{file}")
    forward, backward = (getattr(reference, f"{name}_{way}", None) for way in ("forward", "backward"))
    return Case(
        what=name,
        inputs=inputs,
        forward=partial(_forward, forward or getattr(reference, name), forward is not None, rest),
        backward=None if backward is None else partial(_backward, backward, name),
        run=partial(_run, name, rest),
        wide=name in WIDE,
    )


def _forward(reference: Callable, has_cache: bool, rest: dict[str, Any], inputs: Arrays) -> tuple[np.ndarray, Any]:
    result = reference(**_with_prefix(inputs | rest, NumpyPrefix))
    out, cache = result if has_cache else (result, None)
    return np.asarray(np.stack(out) if isinstance(out, tuple) else out, np.float64), cache


def _backward(reference: Callable, name: str, dout: np.ndarray, cache: Any) -> Arrays:
    gradients = reference(dout, cache)
    prefix = gradients.pop("prefix", None)
    if prefix is not None:
        sides = zip(prefix._fields, prefix, strict=True)
        gradients |= {f"prefix.{side}": gradient for side, gradient in sides if isinstance(gradient, np.ndarray)}
    if name in FROZEN:
        del gradients["weight"]
    return gradients


def _run(
    name: str, rest: dict[str, Any], inputs: dict[str, Tensor], dtype: torch.dtype, device: torch.device
) -> Tensor:
    # Looked up at call time, so that tests can replace it.
    operation = getattr(operations, name)
    places = {"dtype": dtype, "device": device}
    wanted = {place: value for place, value in places.items() if place in inspect.signature(operation).parameters}
    if "positions" in inputs:
        inputs = {**inputs, "positions": inputs["positions"].long()}
    result = operation(**_with_prefix(inputs | rest, Prefix), **wanted)
    return torch.stack(result) if isinstance(result, tuple) else result


def _with_prefix(inputs: dict[str, Any], kind: type) -> dict[str, Any]:
    sides = {name.removeprefix("prefix."): value for name, value in inputs.items() if name.startswith("prefix.")}
    plain = {name: value for name, value in inputs.items() if not name.startswith("prefix.")}
    return plain | ({"prefix": kind(**sides)} if sides else {})
