"""Data parallelism under torchrun: every process takes its rows of each batch, and the gradients are summed.

Outside torchrun there is one process, and these functions do nothing.
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
    """Join the process group for the duration of the block, if torchrun has started several processes."""
    if started() == 1:
        yield
        return
    processes.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        processes.destroy_process_group()


def started() -> int:
    """How many processes torchrun has started, joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes files and prints, joined or not."""
    return os.environ.get("RANK", "0") == "0"


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process, if the device is a GPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device


def process_count() -> int:
    """How many processes have joined."""
    return processes.get_world_size() if processes.is_available() and processes.is_initialized() else 1


def part(batch: Sequence[Item]) -> list[Item]:
    """This process's rows of a batch, possibly none."""
    return list(batch[processes.get_rank() :: process_count()] if process_count() > 1 else batch)


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place."""
    for tensor in tensors if process_count() > 1 else ():
        processes.all_reduce(tensor)


def any_process(condition: bool, device: torch.device) -> bool:
    """Whether the condition holds in at least one process."""
    votes = torch.tensor([int(condition)], device=device)
    sum_over_processes([votes])
    return bool(votes.item())
