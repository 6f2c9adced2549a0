"""Hypothesis strategies: sizes, masks and labels, and the arguments of every operation.

Sizes are prime, so that a wrong axis does not fit. Kernels also get powers of two and their neighbours, for full,
nearly empty and overrun blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import minillm
from minillm.config import RopeScaling
from minillm.lab.check_operations import operation_case
from minillm.operations import IGNORED
from minillm.reference.attention import visible_keys as numpy_visible_keys

SCALINGS = (
    RopeScaling("linear", 3.0),
    RopeScaling("llama3", 8.0, original_context=101),
    RopeScaling("yarn", 4.0, original_context=1009, fast=32.0, attention_factor=1.14),
)
sizes = st.sampled_from((1, 2, 3, 5))
randoms = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def masks(draw, batch, tokens):
    """Rows of real tokens with padding on the left, the right, both sides or neither."""
    mask = np.zeros((batch, tokens), bool)
    for row in mask:
        left = draw(st.integers(0, tokens - 1))
        right = draw(st.integers(0, tokens - 1 - left))
        row[left : tokens - right] = True
    return mask


class Sizes(NamedTuple):
    axes: tuple = (0, 1, 2)
    batch: tuple = (1, 2, 3, 5)
    rows: tuple = (1, 2, 3, 5)
    widths: tuple = (1, 2, 3, 5)
    heads: tuple = (1, 2, 3)
    tokens: tuple = (1, 2, 3, 5)
    cached: tuple = (0, 0, 1, 3)
    prompts: tuple = (1, 2, 5)
    ranks: tuple = (1, 2, 3, 5)
    vocabularies: tuple = (1, 2, 3, 5, 13)
    real: tuple = (0.0, 0.5, 0.9)
    windows: tuple = (None, None, 1, 2, 3)
    packs: tuple = (False, True)
    spreads: tuple = (0.1, 1.0, 5.0)


SMALL = Sizes()
# Enough numbers for an error relative to the largest, and no input so steep or flat that its gradient cancels.
FOR_ROUNDING = Sizes(
    axes=(1, 2), batch=(2, 3, 5), rows=(5, 7), widths=(7, 13, 31), tokens=(7, 13), vocabularies=(5, 13),
    ranks=(2, 3, 5), real=(0.9,), spreads=(0.1, 1.0), windows=(None, 5),
)  # fmt: skip
FOR_KERNELS = Sizes(
    batch=(1, 2), rows=(0, 1, 2, 3, 5, 13, 67), widths=(1, 2, 3, 7, 16, 17, 31, 37, 61, 64, 97, 127, 128),
    tokens=(1, 5, 17, 31), cached=(0, 0, 1, 19), prompts=(0, 1, 17), ranks=(1, 2, 5, 8, 16, 17, 64),
    vocabularies=(1, 2, 61, 64), windows=(None,), packs=(False,),
)  # fmt: skip


@dataclass
class Drawing:
    """One example of hypothesis: it chooses the sizes, `random` the numbers."""

    draw: Callable[[Any], Any]
    random: np.random.Generator
    sizes: Sizes

    def one_of(self, *values):
        return self.draw(st.sampled_from(values))

    def size(self, name):
        return self.one_of(*getattr(self.sizes, name))

    def leading(self):
        return ((), (self.size("rows"),), (3, self.size("rows")))[self.size("axes")]

    def normal(self, *shape):
        return self.random.normal(size=shape)

    def matrix(self, *shape):
        """Rows of about unit norm at any width, so that the terms of a sum have similar sizes."""
        return self.normal(*shape) / np.sqrt(shape[-1])

    def mask(self, real):
        """This mask, or one of rows that hold several conversations and this padding."""
        packed = real * (1 + np.cumsum(self.random.random(real.shape) < 0.4, -1))
        return self.one_of(*(packed if pack else real for pack in self.sizes.packs))

    def spread(self, *shape):
        """Numbers at least 0.25 from 0 and of different sizes: near equal numbers a norm is steep."""
        order = self.random.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
        return (order + self.random.uniform(0.25, 0.75, shape)) * self.random.choice((-1.0, 1.0), shape)


def softmax(d):
    return {"scores": d.size("spreads") * d.normal(*d.leading(), d.size("widths"))}


def embedding(d):
    vocabulary = d.size("vocabularies")
    ids = d.random.integers(0, vocabulary, (d.size("batch"), d.size("tokens")))
    return {"ids": ids, "weight": d.normal(vocabulary, d.size("widths"))}


def dropout(d):
    hidden, probability = d.normal(*d.leading(), d.size("widths")), d.one_of(0.0, 0.1, 0.7)
    return {"hidden": hidden, "probability": probability, "keep": d.random.random(hidden.shape) >= probability}


def token_positions(d):
    return {"mask": d.mask(d.draw(masks(d.size("batch"), d.size("tokens")))), "start": d.draw(st.integers(0, 7))}


def _positions(d):
    return d.random.integers(0, 8000, (d.size("batch"), d.size("tokens"))).astype(float)


def sinusoidal(d):
    return {"positions": _positions(d), "width": d.one_of(2, 6, 10)}


def rotary_tables(d):
    return {"positions": _positions(d), "head_width": d.one_of(2, 6, 10), "theta": d.one_of(100.0, 100_000.0)} | {
        "scaling": d.one_of(None, *SCALINGS)
    }


def rotary(d):
    """Tables for the whole batch, with a batch axis or without, or one for each row."""
    batch, tokens, half = d.size("batch"), d.size("tokens"), d.size("widths")
    angles = d.normal(*d.one_of((), (1,), (batch,)), tokens, half)
    return {"vectors": d.normal(batch, d.size("heads"), tokens, 2 * half), "cos": np.cos(angles), "sin": np.sin(angles)}


def linear(d):
    inner, outer = d.size("widths"), d.size("widths")
    bias = d.one_of(None, d.normal(outer))
    return {"x": d.normal(*d.leading(), inner), "weight": d.matrix(outer, inner), "bias": bias}


def rms_norm(d):
    """A small eps, and a large one whose place in the formula matters."""
    width = d.size("widths")
    return {"hidden": d.spread(*d.leading(), width), "weight": d.normal(width), "eps": d.one_of(1e-5, 0.3)}


def layer_norm(d):
    """With a small eps, two numbers become ±1 and their gradient is lost in rounding."""
    arguments = rms_norm(d)
    width = len(arguments["weight"])
    return arguments | {"bias": d.normal(width), "eps": 0.3 if width == 2 else arguments["eps"]}


def attention(d):
    """Grouped heads, cached keys, any mask, every kind of prefix."""
    batch, groups, width, queries = d.size("batch"), d.size("heads"), d.size("widths"), d.size("tokens")
    heads, keys = groups * d.size("heads"), queries + d.size("cached")
    arguments = {"query": d.normal(batch, heads, queries, width)}
    arguments |= {side: d.normal(batch, groups, keys, width) for side in ("key", "value")}
    if d.one_of(False, True):
        share = d.size("real")
        real = d.random.random((batch, keys)) < share
        real[0, 0] = share > 0
        arguments["mask"] = d.mask(real)
    if d.one_of(False, True):
        shape = d.one_of(1, batch), groups, d.size("prompts"), width
        arguments |= {f"prefix.{side}": d.normal(*shape) for side in ("key", "value")}
        if shape[2] and d.one_of(False, True):
            arguments["prefix.gate"] = d.normal(heads)
        arguments["prefix.windowed"] = d.one_of(False, True)
    return arguments | {"window": d.size("windows")}


def visible_keys(d):
    arguments = attention(d)
    queries, keys = (arguments[side].shape[2] for side in ("query", "key"))
    return {
        "queries": queries, "keys": keys, "mask": arguments.get("mask"), "window": arguments["window"],
        "always": d.one_of(0, 1, 2),
    }  # fmt: skip


def attention_weights(d):
    arguments = attention(d)
    query, key = arguments["query"], arguments["key"]
    visible = numpy_visible_keys(query.shape[2], key.shape[2], arguments.get("mask"), arguments["window"])
    return {"query": query, "key": key, "visible": visible}


def relu(d):
    """Not near 0, where relu has no gradient."""
    up = d.normal(*d.leading(), d.size("widths"))
    return {"up": up + 0.01 * np.sign(up)}


def gelu(d):
    """Several spreads: a sigmoid is nearly linear near 0 and nearly a step far from it."""
    return {"up": d.size("spreads") * d.normal(*d.leading(), d.size("widths"))}


def swiglu(d):
    gate = gelu(d)["up"]
    return {"gate": gate, "up": d.normal(*gate.shape)}


def linear_cross_entropy(d):
    """Labels of rows, some or all of which are ignored."""
    rows, width, vocabulary = d.size("rows"), d.size("widths"), d.size("vocabularies")
    drawn = np.array(d.draw(st.lists(st.integers(-1, vocabulary - 1), min_size=rows, max_size=rows)), int)
    labels = np.where(drawn < 0, IGNORED, drawn)
    return {"hidden": d.normal(rows, width), "weight": d.normal(vocabulary, width), "labels": labels}


def lora(d):
    arguments, rank = linear(d), d.size("ranks")
    outer, inner = arguments["weight"].shape
    if d.one_of(False, True):
        arguments["dropped"] = d.normal(*arguments["x"].shape)
    return arguments | {"a": d.matrix(rank, inner), "b": d.matrix(outer, rank), "scale": 1.7}


def lora_by_row(d):
    """Some adapters have no row, some rows no adapter."""
    (outer, inner), rank, adapters = (d.size("widths"), d.size("widths")), d.size("ranks"), d.one_of(1, 3)
    batch, tokens, bias = d.size("batch"), d.size("rows"), d.one_of(None, d.normal(outer))
    arguments = {"x": d.normal(batch, tokens, inner), "weight": d.matrix(outer, inner), "bias": bias}
    arguments |= {"a": d.matrix(adapters, rank, inner), "b": d.matrix(adapters, outer, rank)}
    return arguments | {"adapter": d.random.integers(-1, adapters, batch)}


def updated_norms(d):
    """Rows with norms away from 0, where the norm has a kink."""
    outer, inner, rank = d.size("widths"), d.size("widths"), d.size("ranks")
    weight, a, b = (0.1 * d.normal(*shape) for shape in ((outer, inner), (rank, inner), (outer, rank)))
    return {"weight": 1 + weight, "a": a, "b": b, "scale": 1.7}


_FILES = {
    "softmax": {"softmax": softmax, "log_softmax": softmax},
    "embedding": {"embedding": embedding},
    "dropout": {"dropout": dropout},
    "positions": {"token_positions": token_positions, "sinusoidal": sinusoidal}
    | {"rotary_tables": rotary_tables, "rotary": rotary},
    "linear": {"linear": linear},
    "norm": {"rms_norm": rms_norm, "layer_norm": layer_norm},
    "attention": {"attention": attention, "attention_weights": attention_weights, "visible_keys": visible_keys},
    "feed_forward": {"relu": relu, "gelu": gelu, "swiglu": swiglu},
    "linear_cross_entropy": {"linear_cross_entropy": linear_cross_entropy},
    "lora": {"lora": lora},
    "lora_by_row": {"lora_by_row": lora_by_row},
    "dora": {"updated_norms": updated_norms},
}
OPERATIONS = {name: (file, draw) for file, draws in _FILES.items() for name, draw in draws.items()}
"""The file of each operation, and its arguments."""


def implemented_in(room):
    """The operations implemented in a room, by the text of its files: without triton, kernels cannot be imported."""
    files = {name: Path(minillm.__file__).parent / room / f"{file}.py" for name, (file, _) in OPERATIONS.items()}
    return [name for name, path in files.items() if path.exists() and f"\ndef {name}(" in path.read_text("utf-8")]


@st.composite
def arguments(draw, name, sizes=SMALL):
    return OPERATIONS[name][1](Drawing(draw, draw(randoms), sizes))


@st.composite
def cases(draw, name, sizes=SMALL):
    """An operation with its arguments, for the comparisons of `minillm.lab.trust`."""
    return operation_case(OPERATIONS[name][0], name, **draw(arguments(name, sizes)))
