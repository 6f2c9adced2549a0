"""Merging: a method's weights as a decoder of its own. W' = W + dW is formed in a new matrix.

The base and the method stay as they are, so dropping a merge is exact. Merging costs rounding: W' is held in W's dtype,
and a small dW added to a large W loses its last digits. `merge_rounding` measures the effect on the logits.
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
    """A new decoder that computes what the method does, and shares nothing with its base.

    A tied head of which one side was adapted comes out untied. Raises InputError for a method that is not in the
    weights: one with a prefix, or with a classifier instead of the LM head.
    """
    name = type(method).__name__
    if not isinstance(method, Method):
        raise InputError(f"{name} puts a classifier in the LM head's place; it cannot be merged into weights")
    if method.prefix() is not None:
        raise InputError(f"{name} stands before the text in every layer; it cannot be merged into weights, only saved")
    decoder = copy.deepcopy(method.decoder)
    for path, matrix in adapted_matrices(decoder).items():
        replace(decoder, path, matrix.merged())
    tied = decoder.head.weight is decoder.embed.weight
    decoder.config = with_changes(decoder.config, tie_embeddings=tied)
    decoder.source = Source()
    return decoder.requires_grad_(True)


@torch.no_grad()
def updates(method: Adaptation) -> dict[str, Float[Tensor, "O I"]]:
    """dW of every adapted matrix by its path: what a merge adds to the frozen one, before it is rounded."""
    return {path: matrix.change() for path, matrix in adapted_matrices(method.decoder).items()}


@torch.no_grad()
def merge_rounding(
    method: Adaptation, ids: Int[Tensor, "B T"], dtypes: Sequence[torch.dtype] = ROUNDINGS
) -> dict[torch.dtype, float]:
    """The largest change of a logit on some probe ids that merging makes, for weights held in each dtype.

    Both sides start from the base's weights rounded to the dtype, and compute in float32 (float64 for such a method):
    the difference is that W' is rounded to the dtype again, where the method has dW separately.
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
    """To the values of a dtype, in one in which the CPU computes exactly enough."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    parameter.data = parameter.data.to(dtype).to(wide)
