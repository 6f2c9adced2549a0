"""Initialisation of soft prompts and prefixes from tokens: from their embeddings, or from their keys and values.

Real words are a better initialisation than noise, and words of the task the best (Lester et al. 2021, section 3.2;
Li & Liang 2021, section 7.4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.adapt.surgery import frozen, trained_dtype
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.key_values import KeyValues
from minillm.runtime.device import autocast
from minillm.shapes import Int


def check_length(decoder: Decoder, length: int) -> None:
    """Raises InputError for a prompt that is empty, or that leaves no room for a text."""
    room = decoder.config.context_length - 1
    if not 1 <= length <= room:
        raise InputError(f"length must be in [1, {room}] for this decoder, got {length}")


def sampled_tokens(decoder: Decoder, rows: int, length: int) -> Int[Tensor, "B P"]:
    """Tokens drawn uniformly from the vocabulary."""
    return torch.randint(decoder.config.vocabulary, (rows, length), device=decoder.embed.weight.device)


def given_tokens(decoder: Decoder, ids: Sequence[int], length: int) -> Int[Tensor, "1 P"]:
    """The ids, repeated and cut to `length`. Raises InputError for no ids and for ids outside the vocabulary."""
    vocabulary = decoder.config.vocabulary
    if not ids or not all(0 <= token < vocabulary for token in ids):
        raise InputError(f"init must be one or more token ids in [0, {vocabulary - 1}], got {list(ids)}")
    repeated = [ids[place % len(ids)] for place in range(length)]
    return torch.tensor([repeated], device=decoder.embed.weight.device)


@torch.no_grad()
def keys_values_of(decoder: Decoder, ids: Int[Tensor, "B P"]) -> KeyValues:
    """The keys and values of tokens in every layer, without dropout, in float32 or float64."""
    body = frozen(decoder).eval()
    matrix = next(parameter for name, parameter in body.named_parameters() if name.endswith("attention.key.weight"))
    with autocast(matrix.device, "bfloat16" if matrix.dtype == torch.bfloat16 else "float32"):
        seen = body.keys_values(ids)
    wide = trained_dtype(seen.keys)
    return KeyValues(seen.keys.to(wide), seen.values.to(wide))
