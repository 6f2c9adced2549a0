"""Several processes that train one model, as `torchrun` starts them: each reads its part of every batch.

The gradients are sums over rows, and the sum over the processes is that of the whole batch: no more is needed to train
as one process would. Outside torchrun there is one process, and nothing here costs anything.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as processes
from torch import Tensor

Item = TypeVar("Item")


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the other processes, if torchrun has started several, and leave them at the end."""
    if started() == 1:
        yield
        return
    processes.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        processes.destroy_process_group()


def started() -> int:
    """How many processes torchrun has started, whether they are joined yet or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def size() -> int:
    """How many processes there are, once joined."""
    return processes.get_world_size() if processes.is_available() and processes.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; 0 is the one that writes and speaks."""
    return processes.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that speaks, before the others are joined and after they are left too."""
    return os.environ.get("RANK", "0") == "0"


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process, where every process has one of its own."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device


def part(batch: Sequence[Item]) -> list[Item]:
    """What this process reads of a batch; it may be nothing."""
    return list(batch[rank() :: size()])


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its sum over all processes, in place."""
    if size() == 1:
        return
    for tensor in tensors:
        processes.all_reduce(tensor)


def any_says(yes: bool, device: torch.device) -> bool:
    """Whether one process at least says yes: what all of them have to do together."""
    if size() == 1:
        return yes
    votes = torch.tensor([int(yes)], device=device)
    processes.all_reduce(votes)
    return bool(votes.item())
