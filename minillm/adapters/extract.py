"""A LoRA out of what was not one: the best dW of rank r for a full fine-tune, or for a LoRA of a higher rank.

By Eckart and Young (1936) no matrix of rank r is nearer to dW than its first r singular triples. What is left out is
the error, and comes with the result. A LoRA is made smaller without ever forming dW (O I numbers): with B = Q₁ R₁ and
Aᵀ = Q₂ R₂ the singular values of B A are those of R₁ R₂ᵀ, which is r by r.
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
from minillm.errors import InputError
from minillm.shapes import Float


class Extracted(NamedTuple):
    """A LoRA, and what of the change it does not have.

    `errors` is |dW - B A| / |dW| (Frobenius) by the matrix's path. `left_out` names the parameters that changed and
    are in none of the LoRA's matrices.
    """

    lora: LoRA
    errors: dict[str, float]
    left_out: tuple[str, ...] = ()


@torch.no_grad()
def extract(
    base: Decoder,
    tuned: Decoder | Adaptation,
    *,
    r: int | None = None,
    energy: int | float | None = None,
    targets: str | Sequence[str] = (ALL_LINEAR,),
) -> Extracted:
    """The LoRA of `base` that comes nearest to `tuned`, by the SVD of each target's dW.

    Give `r`, or the share of each |dW|² to keep (`energy`, up to 1), from which every matrix has the least rank that
    does. A matrix that did not change is left alone. Raises InputError for both or neither, for decoders of different
    shapes and where nothing changed.
    """
    decoder = merge(tuned) if isinstance(tuned, Adaptation) else tuned
    before, after = (dict(side.named_parameters(remove_duplicate=False)) for side in (base, decoder))
    if {name: p.shape for name, p in before.items()} != {name: p.shape for name, p in after.items()}:
        raise InputError("the tuned decoder does not have the parameters of this base")
    named = (targets,) if isinstance(targets, str) else targets
    factors, errors = {}, {}
    for path in matching(matrices(base), named, "target"):
        change = _wide(after[f"{path}.weight"]) - _wide(before[f"{path}.weight"])
        if not change.isfinite().all():
            raise InputError(f"{path} is not finite in the base or in the tuned decoder")
        if change.any():
            left, strengths, right = torch.linalg.svd(change, full_matrices=False)
            factors[path], errors[path] = _truncated(left, strengths, right, r, energy)
    if not factors:
        raise InputError("none of the targets differs between the base and the tuned decoder: there is no update")
    changed = [name for name in before if not torch.equal(_wide(before[name]), _wide(after[name]))]
    left_out = tuple(name for name in changed if name.removesuffix(".weight") not in factors)
    return Extracted(from_factors(base, factors), errors, left_out)


@torch.no_grad()
def resize(lora: LoRA, *, r: int | None = None, energy: int | float | None = None) -> Extracted:
    """The same LoRA at another rank, or at the least ranks that keep a share of each |dW|².

    A rank that is larger than a matrix's update has only keeps it as it is. Trained biases stay.
    """
    factors, errors, biases = {}, {}, {}
    for path, matrix in adapted_matrices(lora.decoder).items():
        state = matrix.state()
        outer, upper = torch.linalg.qr(matrix.scale * state["b"])
        inner, lower = torch.linalg.qr(state["a"].T)
        left, strengths, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        factors[path], errors[path] = _truncated(outer @ left, strengths, right @ inner.T, r, energy)
        if matrix.trains_bias:
            biases[path] = state["bias"]
    return Extracted(from_factors(unadapted(lora.decoder), factors, biases), errors)


def _truncated(
    left: Float[Tensor, "O R"], strengths: Float[Tensor, "R"], right: Float[Tensor, "R I"], r: int | None,
    energy: int | float | None,
) -> tuple[Factors, float]:  # fmt: skip
    """(A, B) of the first r triples, or of the fewest that hold this share of the squares, and the relative error."""
    if (r is None) == (energy is None):
        raise InputError("give a rank r, or the share of the energy to keep, and not both")
    squares = strengths.cpu().double().square()
    total = squares.sum()
    if energy is not None:
        if not 0 < energy <= 1:
            raise InputError(f"the energy to keep is {energy}; it is a share above 0, of 1 at most")
        r = int((squares.cumsum(0) < energy * total * (1 - 1e-15)).sum()) + 1
    assert r is not None
    if r < 1:
        raise InputError(f"a rank of {r} cannot be; it must be at least 1")
    root = strengths[:r].sqrt()
    error = (squares[r:].sum() / total).sqrt().item() if total > 0 else 0.0
    return (root[:, None] * right[:r], left[:, :r] * root), error


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
