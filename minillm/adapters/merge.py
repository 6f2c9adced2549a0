"""Merging: a new decoder with the weights W' = W + dW of a method.

The base and the method are not changed, so discarding a merge is exact. Merging rounds: W' has W's dtype, and a small
dW added to a large W loses its last digits. `merge_rounding` measures the effect on the logits.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace as with_changes

import torch
from torch import Tensor

from minillm.adapt.low_rank import adapted_matrices
from minillm.adapt.method import Adaptation, Method
from minillm.adapt.surgery import replace
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.runtime.fingerprint import Source
from minillm.shapes import Float, Int

ROUNDINGS = (torch.float32, torch.bfloat16)


@torch.no_grad()
def merge(method: Adaptation) -> Decoder:
    """A new decoder with the method's logits, which shares no memory with its base.

    A tied head of which one side was adapted becomes untied. Raises InputError for a method that is not a change of
    weights: one with a prefix, or with a classifier instead of the LM head.
    """
    name = type(method).__name__
    if not isinstance(method, Method):
        raise InputError(f"{name} cannot be merged: it is a classifier, not a language model; load it as an adapter")
    if method.prefix() is not None:
        raise InputError(f"{name} cannot be merged: it has a prefix, not a change of weights; load it as an adapter")
    decoder = copy.deepcopy(method.decoder)
    for path, matrix in adapted_matrices(decoder).items():
        replace(decoder, path, matrix.merged())
    tied = decoder.head.weight is decoder.embed.weight
    decoder.config = with_changes(decoder.config, tie_embeddings=tied)
    decoder.source = Source()
    return decoder.requires_grad_(True)


@torch.no_grad()
def updates(method: Adaptation) -> dict[str, Float[Tensor, "O I"]]:
    """dW of every adapted matrix by its path, as a merge adds it before rounding."""
    return {path: matrix.change() for path, matrix in adapted_matrices(method.decoder).items()}


@torch.no_grad()
def merge_rounding(
    method: Adaptation, ids: Int[Tensor, "B T"], dtypes: Sequence[torch.dtype] = ROUNDINGS
) -> dict[torch.dtype, float]:
    """The largest change of a logit by merging, on some probe ids, for weights in each dtype.

    Both sides start from the base's weights rounded to the dtype, and compute in float32 (float64 for such a method).
    They differ in W', which is rounded to the dtype again, while the method adds dW separately.
    """
    changes = {}
    for dtype in dtypes:
        apart = copy.deepcopy(method).eval()
        trained = {id(parameter) for parameter in apart.trainable().values()}
        for parameter in apart.parameters():
            _round(parameter, parameter.dtype if id(parameter) in trained else dtype)
        together = merge(apart)
        for parameter in together.parameters():
            _round(parameter, dtype)
        changes[dtype] = (together(ids) - apart(ids)).abs().max().item()
    return changes


def _round(parameter: Tensor, dtype: torch.dtype) -> None:
    """Round to a dtype's values, stored in float32 or float64 to compute with."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    parameter.data = parameter.data.to(dtype).to(wide)
