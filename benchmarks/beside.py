"""Several ways to do the same work, timed beside each other: every side in a process of its own, all taking turns.

A machine is not equally fast at two times of a day. So the sides go A B A B ..., each on the same share of the work,
and what is compared is neighbours in time. A process of its own makes a side's peak memory its own, and keeps one
side's settings (allocator, threads) from the others. Nothing is known here of what the sides do.
"""

import multiprocessing
import os
import signal
import sys
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
    """A contestant's name, and how its own process builds it: `contestant(**options)`."""

    name: str
    contestant: Callable[..., Any]
    options: dict[str, Any]


class Worker:
    """A side at work. It stays loaded between rounds; `seconds` and `peak_bytes` are those of the last answer."""

    def __init__(self, side: Side, threads: int):
        self.name, self.seconds, self.peak_bytes = side.name, 0.0, None
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, side, threads), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, job: str, *arguments: Any) -> Any:
        """What the contestant's method of that name returns."""
        self.connection.send((job, arguments))
        answer, self.seconds, self.peak_bytes = self.hear()
        return answer

    def hear(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            raise InputError(f"the side {self.name!r} died; what it said stands above") from None


def _serve(connection: Connection, side: Side, threads: int) -> None:
    """A worker's life: build the contestant, say so, then do job after job until it is ended."""
    import torch

    from minillm.runtime.device import peak_memory

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    torch.set_num_threads(threads)
    contestant = side.contestant(**side.options)
    connection.send("ready")
    while True:
        try:
            job, arguments = connection.recv()
        except EOFError:  # the parent has all it wants
            return
        start = time.perf_counter()
        answer = getattr(contestant, job)(*arguments)
        connection.send((answer, time.perf_counter() - start, peak_memory(torch.device("cpu"))))


@contextmanager
def at_work(sides: Sequence[Side], threads: int) -> Iterator[list[Worker]]:
    """The sides' workers, built and waiting; they end with the block."""
    # numpy's and scikit-learn's threads are counted by their libraries, when they are first imported.
    os.environ.update({f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")})
    workers = [Worker(side, threads) for side in sides]
    try:
        for worker in progress(workers, desc="loading", unit="side"):
            worker.hear()
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
    """All the work in equal parts, one a round: every `rounds`-th batch, so that long ones are spread evenly."""
    if not 1 <= rounds <= len(batches):
        raise InputError(f"{len(batches)} batches cannot be spread over {rounds} rounds; take 1 to {len(batches)}")
    return [list(batches[start::rounds]) for start in range(rounds)]


def take_turns(
    workers: Sequence[Worker], job: str, work: Sequence[Any], amount: Callable[[Any], float], name: str
) -> list[Rounds]:
    """Each share of the work done by every side before the next share is begun."""
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
    """A benchmark as a command: its signature is its options; wrong use is one sentence and exit code 2."""
    import tyro

    try:
        tyro.cli(main, prog=f"python -m benchmarks.{Path(sys.argv[0]).stem}", description=description)
    except InputError as problem:
        print(f"benchmark: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
