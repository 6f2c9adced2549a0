"""The encoding of a text file: UTF-8, UTF-16 or cp1252, recognised from its bytes."""

import codecs
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from minillm.errors import InputError
from minillm.runtime.reading import read_bytes

MOST = 2**30
"""Bytes of a file with data."""
STDIN = Path("standard input")
MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""Byte order marks. That of UTF-32 begins with that of UTF-16, and so stands before it."""


def text_lines(path: Path, encoding: str | None) -> tuple[Iterator[str], str]:
    """The lines of a file with their ends, and its encoding, which is recognised if it is None. STDIN is a stream.

    Raises InputError for a file or a line that cannot be read or decoded, and for an unknown encoding.
    """
    if path == STDIN:
        name = encoding or "utf-8"
        return (_decoded(line, name, path, number) for number, line in enumerate(sys.stdin.buffer, 1)), name
    content = read_bytes(path, MOST)
    name = recognised(content) if encoding is None else encoding
    # Lines end where the csv module ends them: JSON strings may contain other line separators.
    return io.StringIO(_decoded(content, name, path), newline=""), name


def _decoded(content: bytes, name: str, path: Path, line: int = 1) -> str:
    """The text in an encoding, without a byte order mark; `line` is the number of its first line."""
    try:
        text = content.decode(name)
    except LookupError:
        raise InputError(f"unknown encoding: {name!r}; use for example utf-8, utf-16, cp1252 or gb18030") from None
    except UnicodeError as error:
        line += content[: getattr(error, "start", 0)].count(b"\n")
        raise InputError(f"{path}, line {line}: not in {name} ({error}); name the encoding with --encoding") from None
    if "\0" in text:
        line += text[: text.index("\0")].count("\n")
        raise InputError(f"{path}, line {line}: a NUL character, in {name}; name another encoding with --encoding")
    return text.removeprefix("\ufeff")


def recognised(content: bytes) -> str:
    """The most probable encoding: by its byte order mark, its NUL bytes (UTF-16), or the bytes that are not UTF-8."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return encoding
    nul = {place % 2 for place, byte in enumerate(content[:1000]) if byte == 0}
    if nul == {1} and b"\n\0" in content:
        return "utf-16-le"
    if nul == {0} and b"\0\n" in content:
        return "utf-16-be"
    try:
        content.decode()
        return "utf-8"
    except UnicodeDecodeError:
        text = content.decode(errors="replace")
    invalid = text.count("\ufffd") - content.count("\ufffd".encode())
    valid = sum(not character.isascii() for character in text) - invalid
    # Western text is mostly ASCII. A UTF-8 file with one damaged byte has more valid characters than invalid ones.
    western = 5 * len(content.translate(None, bytes(range(128)))) < len(content)
    return "cp1252" if invalid > valid and western else "utf-8"
