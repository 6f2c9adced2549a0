"""Data parallelism under torchrun: every process takes its rows of each batch, and the gradients are summed.

The first process prints and writes for all of them. If one fails or is lost, all end. Outside torchrun there is one
process, and these functions do nothing.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as processes
from torch import Tensor

Item = TypeVar("Item")
_reports: bool | None = None


@contextmanager
def joined(device: torch.device, job: str = "") -> Iterator[None]:
    """Join the process group for the duration of the block, if torchrun has started several processes.

    Each process gets a GPU of its machine. Groups that the same processes join one after another are different jobs.
    """
    global _reports
    if started() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, count = next(processes.rendezvous("env://"))
    store = processes.PrefixStore(f"minillm/{job}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    processes.init_process_group(backend, store=store, rank=rank, world_size=count)
    try:
        with loss_noticed():
            yield
    except (Exception, KeyboardInterrupt):
        try:
            _reports = store.add("ended", 1) == 1
        except RuntimeError:  # the store was lost with the process that held it
            _reports = True
        raise
    finally:
        processes.destroy_process_group()


def reports() -> bool:
    """Whether this process prints the error that ends the job: that which failed first; before they join, the first."""
    return is_first() if _reports is None else _reports


def started() -> int:
    """How many processes torchrun has started, joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes files and prints, joined or not."""
    return started() == 1 or os.environ["RANK"] == "0"


def process_count() -> int:
    """How many processes have joined."""
    return processes.get_world_size() if processes.is_available() and processes.is_initialized() else 1


def process_number() -> int:
    """The number of this process, from 0."""
    return processes.get_rank() if process_count() > 1 else 0


def part(batch: Sequence[Item]) -> list[Item]:
    """This process's rows of a batch, possibly none."""
    return list(batch[process_number() :: process_count()])


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place."""
    # One by one: after an error, none is left for which two processes wait for each other.
    for tensor in tensors if process_count() > 1 else ():
        processes.all_reduce(tensor)


@contextmanager
def loss_noticed() -> Iterator[None]:
    """Raises ConnectionAbortedError if a process is lost within the block."""
    try:
        yield
    except RuntimeError as problem:
        if process_count() == 1 or not re.search("gloo/|NCCL|[Cc]onnection|[Tt]imed out", str(problem)):
            raise
        reason = re.sub(r"^\[\S+\] *", "", re.split(r"\n|\. ", str(problem))[0])
        raise ConnectionAbortedError(
            f"a process of the job was lost ({reason}); the same command continues from the last checkpoint"
        ) from problem


def numbers_of_first(*numbers: float) -> tuple[float, ...]:
    """The numbers of the first process: another machine may round its own differently, and all must decide alike."""
    own = torch.tensor(numbers if process_number() == 0 else [0.0] * len(numbers), dtype=torch.float64)
    found = own.to(_device())
    sum_over_processes([found])
    return tuple(found.tolist())


def any_process(condition: bool) -> bool:
    """Whether the condition holds in at least one process."""
    votes = torch.tensor([int(condition)], device=_device())
    sum_over_processes([votes])
    return bool(votes.item())


@contextmanager
def first_before_others() -> Iterator[None]:
    """The first process runs the block before the others, which load the files that it has completed or removed."""
    if not is_first():
        any_process(False)
    yield
    if is_first():
        any_process(False)


def _device() -> str:
    """The device of the tensors that this backend sums."""
    return "cuda" if process_count() > 1 and processes.get_backend() == "nccl" else "cpu"
