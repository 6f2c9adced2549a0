"""A decoder from nothing: token ids in rows, the loss at every position, and a recipe that follows from the depth.

The loop is `training.Loop`. What is said here is what a row is (packing), what is minimised (the next token's
cross-entropy, without ever holding all logits), and how a held-out text is measured: in nats a token, and in bits a
byte, which does not depend on the tokenizer (Gao et al. 2020, section 3.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minillm.batches import pad_right
from minillm.config import DEPTHS, WIDTH_PER_LAYER, DecoderConfig
from minillm.decoder import Decoder
from minillm.device import autocast
from minillm.errors import InputError
from minillm.ops.linear_cross_entropy import IGNORED, linear_cross_entropy
from minillm.training import TrainingSettings

CONTEXT = 384


@dataclass(frozen=True)
class Recipe:
    """How long and how quickly a decoder of this depth is trained; a batch has `3 depth` rows of 384 tokens."""

    depth: int
    steps: int
    rate: float
    batch: int

    @classmethod
    def from_preset(cls, preset: str, steps: int | None = None) -> "Recipe":
        """The recipe of `nano`, `tiny` or `small`. Raises InputError for another name, or for no steps at all."""
        if preset not in DEPTHS:
            raise InputError(f"there is no preset {preset!r}; there are: {', '.join(DEPTHS)}")
        if steps is not None and steps < 1:
            raise InputError(f"{steps} steps are too few; a run has 1 at least")
        depth = DEPTHS[preset]
        # Wider matrices add up more: the rate falls with the root of the width (as in nanochat).
        rate = 2e-3 * math.sqrt(128 / (WIDTH_PER_LAYER * depth))
        return cls(depth, steps or 250 * depth, rate, 3 * depth)

    def settings(self, precision: str, seed: int) -> TrainingSettings:
        return TrainingSettings(
            rate=self.rate, batch=self.batch, warmup=0.05, weight_decay=0.1, beta2=0.99, precision=precision, seed=seed
        )

    def config(self, vocabulary: int) -> DecoderConfig:
        return DecoderConfig.from_depth(self.depth, vocabulary, CONTEXT)


def pack(documents: Sequence[Sequence[int]], end: int, length: int = CONTEXT) -> list[list[int]]:
    """All documents as one stream with an `end` before, between and behind them, cut into rows of `length` + 1.

    A row begins with the last token of the one before: every token but the first is foretold exactly once.
    """
    stream = [end]
    for document in documents:
        stream += [*document, end]
    return [stream[start : start + length + 1] for start in range(0, len(stream) - 1, length)]


def pack_whole(documents: Sequence[Sequence[int]], length: int = CONTEXT) -> list[list[int]]:
    """Rows of up to `length` + 1 tokens, each as many whole documents as fit, in their order; none is cut.

    Raises InputError for a document that is longer.
    """
    rows: list[list[int]] = [[]]
    for document in documents:
        if len(document) > length + 1:
            raise InputError(f"a document has {len(document)} tokens; a row has room for {length + 1}")
        if len(rows[-1]) + len(document) > length + 1:
            rows.append([])
        rows[-1] += document
    return [row for row in rows if row]


class FromNothing:
    """All of a decoder's weights, as the training loop sees them, and the loss of its rows."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.decoder.named_parameters())

    def train(self, mode: bool = True) -> Decoder:
        return self.decoder.train(mode)

    def eval(self) -> Decoder:
        return self.decoder.eval()

    def loss(self, rows: list[Any]) -> tuple[Tensor, int]:
        """The sum of -log P(token | those before it in its row), in nats, and how many tokens that are."""
        ids, last = pad_right(rows)
        labels = ids[:, 1:].clone()
        labels[torch.arange(labels.shape[1]) >= last[:, None]] = IGNORED
        device = self.decoder.embed.weight.device
        hidden = self.decoder.features(ids[:, :-1].to(device))
        labels = labels.flatten().to(device)
        return linear_cross_entropy(hidden.flatten(0, 1), self.decoder.head.weight, labels), int(last.sum())


class HeldOut(NamedTuple):
    """The loss on text that was not trained on."""

    nats: float
    bits_per_byte: float


@torch.no_grad()
def held_out_loss(
    model: FromNothing, rows: Sequence[list[int]], token_bytes: Sequence[int], batch: int, precision: str
) -> HeldOut:
    """The mean over the foretold tokens, and the sum over the bytes of text that these stand for."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(rows), batch):
        with autocast(model.decoder.embed.weight.device, precision):
            summed, counted = model.loss(list(rows[start : start + batch]))
        total, count = total + summed.item(), count + counted
    size = sum(token_bytes[token] for row in rows for token in row[1:])
    return HeldOut(total / count, total / math.log(2) / size)
