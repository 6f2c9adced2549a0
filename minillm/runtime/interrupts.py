"""Ctrl-C, where a half-done step must not be left behind."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_deferred() -> Iterator[Callable[[], bool]]:
    """Ctrl-C takes effect between two steps, where the state is whole; the second time, at once."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
