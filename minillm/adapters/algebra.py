"""Adding and scaling LoRAs of one base: dW is a sum of outer products, and so is a sum of dWs.

    s₁ B₁ A₁ + s₂ B₂ A₂ = [s₁ B₁, s₂ B₂] [A₁; A₂]

Concatenating the factors adds the updates exactly; adding A to A and B to B would add cross terms (B₁ A₂). The scales
are folded into B, so ranks and alphas may differ; the changes of trained biases are added. Ranks add too;
`extract.resize` reduces them, and returns the error. The result is a new LoRA, without dropout.
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
    """dW = dW₁ + dW₂ + ..., of rank r₁ + r₂ + ... Raises InputError for LoRAs of different bases, and for no LoRA."""
    return combine([(lora, 1.0) for lora in loras])


def scale(lora: LoRA, factor: int | float) -> LoRA:
    """factor dW."""
    return combine([(lora, factor)])


def negate(lora: LoRA) -> LoRA:
    """-dW: the sum with the original is the base."""
    return combine([(lora, -1.0)])


def subtract(lora: LoRA, other: LoRA) -> LoRA:
    """dW₁ - dW₂."""
    return combine([(lora, 1.0), (other, -1.0)])


def average(*loras: LoRA) -> LoRA:
    """The mean of the updates; a matrix that a LoRA does not adapt counts as 0."""
    return combine([(lora, 1 / len(loras)) for lora in loras])


@torch.no_grad()
def combine(terms: Sequence[tuple[LoRA, int | float]]) -> LoRA:
    """Σ factor dW, by concatenation."""
    if not terms:
        raise InputError("a sum of LoRAs needs at least one LoRA")
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
    """The LoRA of dW = B A with (A, B) by the path of their matrix, and new values of some biases."""
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
    """The base of all LoRAs. Raises InputError for different bases, naming the first weight that differs."""
    first = unadapted(loras[0].decoder)
    for lora in loras[1:]:
        other = dict(unadapted(lora.decoder).named_parameters())
        for name, weight in first.named_parameters():
            if name not in other or not _same(weight, other[name]):
                raise InputError(f"the LoRAs adapt different bases: {name} differs")
    return first


def _same(one: Tensor, other: Tensor) -> bool:
    if one.data_ptr() == other.data_ptr() and one.shape == other.shape:
        return True
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
