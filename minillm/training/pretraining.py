"""A decoder from scratch: packed rows, the loss, the evaluation on held-out text, and a recipe for each depth.

The loss is the cross-entropy of the next token. On held-out text it is given in nats per token and in bits per byte;
the latter does not depend on the tokenizer (Gao et al. 2020, section 3.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.config import DEPTHS, WIDTH_PER_LAYER, DecoderConfig
from minillm.data.batches import pad_right
from minillm.decoder import Decoder
from minillm.errors import InputError, check_at_least
from minillm.operations import IGNORED, linear_cross_entropy
from minillm.runtime.device import autocast
from minillm.training.schedule import TrainingSettings

CONTEXT = 384


@dataclass(frozen=True)
class PretrainingRecipe:
    """Steps, learning rate and batch size for a decoder of this depth. A batch has 1.5 rows of 384 tokens per layer.

    With twice the batch size and half the steps the loss was higher (word problems, depth 4, 8,400 rows: 0.39 instead
    of 0.33 nats per token).
    """

    depth: int
    steps: int
    learning_rate: float
    batch_size: int

    @classmethod
    def from_preset(cls, preset: str, steps: int | None = None) -> "PretrainingRecipe":
        """The recipe of `nano`, `tiny` or `small`. Raises InputError for another name, and for steps below 1."""
        if preset not in DEPTHS:
            raise InputError(f"no preset {preset!r}; available: {', '.join(DEPTHS)}")
        check_at_least(1, steps=steps)
        depth = DEPTHS[preset]
        # Proportional to 1 / sqrt(width), as in nanochat.
        rate = 3e-3 * math.sqrt(128 / (WIDTH_PER_LAYER * depth))
        return cls(depth, steps or 600 * depth, rate, 3 * depth // 2)

    def settings(self, precision: str, seed: int) -> TrainingSettings:
        return TrainingSettings(
            learning_rate=self.learning_rate, batch_size=self.batch_size, warmup=0.05, weight_decay=0.1, beta2=0.99,
            precision=precision, seed=seed,
        )  # fmt: skip

    def config(self, vocabulary: int, max_length: int = CONTEXT) -> DecoderConfig:
        return DecoderConfig.from_depth(self.depth, vocabulary, max_length)


class PackedRow(NamedTuple):
    """Token ids, and their labels: the same ids, or IGNORED for tokens without a loss."""

    ids: list[int]
    labels: list[int]


def pack(documents: Sequence[Sequence[int]], end: int, length: int = CONTEXT) -> list[PackedRow]:
    """All documents as one stream with an `end` before, between and after them, cut into rows of `length` + 1 tokens.

    Each row starts with the last token of the previous one, so that every token but the first is a target once.
    """
    stream = [end]
    for document in documents:
        stream += [*document, end]
    pieces = [stream[start : start + length + 1] for start in range(0, len(stream) - 1, length)]
    return [PackedRow(piece, piece) for piece in pieces]


def pack_exchanges(exchanges: Sequence[tuple[Sequence[int], Sequence[int]]], length: int = CONTEXT) -> list[PackedRow]:
    """Rows of up to `length` + 1 tokens with as many whole (question, answer) exchanges as fit, in their order.

    Questions have no labels. Raises InputError for an exchange that is longer than a row.
    """
    rows = [PackedRow([], [])]
    for question, answer in exchanges:
        size = len(question) + len(answer)
        if size > length + 1:
            raise InputError(f"a question and its answer must fit into a row of {length + 1} tokens, got {size}")
        if len(rows[-1].ids) + size > length + 1:
            rows.append(PackedRow([], []))
        rows[-1].ids.extend([*question, *answer])
        rows[-1].labels.extend([*[IGNORED] * len(question), *answer])
    return [row for row in rows if row.ids]


def language_model_loss(decoder: Decoder, rows: Sequence[PackedRow]) -> tuple[Tensor, int]:
    """The sum of -log P(label | previous tokens of its row), in nats, and the number of labels."""
    ids, labels = pad_right([row.ids for row in rows])[0], pad_right([row.labels for row in rows], IGNORED)[0]
    device, labels = decoder.embed.weight.device, labels[:, 1:].flatten()
    hidden = decoder.features(ids[:, :-1].to(device))
    total = linear_cross_entropy(hidden.flatten(0, 1), decoder.head.weight, labels.to(device))
    return total, int((labels != IGNORED).sum())


class HeldOut(NamedTuple):
    """The loss on held-out text, in nats per token and in bits per byte."""

    nats: float
    bits_per_byte: float


@torch.no_grad()
def held_out_loss(
    decoder: Decoder, rows: Sequence[PackedRow], token_bytes: Sequence[int], batch_size: int, precision: str
) -> HeldOut:
    """The loss per label, and per byte of the text that the labels encode."""
    decoder.eval()
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        with autocast(decoder.embed.weight.device, precision):
            summed, counted = language_model_loss(decoder, rows[start : start + batch_size])
        total, count = total + summed.item(), count + counted
    size = sum(token_bytes[label] for row in rows for label in row.labels[1:] if label != IGNORED)
    return HeldOut(total / count, total / math.log(2) / size)
