"""Ctrl-C and the system's requests to end: the first lets a command save its work, a second ends it at once."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import current_thread, main_thread
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
"""Windows has no SIGHUP, the others have no SIGBREAK."""
INTERRUPTED = 130
"""The exit code: 128 and the number of SIGINT, as shells report it."""


@contextmanager
def interrupts_handled() -> Iterator[None]:
    """For a command: the first signal raises KeyboardInterrupt, the same one again ends the process at once.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    seen: set[int] = set()

    def handle(before: Any, number: int, frame: object) -> None:
        if number in seen:
            os._exit(INTERRUPTED)
        seen.add(number)
        # torchrun and the end of a terminal send a second signal of another kind while the first is handled.
        if len(seen) == 1:
            raise KeyboardInterrupt

    with _handler(lambda before: partial(handle, before), lambda before: before not in (signal.SIG_IGN, None)):
        yield


@contextmanager
def interrupt_deferred() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a signal would have raised KeyboardInterrupt; a second one raises it.

    Only the signals that have a handler are deferred: outside of a command, Ctrl-C.
    """
    interrupted = False

    def handle(before: Any, number: int, frame: object) -> None:
        nonlocal interrupted
        try:
            before(number, frame)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True

    with _handler(lambda before: partial(handle, before), callable):
        yield lambda: interrupted


class CtrlC(KeyboardInterrupt):
    """Ctrl-C in a command that goes on after it."""


@contextmanager
def ctrl_c_repeated() -> Iterator[None]:
    """Ctrl-C raises CtrlC each time, and does not end the process the second time. Other signals do as before."""

    def handle(number: int, frame: object) -> None:
        raise CtrlC

    with _handler(lambda before: handle, callable, [signal.SIGINT]):
        yield


@contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """Ignores Ctrl-C, as does a process that is started within, though not on Windows."""
    with _handler(lambda before: signal.SIG_IGN, lambda before: before is not None, [signal.SIGINT]):
        yield


@contextmanager
def _handler(
    handler: Callable[[Any], Any], replaced: Callable[[Any], bool], numbers: Sequence[int] = SIGNALS
) -> Iterator[None]:
    """`handler(that before)` handles the signals; does nothing outside the main thread."""
    numbers = numbers if current_thread() is main_thread() else []
    before = {number: found for number in numbers if replaced(found := signal.getsignal(number))}
    try:
        for number, found in before.items():
            signal.signal(number, handler(found))
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
