"""Progress and notes on standard error. A command says how much is printed; in a library call bars need a terminal."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from tqdm import tqdm

EVERY = 10.0
"""Seconds between two lines about the same work, where there is no terminal."""
Level = Literal["quiet", "normal", "verbose"]
_level: Level | None = None


@contextmanager
def printing(level: Level) -> Iterator[None]:
    """Within it, a command prints as much as `level` says."""
    global _level
    before, _level = _level, level
    try:
        yield
    finally:
        _level = before


def note(text: str) -> None:
    """Print a message to standard error, above a bar; nothing with --quiet."""
    if _level != "quiet":
        tqdm.write(text, file=sys.stderr)


def detail(text: str) -> None:
    """Print a message with --verbose only."""
    if _level == "verbose":
        note(text)


def progress(*arguments: Any, **options: Any) -> tqdm:
    """A bar on a terminal, which disappears when the work is done; elsewhere lines, in a command only."""
    off = _level == "quiet" or (_level is None and not sys.stderr.isatty())
    return _Bar(*arguments, **options, leave=False, disable=off, dynamic_ncols=True)


def duration(seconds: float) -> str:
    """A time in a suitable unit: 0.25 s, 45 s, 4.2 min, 12 min, 2.5 h."""
    size, unit = (3600, "h") if seconds >= 7200 else (60, "min") if seconds >= 120 else (1, "s")
    return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.2g} {unit}"


class _Bar(tqdm):
    """Where there is no terminal, a line at the start and every ten seconds instead of a bar, none within another."""

    next_line = -math.inf

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if sys.stderr.isatty():
            super().display(msg, pos)
        elif msg is None and self.pos == 0 and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + EVERY
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """The work and, once a part of it is done, how much and the time that is left."""
        whole, done = self.count(self.total or self.n), self.n - self.initial
        if not done or not self.total:
            return f"{self.desc}: {whole}"
        left = duration(self.format_dict["elapsed"] / done * (self.total - self.n))
        return f"{self.desc}: {self.n} of {whole}, {self.postfix + ', ' if self.postfix else ''}{left} left"

    def count(self, number: int) -> str:
        return f"{number} {self.unit}{'' if number == 1 else 'es' if self.unit.endswith('ch') else 's'}"

    def clear(self, *arguments: Any, **options: Any) -> None:
        if sys.stderr.isatty():
            super().clear(*arguments, **options)

    def close(self) -> None:
        shown = not self.disable and self.pos == 0
        super().close()
        if shown:
            detail(f"{self.desc}: {self.count(self.n)} in {duration(time.time() - self.start_t)}")
