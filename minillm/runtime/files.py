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

LARGEST = 32 * 2**20
"""Bytes of a JSON file that is read."""


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


def sealed(described: Mapping[str, Any]) -> str:
    """JSON with a sha256 over its content, which has a `format`."""
    return json.dumps({**described, "sha256": _seal(described)}, indent=1) + "\n"


def read_sealed(path: Path, *formats: int) -> dict[str, Any]:
    """The content of such a file. Raises InputError if it is missing, damaged, edited, of other formats or too large.

    JSON is read strictly: without NaN, infinite numbers and duplicate names.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} must have at most {LARGEST} bytes, got {path.stat().st_size}")
        found = json.loads(path.read_text("utf-8"), object_pairs_hook=unique)
        intact = found.pop("sha256") == _seal(found)
        written = found["format"]
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        raise InputError(f"{path} is not JSON with a sha256 over its content: {problem!r}"[:500]) from None
    if not intact:
        raise InputError(f"{path} was damaged or edited after it was written: its sha256 differs")
    if type(written) is not int or written not in formats:
        known = " and ".join(map(str, formats))
        raise InputError(f"{path} has the format {written!r}; this minillm reads {known}"[:500])
    return found


def _seal(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True, allow_nan=False).encode()).hexdigest()


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs. Raises ValueError for a duplicate name."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if any(name == other for other, _ in pairs[:place]))
        raise ValueError(f"an object has a duplicate name, {twice!r}")
    return found


def file_fingerprint(path: Path) -> str:
    """The sha256 of a file. Raises InputError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None
