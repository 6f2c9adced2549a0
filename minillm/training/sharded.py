"""Sharded training (FSDP2, Zhao et al. 2023): a process keeps its part of the blocks' weights, gradients and moments.

The weights of a block are gathered while it runs, forward and backward. Embeddings, the last norm and the head, which
the loss uses outside of their modules, stay whole on every process. Checkpoints hold whole tensors.
"""

from typing import Any

import torch
from torch import Tensor

from minillm.decoder import Block, Decoder
from minillm.runtime.distributed import is_first, process_count


def shard(decoder: Decoder) -> None:
    """Divide the trainable parameters of the blocks among the processes of the job, if it has several."""
    if process_count() > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(decoder.embed.weight.device.type, (process_count(),))
        for block in decoder.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)


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


def own(tensor: Any, like: Any = None) -> Any:
    """This process's part of a sharded tensor, in the same memory, or of a whole one, divided like a parameter."""
    if is_sharded(like) and tensor.dim():
        from torch.distributed.tensor import distribute_tensor

        tensor = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any, like: Any = None) -> Tensor:
    """The tensor of all parts, on every process, or of parts that were divided like a parameter."""
    if is_sharded(like) and tensor.dim():
        layout = {"shape": like.shape, "stride": like.stride()}
        tensor = type(like).from_local(tensor, like.device_mesh, like.placements, **layout)
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def collected(tensor: Any, like: Any = None) -> Tensor:
    """`whole` in the first process, on the CPU, and nothing in the others: a GPU holds one whole tensor at a time."""
    found = whole(tensor, like)
    return found if found is tensor else found.cpu() if is_first() else found.new_empty(0)
