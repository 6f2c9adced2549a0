"""A decoder from scratch: token ids in packed rows, the loss at every position, a recipe that follows from the depth.

The loop is `training.loop`. Here are the rows (packing), the loss (cross-entropy of the next token, wherever there is
a label), and the measures on held-out text: nats per token, and bits per byte, which do not depend on the tokenizer
(Gao et al. 2020, section 3.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minillm.config import DEPTHS, WIDTH_PER_LAYER, DecoderConfig
from minillm.data.batches import pad_right
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.operations import IGNORED, linear_cross_entropy
from minillm.runtime.device import autocast
from minillm.training.schedule import TrainingSettings

CONTEXT = 384


@dataclass(frozen=True)
class PretrainingRecipe:
    """How long, and at which rate, a decoder of this depth is trained; a batch has 1.5 rows of 384 tokens a layer.

    Of the same tokens, twice as many steps over half as many rows taught more (word problems, depth 4: 0.33 and 0.39
    nats after 8,400 rows).
    """

    depth: int
    steps: int
    learning_rate: float
    batch_size: int

    @classmethod
    def from_preset(cls, preset: str, steps: int | None = None) -> "PretrainingRecipe":
        """The recipe of `nano`, `tiny` or `small`. Raises InputError for another name, or for no steps at all."""
        if preset not in DEPTHS:
            raise InputError(f"there is no preset {preset!r}; there are: {', '.join(DEPTHS)}")
        if steps is not None and steps < 1:
            raise InputError(f"{steps} steps are too few; a run has 1 at least")
        depth = DEPTHS[preset]
        # Wider matrices add up more: the rate falls with the root of the width (as in nanochat).
        rate = 3e-3 * math.sqrt(128 / (WIDTH_PER_LAYER * depth))
        return cls(depth, steps or 600 * depth, rate, 3 * depth // 2)

    def settings(self, precision: str, seed: int) -> TrainingSettings:
        return TrainingSettings(
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            warmup=0.05,
            weight_decay=0.1,
            beta2=0.99,
            precision=precision,
            seed=seed,
        )

    def config(self, vocabulary: int, max_length: int = CONTEXT) -> DecoderConfig:
        return DecoderConfig.from_depth(self.depth, vocabulary, max_length)


class PackedRow(NamedTuple):
    """Token ids, and the labels: the same ids, or IGNORED where there is no target."""

    ids: list[int]
    labels: list[int]


def pack(documents: Sequence[Sequence[int]], end: int, length: int = CONTEXT) -> list[PackedRow]:
    """All documents as one stream with an `end` before, between and behind them, cut into rows of `length` + 1.

    A row begins with the last token of the one before: every token but the first is a target exactly once.
    """
    stream = [end]
    for document in documents:
        stream += [*document, end]
    pieces = [stream[start : start + length + 1] for start in range(0, len(stream) - 1, length)]
    return [PackedRow(piece, piece) for piece in pieces]


def pack_exchanges(exchanges: Sequence[tuple[Sequence[int], Sequence[int]]], length: int = CONTEXT) -> list[PackedRow]:
    """Rows of up to `length` + 1 tokens, each as many whole exchanges as fit, in their order; none is cut.

    An exchange is a question, which has no labels (nothing predicts it), and its answer. Raises InputError
    for one that is longer than a row.
    """
    rows = [PackedRow([], [])]
    for question, answer in exchanges:
        size = len(question) + len(answer)
        if size > length + 1:
            raise InputError(f"a question and its answer have {size} tokens; a row has room for {length + 1}")
        if len(rows[-1].ids) + size > length + 1:
            rows.append(PackedRow([], []))
        rows[-1].ids.extend([*question, *answer])
        rows[-1].labels.extend([*[IGNORED] * len(question), *answer])
    return [row for row in rows if row.ids]


class LanguageModelTraining:
    """A decoder whose weights are all trained, and the loss of its rows: what `TorchLearner` needs."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.decoder.named_parameters())

    def train(self, mode: bool = True) -> Decoder:
        return self.decoder.train(mode)

    def eval(self) -> Decoder:
        return self.decoder.eval()

    def loss(self, rows: list[PackedRow]) -> tuple[Tensor, int]:
        """The sum of -log P(label | the tokens before it in its row), in nats, and how many labels there are."""
        ids, labels = pad_right([row.ids for row in rows])[0], pad_right([row.labels for row in rows], IGNORED)[0]
        device, labels = self.decoder.embed.weight.device, labels[:, 1:].flatten()
        hidden = self.decoder.features(ids[:, :-1].to(device))
        total = linear_cross_entropy(hidden.flatten(0, 1), self.decoder.head.weight, labels.to(device))
        return total, int((labels != IGNORED).sum())


class HeldOut(NamedTuple):
    """The loss on text that was not trained on."""

    nats: float
    bits_per_byte: float


@torch.no_grad()
def held_out_loss(
    model: LanguageModelTraining, rows: Sequence[PackedRow], token_bytes: Sequence[int], batch_size: int, precision: str
) -> HeldOut:
    """The mean loss over the labels, and the total loss over the bytes of text that they encode."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        with autocast(model.decoder.embed.weight.device, precision):
            summed, counted = model.loss(list(rows[start : start + batch_size]))
        total, count = total + summed.item(), count + counted
    size = sum(token_bytes[label] for row in rows for label in row.labels[1:] if label != IGNORED)
    return HeldOut(total / count, total / math.log(2) / size)
