"""Which weights a thing belongs to: a sha256 per tensor, so that an adapter or a stored feature finds its own base."""

import hashlib

import torch
from torch import Tensor

from minillm.decoder import Decoder


def tensor_fingerprint(tensor: Tensor) -> str:
    """sha256 of a tensor's dtype, shape and bytes, in hexadecimal."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)} ".encode())
    digest.update(data.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(decoder: Decoder) -> dict[str, str]:
    """The fingerprint of every parameter by its name. A tied head is the embedding, and is not named again."""
    return {name: tensor_fingerprint(parameter) for name, parameter in decoder.named_parameters()}
