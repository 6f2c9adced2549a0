"""Sharded training (FSDP2, Zhao et al. 2023): a process keeps its part of the blocks' weights, gradients and moments.

The weights of a block are gathered while it runs, forward and backward. Embeddings, the last norm and the head, which
the loss uses outside of their modules, stay whole on every process. Checkpoints hold whole tensors.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minillm.decoder import Block, Decoder
from minillm.runtime.device import autocast
from minillm.runtime.distributed import is_first, part, process_count, sum_over_processes
from minillm.training.learners import Example, TorchLearner
from minillm.training.schedule import TrainingSettings


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


def learner_of(
    parameters: Mapping[str, Tensor], loss: Callable[[list[Example]], tuple[Tensor, int]],
    settings: TrainingSettings,
) -> TorchLearner[Example]:  # fmt: skip
    """The learner of parameters that may be sharded."""
    kind = ShardedLearner if any(map(is_sharded, parameters.values())) else TorchLearner
    return kind(parameters, loss, settings)


class ShardedLearner(TorchLearner[Example]):
    """Updates this process's parts of the sharded parameters, and all of the others."""

    def __init__(
        self, parameters: Mapping[str, Tensor], loss: Callable[[list[Example]], tuple[Tensor, int]],
        settings: TrainingSettings,
    ):  # fmt: skip
        super().__init__({name: own(parameter) for name, parameter in parameters.items()}, loss, settings)
        self.sharded = {name: parameter for name, parameter in parameters.items() if is_sharded(parameter)}

    def backward(self, batches: Sequence[Sequence[Example]]) -> float:
        for batch in batches:
            if not part(batch):  # all processes gather and sum in every pass: one without a row computes another's
                with autocast(self.device, self.settings.precision):
                    summed, _ = self.loss(list(batch[:1]))
                (0 * summed).backward()
        return super().backward(batches)

    def _over_processes(self, total: float, count: int) -> tuple[list[Tensor], float, int]:
        for name, parameter in self.sharded.items():  # torch divided their gradients by the number of processes
            self.parameters[name].grad, parameter.grad = own(parameter.grad).mul_(process_count()), None
        numbers = torch.tensor([total, count], dtype=torch.float64, device=self.device)
        replicated, sharded = self._gradients()
        sum_over_processes([*replicated, numbers])
        return replicated + sharded, numbers[0].item(), int(numbers[1].item())

    def clip(self) -> None:
        replicated, sharded = map(nn.utils.get_total_norm, self._gradients())
        sum_over_processes([square := sharded**2])
        norm = (replicated**2 + square).sqrt()
        nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.clip, norm)

    def _gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of the parameters that each process has, and this process's parts of the sharded ones."""
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, tensor in self.parameters.items():
            if tensor.grad is not None:
                found[name in self.sharded].append(tensor.grad)
        return found

    def state(self) -> dict[str, Tensor]:
        """Whole tensors in the first process."""
        return {key: collected(value, self._like(key)) for key, value in super().state().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore({key: own(value, self._like(key)) for key, value in tensors.items()})

    def _like(self, key: str) -> Any:
        """The sharded parameter of an entry of `state`, if it is of one."""
        return self.sharded.get(re.sub(r"^(parameter|optimizer\.\w+)\.", "", key))
