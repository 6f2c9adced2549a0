"""Ctrl-C where an unfinished step must not be left behind."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_deferred() -> Iterator[Callable[[], bool]]:
    """Ctrl-C takes effect between two steps, where the state is whole; the second time, at once."""
    interrupted = False

    def note(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: interrupted
    finally:
        signal.signal(signal.SIGINT, before)
