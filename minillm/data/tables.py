"""Tables: .csv and .tsv with a header, JSON lines or an array, plain lines. Every row is checked; errors name its line.

Delimiter and encoding are recognised if they are not given. In strict mode the csv module refuses open and misplaced
quotes; the number of values in a row is checked here.
"""

import csv
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from minillm.data.encodings import text_lines
from minillm.errors import InputError
from minillm.runtime.reading import unique

DELIMITERS = (",", ";", "\t", "|")
Format = Literal["csv", "tsv", "jsonl", "json", "lines"]
SHOWN = 60
"""The number of characters of a row that an error message shows."""


class Row(NamedTuple):
    """A row: its file and line, its values by column, and its text in the file."""

    place: str
    values: dict[str, Any]
    source: str

    def wrong(self, what: str) -> InputError:
        source = self.source.strip()
        return InputError(f"{self.place}: {what}; the row: {source[:SHOWN]!r}{'...' * (len(source) > SHOWN)}")

    def text(self, name: str) -> str:
        """A value as text: a string in NFC, a number or a Boolean as in JSON. Raises InputError for all others."""
        if name not in self.values:
            raise self.wrong(f"no column {name!r}; columns: {', '.join(self.values)}")
        value = self.values[name]
        if value is None or (isinstance(value, str) and not value.strip()):
            raise self.wrong(f"no value in column {name!r}")
        try:
            return printed(value)
        except ValueError as error:
            raise self.wrong(f"column {name!r} must be a text or a finite number, got {error}") from None


class Contents(NamedTuple):
    """The rows of a file, and how they were read; the delimiter of JSON lines is empty."""

    rows: list[Row]
    delimiter: str
    encoding: str


