"""The encoding of a text file: UTF-8, UTF-16 or cp1252, recognised from its bytes."""

import codecs
from pathlib import Path

from minillm.errors import InputError
from minillm.runtime.reading import read_bytes

MOST = 2**30
"""Bytes of a file with data."""
MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""Byte order marks. That of UTF-32 begins with that of UTF-16, and so stands before it."""


def decode(path: Path, encoding: str | None) -> tuple[str, str]:
    """The text of a file, without a byte order mark, and its encoding, which is recognised if it is None.

    Raises InputError for a file that cannot be read or decoded, and for an unknown encoding.
    """
    content = read_bytes(path, MOST)
    name = recognised(content) if encoding is None else encoding
    try:
        text = content.decode(name)
    except LookupError:
        raise InputError(f"unknown encoding: {name!r}; use for example utf-8, utf-16, cp1252 or gb18030") from None
    except UnicodeError as error:
        line = content[: getattr(error, "start", 0)].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not in {name} ({error}); name the encoding with --encoding") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}, line {line}: a NUL character, in {name}; name another encoding with --encoding")
    return text.removeprefix("\ufeff"), name


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
