"""Sharded training (FSDP2, Zhao et al. 2023): a process keeps its part of the blocks' weights, gradients and moments.

The weights of a block are gathered while it runs, forward and backward. Embeddings, the last norm and the head, which
the loss uses outside of their modules, stay whole on every process. Checkpoints hold whole tensors.
"""

from typing import Any

import torch
from torch import Tensor

from minillm.decoder import Block, Decoder
from minillm.runtime.distributed import process_count


def shard(decoder: Decoder) -> None:
    """Divide the trainable parameters of the blocks among the processes of the job, if it has several."""
    if process_count() > 1:
        from torch.distributed.fsdp import fully_shard

        for block in decoder.blocks:
            fully_shard(block, reshard_after_forward=True)


@torch.no_grad()
def gather(decoder: Decoder | None) -> None:
    """Undo `shard`, on every process."""
    if decoder is None:
        return
    for index, block in enumerate(decoder.blocks):
        if hasattr(block, "unshard"):
            with torch.device("meta"):
                plain = Block(decoder.config)
            plain.load_state_dict({name: whole(tensor) for name, tensor in block.state_dict().items()}, assign=True)
            decoder.blocks[index] = plain.train(block.training)


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "device_mesh")


def own(tensor: Any) -> Any:
    """This process's part of a tensor, in the same memory; one that is not sharded itself."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """The tensor of all parts, on every process, which all call this; one that is not sharded itself."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def joined_like(own: Tensor, like: Any) -> Tensor:
    """The whole tensor of the parts that belong to those of a parameter; a number has no parts."""
    if not is_sharded(like) or not own.dim():
        return own
    layout = {"shape": like.shape, "stride": like.stride()}
    return type(like).from_local(own, like.device_mesh, like.placements, **layout).full_tensor()


def own_like(whole: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor, divided like a parameter."""
    if not is_sharded(like) or not whole.dim():
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements).to_local()
