"""Atomic file writing: a file is complete or absent. Reading that raises InputError and nothing else."""

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


@contextmanager
def reading(path: Path, expected: str = "a valid file", advice: str = "") -> Iterator[None]:
    """Turns every error that the content of a file causes, in Python or a library, into an InputError with its name.

    A lack of memory is not an error of the file.
    """
    try:
        yield
    except (BrokenPipeError, MemoryError):
        raise
    except InputError as problem:
        if str(path) in str(problem):
            raise
        raise InputError(f"{path}: {problem}") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror or problem}{advice}") from None
    except BaseException as problem:
        # A panic of a library in Rust is not an Exception.
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())
        raise InputError(f"{path} cannot be read as {expected} ({reason:.400}){advice}") from problem


def check_regular(path: Path) -> None:
    """Opening a pipe would wait for a writer, and a device may have no end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} must be a file, not a directory, device or pipe")


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """The content of a regular file. Raises InputError for any other kind of file, and for more than `most` bytes."""
    with reading(path):
        check_regular(path)
        with open(path, "rb") as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path} must have at most {most} bytes, got more")
    return content


def read_text(path: Path, most: int = LARGEST) -> str:
    """The text of a UTF-8 file, with its newlines as \\n. Raises InputError as `read_bytes`."""
    with reading(path, "UTF-8"):
        return read_bytes(path, most).decode().replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError for any other file.

    JSON is read strictly: without NaN, infinite numbers, duplicate names and unpaired surrogates.
    """
    with reading(path, "JSON"):
        found = json.loads(read_text(path), object_pairs_hook=unique)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
        if not isinstance(found, dict):
            raise InputError(f"{path} must be a JSON object, got {type(found).__name__}")
    return found


@contextmanager
def open_tensors(path: Path, advice: str = "") -> Iterator[Any]:
    """An open safetensors file. Raises InputError where it cannot be read, with an advice."""
    from safetensors import safe_open

    with reading(path, "safetensors", advice):
        check_regular(path)
        with safe_open(str(path), framework="pt") as file:
            yield file


def read_sealed(path: Path, *formats: int) -> dict[str, Any]:
    """Its content. Raises InputError if it is missing, damaged, edited, too large or of other formats."""
    found = read_json(path)
    with reading(path, "JSON with a sha256 over its content"):
        intact, written = found.pop("sha256") == _seal(found), found["format"]
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
    with reading(path):
        check_regular(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()
