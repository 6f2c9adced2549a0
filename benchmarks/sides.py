"""Timing several ways to do the same work next to each other: each side in its own process, all taking turns.

The speed of a machine changes over time. So the sides run A B A B ..., each on the same share of the work, and
neighbours in time are compared. Separate processes give each side its own peak memory, and isolate settings such as
the allocator and the number of threads. This module does not depend on the work of the sides.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.comparison import Rounds
from minillm.errors import InputError
from minillm.runtime.progress import progress

PATIENCE = 5.0  # seconds for a worker to end by itself


class Side(NamedTuple):
    """The name of a contestant and how its process builds it: `contestant(**options)`."""

    name: str
    contestant: Callable[..., Any]
    options: dict[str, Any]


class Worker:
    """The process of a side, loaded between rounds; `seconds` and `peak_bytes` are those of the last answer."""

    def __init__(self, side: Side, threads: int):
        self.name, self.seconds, self.peak_bytes = side.name, 0.0, None
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, side, threads), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, job: str, *arguments: Any) -> Any:
        """The result of the contestant's method of that name."""
        self.connection.send((job, arguments))
        answer, self.seconds, self.peak_bytes = self.receive()
        return answer

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            raise InputError(f"the side {self.name!r} died; see its output above") from None


def _serve(connection: Connection, side: Side, threads: int) -> None:
    """The loop of a worker: build the contestant, report ready, then run one job after another until it is stopped."""
    import torch

    from minillm.runtime.device import peak_memory

    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and stops this process
    torch.set_num_threads(threads)
    contestant = side.contestant(**side.options)
    connection.send("ready")
    while True:
        try:
            job, arguments = connection.recv()
        except EOFError:  # the parent is done
            return
        start = time.perf_counter()
        answer = getattr(contestant, job)(*arguments)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        place = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
        connection.send((answer, time.perf_counter() - start, peak_memory(place)))


def _end_with_parent() -> None:
    """A parent that is killed, at a time limit or without memory, leaves no worker behind, also during a long job."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def at_work(sides: Sequence[Side], threads: int) -> Iterator[list[Worker]]:
    """The workers of the sides, ready for jobs; they stop at the end of the block."""
    # numpy and scikit-learn read their numbers of threads on import.
    os.environ.update({f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")})
    workers = [Worker(side, threads) for side in sides]
    try:
        for worker in progress(workers, desc="loading", unit="side"):
            worker.receive()
        yield workers
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.process.join(PATIENCE)
            worker.process.terminate()


def shares(batches: Sequence[Any], rounds: int) -> list[list[Any]]:
    """The work in equal parts, one per round: every `rounds`-th batch, so that long batches are spread evenly."""
    if not 1 <= rounds <= len(batches):
        raise InputError(f"rounds must be in [1, {len(batches)}], the number of batches, got {rounds}")
    return [list(batches[start::rounds]) for start in range(rounds)]


def take_turns(
    workers: Sequence[Worker], job: str, work: Sequence[Any], amount: Callable[[Any], float], name: str
) -> list[Rounds]:
    """Every side runs each share of the work before any side starts the next one."""
    results = [Rounds(worker.name) for worker in workers]
    with progress(total=len(work) * len(workers), desc=name, unit="round") as bar:
        for share in work:
            for worker, result in zip(workers, results, strict=True):
                result.answers.append(worker.ask(job, share))
                result.amounts.append(amount(share))
                result.seconds.append(worker.seconds)
                result.peak_bytes = worker.peak_bytes
                bar.update()
    return results


def run(main: Callable[..., None], description: str | None) -> None:
    """A benchmark as a command: its parameters are the options; wrong input exits with one sentence and code 2."""
    import tyro

    try:
        tyro.cli(main, prog=f"python -m benchmarks.{Path(sys.argv[0]).stem}", description=description)
    except InputError as problem:
        print(f"benchmark: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
