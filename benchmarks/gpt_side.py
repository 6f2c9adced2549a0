"""One training step of a GPT, by minillm and by plain PyTorch written like nanoGPT.

The peer: one fused matrix for query, key and value, PyTorch's own attention, cross-entropy on all logits, torch's
default AdamW on a CPU, clipping. Both use GPT-2's architecture without biases in the matrices; the peer's layer norms
have a bias and its GELU is the tanh approximation, as ours, so that both compute the same numbers.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.runtime.device import autocast, best_precision, keep_freed_memory
from minillm.training.learners import TorchLearner
from minillm.training.loop import Loop
from minillm.training.pretraining import PackedRow, language_model_loss
from minillm.training.schedule import TrainingSettings

CONFIG = DecoderConfig(
    norm="layer", norm_first=True, positions="learned", feed_forward="gelu", vocabulary=65, layers=4, width=128,
    heads=4, kv_heads=4, feed_forward_width=512, context_length=64,
)  # fmt: skip
SETTINGS = TrainingSettings(learning_rate=1e-3, weight_decay=0.1, beta2=0.99, warmup=0.05)
STEPS = 10_000
NAMES = {
    "embed": "tokens", "positions": "places", "norm": "norm", "attention_norm": "norm_1", "feed_forward_norm": "norm_2",
    "attention.out": "out", "feed_forward.up": "up", "feed_forward.down": "down",
}  # fmt: skip


def _parsed(name: str) -> tuple[str, str, str]:
    """`blocks.0.attention.out.weight` becomes (`blocks.0.`, `attention.out`, `weight`)."""
    path = ".".join(name.split(".")[:2]) + "." if name.startswith("blocks") else ""
    role, _, kind = name[len(path) :].rpartition(".")
    return path, role, kind


def precision(device: str) -> str:
    """float32 on a CPU, else the best of the device; the losses that are compared are in float32."""
    return "float32" if device == "cpu" else best_precision(torch.device(device))


class Ours:
    """The training loop of `minillm pretrain`, on the given rows. `sizes` are those that differ from CONFIG."""

    def __init__(self, sizes: dict[str, Any], device: str):
        keep_freed_memory()
        torch.manual_seed(0)
        self.decoder = Decoder(replace(CONFIG, **sizes)).to(device).train()
        weights = dict(self.decoder.named_parameters())
        settings = replace(SETTINGS, precision=precision(device))
        learner = TorchLearner(weights, partial(language_model_loss, self.decoder), settings)
        self.loop = Loop(learner, [], lambda row: len(row.ids), settings, steps=STEPS)

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: parameter.detach().cpu().numpy() for name, parameter in self.decoder.named_parameters()}

    def probe(self, batch: list[list[int]]) -> dict:
        summed, count = language_model_loss(self.decoder, [PackedRow(row, row) for row in batch])
        (summed / count).backward()
        gradients = {name: parameter.grad for name, parameter in self.decoder.named_parameters()}
        found = {name: gradient.cpu().numpy().copy() for name, gradient in gradients.items() if gradient is not None}
        self.decoder.zero_grad()
        return {"loss": np.array([summed.item() / count]), "gradients": found}

    def train(self, batches: list[list[list[int]]]) -> list[float]:
        found = []
        for batch in batches:
            self.loop.examples = [PackedRow(row, row) for row in batch]
            self.loop.lengths = [len(row) for row in batch]
            found.append(self.loop.step([list(range(len(batch)))]))
        return found


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fused = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        sides = self.fused(self.norm_1(x)).split(width, dim=2)
        query, key, value = (side.view(rows, tokens, self.heads, -1).transpose(1, 2) for side in sides)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).contiguous().view(rows, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(PlainBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


class PlainTorch:
    """The model and the training step as a plain PyTorch script; on a GPU with nanoGPT's autocast and fused AdamW."""

    def __init__(self, sizes: dict[str, Any], device: str):
        self.model, self.taken = PlainGPT(replace(CONFIG, **sizes)).to(device).train(), 0
        self.device, self.precision = torch.device(device), precision(device)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": SETTINGS.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=SETTINGS.learning_rate, betas=(0.9, SETTINGS.beta2), fused=device == "cuda"
        )

    @torch.no_grad()
    def start_from(self, values: dict[str, np.ndarray]) -> None:
        """Copies our weights: query, key and value become one matrix."""
        theirs = dict(self.model.named_parameters())
        for name, value in self._renamed(values).items():
            theirs[name].copy_(torch.from_numpy(value))

    def _renamed(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found, fused = {}, {}
        for name, value in values.items():
            path, role, kind = _parsed(name)
            if role in ("attention.query", "attention.key", "attention.value"):
                fused.setdefault(f"{path}fused.{kind}", []).append(value)
            else:
                found[f"{path}{NAMES[role]}.{kind}"] = value
        return found | {name: np.concatenate(parts) for name, parts in fused.items()}

    def loss(self, batch: list[list[int]]) -> Tensor:
        ids = torch.tensor(batch, device=self.device)
        return self.model(ids[:, :-1], ids[:, 1:].contiguous())

    def probe(self, batch: list[list[int]]) -> dict:
        loss = self.loss(batch)
        loss.backward()
        theirs = {name: p.grad.cpu().numpy().copy() for name, p in self.model.named_parameters() if p.grad is not None}
        self.optimizer.zero_grad()
        return {"loss": np.array([loss.item()]), "gradients": self._ours(theirs)}

    def _ours(self, gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        roles, found = {theirs: ours for ours, theirs in NAMES.items()}, {}
        for name, value in gradients.items():
            path, role, kind = _parsed(name)
            if role == "fused":
                for ours, part in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                    found[f"{path}attention.{ours}.{kind}"] = part
            else:
                found[f"{path}{roles[role]}.{kind}"] = value
        return found

    def train(self, batches: list[list[list[int]]]) -> list[float]:
        found = []
        for batch in batches:
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate()
            with autocast(self.device, self.precision):
                loss = self.loss(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), SETTINGS.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            found.append(loss.item())
            self.taken += 1
        return found

    def _rate(self) -> float:
        return SETTINGS.learning_rate * (0.55 + 0.45 * math.cos(math.pi * self.taken / STEPS))
