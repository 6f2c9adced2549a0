"""Several processes that train one model, as `torchrun` starts them: each takes its part of every batch.

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


def process_count() -> int:
    """How many processes there are, once joined."""
    return processes.get_world_size() if processes.is_available() and processes.is_initialized() else 1


def rank() -> int:
    """The index of this process; process 0 writes files and prints."""
    return processes.get_rank() if process_count() > 1 else 0


def is_first() -> bool:
    """Whether this process prints: also known before the others are joined and after they are left."""
    return os.environ.get("RANK", "0") == "0"


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process, where every process has one of its own."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device


def part(batch: Sequence[Item]) -> list[Item]:
    """This process's rows of a batch; there may be none."""
    return list(batch[rank() :: process_count()])


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its sum over all processes, in place."""
    if process_count() == 1:
        return
    for tensor in tensors:
        processes.all_reduce(tensor)


def any_process(yes: bool, device: torch.device) -> bool:
    """Whether it is true in one process at least, so that all of them do the same."""
    if process_count() == 1:
        return yes
    votes = torch.tensor([int(yes)], device=device)
    processes.all_reduce(votes)
    return bool(votes.item())
