"""Results that took long to make are saved, if need be in another directory than the one that was asked for."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from minillm.errors import InputError, one_sentence


def saved(write: Callable[[Path], object], out: Path) -> Path:
    """Write a result to `out` or, if that fails, to a directory that the user gives on a terminal; returns it.

    Without a terminal it is written to the system's temporary directory, which the InputError names.
    """
    try:
        write(out)
        return out
    except BrokenPipeError:
        raise
    except OSError as problem:
        sentence = one_sentence(problem) or str(problem)
    if sys.stdin is not None and sys.stdin.isatty():
        print(f"minillm: {sentence}\nanother directory to save it in: ", end="", file=sys.stderr, flush=True)
        if other := sys.stdin.readline().strip():
            return saved(write, Path(other))
    elsewhere = Path(tempfile.mkdtemp(prefix="minillm-"))
    write(elsewhere)
    raise InputError(f"{sentence}; what was trained is saved in {elsewhere}")
