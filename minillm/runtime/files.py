"""Atomic file writing: a file is complete or absent."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minillm.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`; at the end it is flushed to disk and renamed, or removed after an error."""
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
    """Raises InputError if this cannot be an output directory. Creates nothing: to be called before the work."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{directory} cannot be an output directory: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{directory} cannot be an output directory: no permission to write in {existing}")


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_sealed(path: Path, described: Mapping[str, Any]) -> None:
    """JSON with a sha256 over its content, which has a `format`."""
    write_text(path, json.dumps({**described, "sha256": _seal(described)}, indent=1) + "\n")


def read_sealed(path: Path, expected: int) -> dict[str, Any]:
    """The content of such a file. Raises InputError where it is missing, damaged, edited or of another format."""
    try:
        found = json.loads(path.read_text("utf-8"))
        whole = found.pop("sha256") == _seal(found)
        written = found["format"]
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as problem:
        raise InputError(f"{path} is not JSON with a sha256 over its content: {problem!r}"[:500]) from None
    if not whole:
        raise InputError(f"{path} was damaged or edited after it was written: its sha256 differs")
    if written != expected:
        raise InputError(f"{path} has the format {written}; this minillm reads {expected}")
    return found


def _seal(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """The sha256 of a file. Raises InputError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None
