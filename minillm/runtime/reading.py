"""Reading files that may be damaged or hostile: InputError and nothing else, and sizes before memory is taken."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minillm.errors import InputError

LARGEST, MOST_PARTS = 32 * 2**20, 2**21
"""Bytes of a JSON file, and its arrays, objects and names: a tokenizer has one for each token and merge, a million."""


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


def text_or_stdin(text: str | None) -> str | None:
    """The text, or for - standard input without its last newline. Raises InputError if that is not UTF-8."""
    if text != "-":
        return text
    with reading(Path("standard input"), "UTF-8"):
        return sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError for any other file.

    JSON is read strictly: without NaN, infinite numbers, duplicate names and unpaired surrogates.
    """
    with reading(path, "JSON"):
        text = read_text(path)
        if (parts := sum(map(text.count, "[{:"))) > MOST_PARTS:
            raise InputError(f"{path} must have at most {MOST_PARTS} arrays, objects and names, got {parts}")
        found = json.loads(text, object_pairs_hook=unique)
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
