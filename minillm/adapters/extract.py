"""Extracting a LoRA: the best dW of rank r for a full fine-tune, or for a LoRA of a higher rank.

By Eckart and Young (1936) no matrix of rank r is nearer to dW than its first r singular triples. The rest is the error,
which is returned with the result. A LoRA is reduced without forming dW (O I numbers): with B = Q₁ R₁ and Aᵀ = Q₂ R₂ the
singular values of B A are those of R₁ R₂ᵀ, which is r by r.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.adapt.lora import LoRA
from minillm.adapt.low_rank import adapted_matrices, unadapted
from minillm.adapt.method import Adaptation
from minillm.adapt.surgery import ALL_LINEAR, matching, matrices
from minillm.adapters.algebra import Factors, from_factors
from minillm.adapters.merge import merge
from minillm.decoder import Decoder
from minillm.errors import InputError, check_at_least
from minillm.runtime.device import decomposable
from minillm.shapes import Float


class Extracted(NamedTuple):
    """A LoRA and its error.

    `errors` is |dW - B A| / |dW| (Frobenius) by the matrix's path. `left_out` names the changed parameters that the
    LoRA does not adapt.
    """

    lora: LoRA
    errors: dict[str, float]
    left_out: tuple[str, ...] = ()


@torch.no_grad()
def extract(
    base: Decoder, tuned: Decoder | Adaptation, *, r: int | None = None, energy: int | float | None = None,
    targets: str | Sequence[str] = (ALL_LINEAR,),
) -> Extracted:  # fmt: skip
    """The LoRA of `base` nearest to `tuned`, by the SVD of each target's dW.

    Give `r`, or `energy` in (0, 1], the share of each |dW|² to keep by the smallest sufficient rank. A matrix that did
    not change is not adapted. Raises InputError for both or neither, for decoders of different shapes and if no target
    changed.
    """
    decoder = merge(tuned) if isinstance(tuned, Adaptation) else tuned
    before, after = (dict(side.named_parameters(remove_duplicate=False)) for side in (base, decoder))
    if {name: p.shape for name, p in before.items()} != {name: p.shape for name, p in after.items()}:
        raise InputError("the tuned decoder must have the parameters of the base: their names or shapes differ")
    named = (targets,) if isinstance(targets, str) else targets
    factors, errors = {}, {}
    for path in matching(matrices(base), named, "target"):
        change = decomposable(_wide(after[f"{path}.weight"]) - _wide(before[f"{path}.weight"]))
        if not change.isfinite().all():
            raise InputError(f"{path} has NaN or infinite values in the base or in the tuned decoder")
        if change.any():
            left, singular, right = torch.linalg.svd(change, full_matrices=False)
            factors[path], errors[path] = _truncated(left, singular, right, r, energy)
    if not factors:
        raise InputError("no target differs between the base and the tuned decoder; there is no update to extract")
    changed = [name for name in before if not torch.equal(_wide(before[name]), _wide(after[name]))]
    left_out = tuple(name for name in changed if name.removesuffix(".weight") not in factors)
    return Extracted(from_factors(base, factors), errors, left_out)


@torch.no_grad()
def resize(lora: LoRA, *, r: int | None = None, energy: int | float | None = None) -> Extracted:
    """The LoRA at another rank, or at the smallest ranks that keep the share `energy` of each |dW|².

    A rank above that of an update does not change it. Trained biases stay.
    """
    factors, errors, biases = {}, {}, {}
    for path, matrix in adapted_matrices(lora.decoder).items():
        state = {name: decomposable(tensor) for name, tensor in matrix.state().items()}
        outer, upper = torch.linalg.qr(matrix.scale * state["b"])
        inner, lower = torch.linalg.qr(state["a"].T)
        left, singular, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        factors[path], errors[path] = _truncated(outer @ left, singular, right @ inner.T, r, energy)
        if matrix.trains_bias:
            biases[path] = state["bias"]
    return Extracted(from_factors(unadapted(lora.decoder), factors, biases), errors)


def _truncated(
    left: Float[Tensor, "O R"], singular: Float[Tensor, "R"], right: Float[Tensor, "R I"], r: int | None,
    energy: int | float | None,
) -> tuple[Factors, float]:  # fmt: skip
    """(A, B) of the first r triples, or of the fewest that have this share of the squares, and the relative error."""
    if (r is None) == (energy is None):
        raise InputError(f"give either r or energy, got {'neither' if r is None else 'both'}")
    squares = singular.cpu().double().square()
    total = squares.sum()
    if energy is not None:
        if not 0 < energy <= 1:
            raise InputError(f"energy must be in (0, 1], got {energy}")
        r = int((squares.cumsum(0) < energy * total * (1 - 1e-15)).sum()) + 1
    check_at_least(1, r=r)
    root = singular[:r].sqrt()
    error = (squares[r:].sum() / total).sqrt().item() if total > 0 else 0.0
    return (root[:, None] * right[:r], left[:, :r] * root), error


def effective_rank(singular: Float[Tensor, "R"]) -> float:
    """exp(-Σ p log p) with p = σ / Σ σ: from 1 to R, that of equal values (Roy & Vetterli 2007, definition 1)."""
    return torch.special.entr(singular.double() / singular.double().sum()).sum().exp().item()


def similarity(one: Float[Tensor, "R I"], other: Float[Tensor, "M I"], i: int, j: int) -> float:
    """φ(i, j) = ‖Vᵢ Wⱼᵀ‖² / min(i, j) of orthonormal rows (Hu et al. 2021, section 7.2); by chance max(i, j) / I."""
    return (one[:i].double() @ other[:j].double().T).square().sum().item() / min(i, j)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
