"""A calculus of LoRAs on one base: dW is a sum of outer products, and so a sum of dWs is one too.

    s₁ B₁ A₁ + s₂ B₂ A₂ = [s₁ B₁, s₂ B₂] [A₁; A₂]

Concatenating the factors adds the updates exactly, where adding A to A and B to B would make cross terms (B₁ A₂). The
scales are folded into B, so that ranks and alphas may differ; trained biases add as their changes do. Ranks add too:
`extract.resize` makes them small again, at a cost that it names. What is made is a new LoRA, without dropout.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minillm.adapt.lora import LoRA
from minillm.adapt.low_rank import adapted_matrices, unadapted
from minillm.decoder import Decoder
from minillm.errors import InputError

Factors = tuple[Tensor, Tensor]
"""A and B of one matrix, the scale folded into B."""


def add(*loras: LoRA) -> LoRA:
    """dW = dW₁ + dW₂ + ..., of rank r₁ + r₂ + .... Raises InputError for LoRAs of different bases, and for none."""
    return combine([(lora, 1.0) for lora in loras])


def scale(lora: LoRA, factor: int | float) -> LoRA:
    """factor dW."""
    return combine([(lora, factor)])


def negate(lora: LoRA) -> LoRA:
    """-dW: added to what it was, it leaves the base."""
    return combine([(lora, -1.0)])


def subtract(lora: LoRA, other: LoRA) -> LoRA:
    """dW₁ - dW₂."""
    return combine([(lora, 1.0), (other, -1.0)])


def average(*loras: LoRA) -> LoRA:
    """The mean of the updates; a matrix that one of them leaves alone counts as 0 there."""
    return combine([(lora, 1 / len(loras)) for lora in loras])


@torch.no_grad()
def combine(terms: Sequence[tuple[LoRA, int | float]]) -> LoRA:
    """Σ factor dW, by concatenation: all of the above are cases of it."""
    if not terms:
        raise InputError("a sum of LoRAs needs one of them at least")
    base = _common_base([lora for lora, _ in terms])
    factors: dict[str, list[Factors]] = {}
    biases: dict[str, Tensor] = {}
    for lora, factor in terms:
        for path, matrix in adapted_matrices(lora.decoder).items():
            state = matrix.state()
            factors.setdefault(path, []).append((state["a"], state["b"] * (factor * matrix.scale)))
            if matrix.trains_bias:
                change = factor * (state["bias"] - matrix.frozen_bias)
                biases[path] = biases.get(path, matrix.frozen_bias) + change
    together = {
        path: (torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], 1)) for path, parts in factors.items()
    }
    return from_factors(base, together, biases)


def from_factors(base: Decoder, factors: Mapping[str, Factors], biases: Mapping[str, Tensor] | None = None) -> LoRA:
    """The LoRA of dW = B A with (A, B) by the path of their matrix. `biases` are new values of some biases."""
    state: dict[str, Tensor] = {}
    for path, (a, b) in factors.items():
        state |= {f"{path}.a": a, f"{path}.b": b}
        bias = getattr(base.get_submodule(path), "bias", None)
        if biases and bias is not None:
            state[f"{path}.bias"] = biases.get(path, bias)
    ranks = {path: len(a) for path, (a, _) in factors.items()}
    r = next(iter(ranks.values()))
    others = {path: rank for path, rank in ranks.items() if rank != r}
    return LoRA(base, r, r, list(factors), ranks=others, alphas=others, train_bias=bool(biases), state=state)


def _common_base(loras: Sequence[LoRA]) -> Decoder:
    """The base that all of them adapt. Raises InputError where it is not one, naming the first matrix that differs."""
    first = unadapted(loras[0].decoder)
    for lora in loras[1:]:
        other = dict(unadapted(lora.decoder).named_parameters())
        for name, weight in first.named_parameters():
            if name not in other or not _same(weight, other[name]):
                raise InputError(f"these LoRAs adapt different bases: their {name} differ")
    return first


def _same(one: Tensor, other: Tensor) -> bool:
    if one.data_ptr() == other.data_ptr() and one.shape == other.shape:
        return True
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
