"""Writing files atomically: a file is complete or absent."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minillm.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name next to `path` to write to; at the end it is flushed to the disk and renamed to `path`.

    An error on the way removes it, and what stood at `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_directory(directory: Path) -> None:
    """Raises InputError where this cannot be a directory to write into: better before an hour's work than after it."""
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file; {directory} cannot be a directory to write into")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{directory} cannot be written: {there} does not allow it")


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