@dataclass(frozen=True)
class Table:
    """A .csv, .tsv, .jsonl or .json file, or one of a given format. Delimiter and encoding are recognised if None."""

    path: Path
    delimiter: str | None = None
    encoding: str | None = None
    format: Format | None = None

    @property
    def kind(self) -> str:
        return self.format or self.path.suffix.lower().removeprefix(".")

    def read(self, *names: str) -> Contents:
        """All rows. Raises InputError for another file, a wrong row, and no rows."""
        rows, delimiter, encoding = self.scan(*names)
        return Contents(list(rows), delimiter, encoding)

    def scan(self, *names: str) -> tuple[Iterator[Row], str, str]:
        """The rows one by one, the delimiter and the encoding. Raises InputError for a wrong row when it is reached.

        The names are those of columns that will be used: they help to recognise the delimiter.
        """
        if self.kind not in get_args(Format):
            raise InputError(f"{self.path} must be a .csv, .tsv or .jsonl file, or a .json file with an array")
        lines, encoding = text_lines(self.path, self.encoding)
        if self.kind in ("csv", "tsv"):
            start: list[str] = []
            for line in lines:
                start.append(line)
                if line.strip():  # the header
                    break
            delimiter = self._delimiter(start[-1] if start else "", names)
            rows = self._csv_rows(chain(start, lines), delimiter)
        elif self.delimiter is not None:
            what = "plain lines" if self.kind == "lines" else "JSON lines"
            raise InputError(f"{self.path} has {what}, which have no delimiter; leave out --delimiter")
        else:
            lines = self._array("".join(lines)) if self.kind == "json" else lines
            delimiter, rows = "", self._line_rows(lines) if self.kind == "lines" else self._json_rows(lines)
        if (first := next(rows, None)) is None:
            raise InputError(f"{self.path} has no rows")
        return chain([first], rows), delimiter, encoding

    def note(self, found: Contents) -> str:
        """A line about a delimiter or an encoding that was recognised and is not the usual one, or nothing."""
        usual = "\t" if self.kind == "tsv" else ","
        odd = []
        if self.delimiter is None and found.delimiter not in (usual, ""):
            odd.append(f"delimiter {found.delimiter!r}")
        if self.encoding is None and found.encoding != "utf-8":
            odd.append(f"encoding {found.encoding}")
        if not odd:
            return ""
        return f"{self.path}: recognised {' and '.join(odd)}; --delimiter and --encoding overrule"

    def _delimiter(self, header: str, names: tuple[str, ...]) -> str:
        if self.delimiter is not None:
            given = self.delimiter.replace("\\t", "\t")
            if len(given) != 1 or given in '" \r\n':
                raise InputError(f"delimiter must be one character, no quote, space or newline, got {self.delimiter!r}")
            return given
        if self.kind == "tsv":
            return "\t"

        def fit(delimiter: str) -> tuple[int, int]:
            found = [name.strip(' "\r\n') for name in header.split(delimiter)]
            return len({*names} & {*found}), len(found)

        return max(DELIMITERS, key=fit)

    def _csv_rows(self, lines: Iterable[str], delimiter: str) -> Iterator[Row]:
        records = self._records(lines, delimiter)
        header, names = next(records, (Row("", {}, ""), []))
        columns = _column_names(header, names)
        unnamed = [n for n, name in enumerate(names) if n > 0 and not name.strip()]
        for row, values in records:
            if len(values) != len(columns):
                raise row.wrong(
                    f"{len(values)} values for the {len(columns)} columns {', '.join(columns)}; "
                    f"a value with {delimiter!r} in it must be in double quotes"
                )
            if extra := [columns[n] for n in unnamed if values[n].strip()]:
                raise row.wrong(f"{extra[0]} has a value but no name in the header")
            yield row._replace(values=dict(zip(columns, values, strict=True)))

    def _records(self, lines: Iterable[str], delimiter: str) -> Iterator[tuple[Row, list[str]]]:
        """The place, source and values of each row that is not empty. Raises InputError for wrong quotes."""
        # The default limit is 131,072 characters, and reviews are longer. A C long has 32 bits on Windows.
        csv.field_size_limit(2**31 - 1)
        taken: list[str] = []
        # `append` returns None, so each line is appended and passed on.
        lines = (taken.append(line) or line for line in lines)
        reader, start = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True), 1
        try:
            for values in reader:
                row, start = Row(f"{self.path}, line {start}", {}, "".join(taken)), reader.line_num + 1
                taken.clear()
                if any(map(str.strip, values)):
                    yield row, values
        except csv.Error as error:
            raise Row(f"{self.path}, line {start}", {}, taken[0]).wrong(
                f"open or misplaced double quotes ({error}); a quote in a quoted value must be doubled"
            ) from None

    def _array(self, text: str) -> Iterator[str]:
        """The rows of a JSON array, as one line each."""
        try:
            found = json.loads(text, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: not JSON ({error}); a .jsonl file has an object in each line") from None
        if not isinstance(found, list):
            raise InputError(f"{self.path} must be an array of objects, got {type(found).__name__}")
        return (json.dumps(row, ensure_ascii=False) for row in found)

    def _line_rows(self, lines: Iterable[str]) -> Iterator[Row]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise InputError(f"{self.path}, line {number}: an empty line; every line must be a text")
            yield Row(f"{self.path}, line {number}", {"text": line.rstrip("\r\n")}, line)

    def _json_rows(self, lines: Iterable[str]) -> Iterator[Row]:
        unit = "row" if self.kind == "json" else "line"
        for number, line in enumerate(lines, 1):
            row = Row(f"{self.path}, {unit} {number}", {}, line)
            if not line.strip():
                continue
            try:
                found = json.loads(line, object_pairs_hook=unique, parse_constant=_refuse_constant)
            except json.JSONDecodeError as error:
                raise row.wrong(f"not JSON ({error.msg}, column {error.colno})") from None
            except (ValueError, RecursionError) as error:
                raise row.wrong(f"not JSON ({error})") from None
            if not isinstance(found, dict):
                raise row.wrong("every line must be a JSON object")
            yield row._replace(values=found)


def _column_names(row: Row, header: list[str]) -> list[str]:
    """The names in a header. A column without one is named by its number.

    pandas writes an index without a name as the first column, and Excel empty ones after the last.
    """
    names = [unicodedata.normalize("NFC", name).strip() or f"column {n}" for n, name in enumerate(header, 1)]
    if twice := [name for n, name in enumerate(names) if name in names[:n]]:
        raise row.wrong(f"the column {twice[0]!r} occurs twice")
    return names


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def printed(value: Any) -> str:
    """A string in NFC; a number or a Boolean as JSON writes it, 1.0 as 1. Raises ValueError for anything else."""
    if isinstance(value, str):
        text = unicodedata.normalize("NFC", value)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("an unpaired surrogate") from None
        return text
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise ValueError(type(value).__name__)


def columns(path: Path, *names: str) -> list[tuple[str, ...]]:
    """The values of some columns in each row of a file, as text."""
    return [tuple(row.text(name) for name in names) for row in Table(path).read(*names).rows]
