"""One trained adapter of every method, for the tests of saving, loading and damage."""

import torch

from minillm.adapt import DoRA, FineTune, FrozenHead, InContext, LoRA, PiSSA, PrefixTuning, SoftPrompt, Stack
from tests.decoders import STYLES, random_decoder

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])

CASES = {
    "in context": lambda base: InContext(base, torch.tensor([[7, 8, 9, 1]], device=base.embed.weight.device)),
    "soft prompt": lambda base: SoftPrompt(base, 3),
    "prefix": lambda base: PrefixTuning(base, 3),
    "prefix by an MLP": lambda base: PrefixTuning(base, 3, hidden=11),
    "prefix, gated": lambda base: PrefixTuning(base, 3, gated=True),
    "frozen head": lambda base: FrozenHead(base, 3),
    "LoRA": lambda base: LoRA(base, r=2, alpha=4),
    "LoRA, all but plain": lambda base: LoRA(
        base, 2, 3.5, ("all-linear", "embed", "head"), ranks={"blocks.0.*": 1}, rank_stabilised=True, dropout=0.1
    ),
    "DoRA": lambda base: DoRA(base, r=2, alpha=4),
    "PiSSA": lambda base: PiSSA(base, r=2, alpha=2),
    "DoRA and a prefix": lambda base: Stack(DoRA(base, r=1), PrefixTuning(base, 3)),
    "last block and a soft prompt": lambda base: Stack(FineTune(base, layers=1), SoftPrompt(base, 2)),
    "output layer": lambda base: FineTune(base, layers="output"),
    "last block": lambda base: FineTune(base, layers=1),
    "all weights": lambda base: FineTune(base),
    "all weights and a classifier": lambda base: FineTune(base, classes=3),
}


def trained(name, base=None, seed=0):
    """The method with noise added to its parameters, by default on a Llama in float64."""
    base = base if base is not None else random_decoder(STYLES["Llama"])
    torch.manual_seed(seed)
    method = CASES[name](base)
    if isinstance(method, FrozenHead):
        features = torch.randn(11, base.config.width, dtype=base.embed.weight.dtype)
        method.fit(features, torch.arange(11) % 3)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter += 0.05 * torch.randn_like(parameter)
    return method.eval()
