"""A user's labelled text: a CSV file with a header line, or JSON lines."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minillm.data.tasks import LabelledText, Task, divide
from minillm.errors import InputError


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of the line and the values by column, of each row. Raises InputError for any other file."""
    if path.suffix not in (".csv", ".jsonl"):
        raise InputError(f"{path} must be a .csv or .jsonl file")
    try:
        # Spreadsheets write a byte order mark, which must not become part of the name of the first column.
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                for line, text in enumerate(file, 1):
                    if text.strip():
                        yield line, _json_row(text, f"{path}, line {line}")
            else:
                # The default limit of a field is 128 kB; reviews are longer.
                csv.field_size_limit(sys.maxsize)
                reader = csv.DictReader(file)
                yield from ((reader.line_num, row) for row in reader)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a readable file in UTF-8: {error}") from error


def _json_row(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: every line must be a JSON object, got {text.strip()[:40]}")
    return row


def columns(path: Path, *names: str) -> list[tuple[str, ...]]:
    """The values of some columns in each row, as text. Raises InputError for a missing value and for no rows."""
    rows = []
    for line, row in read_rows(path):
        for name in names:
            if row.get(name) is None or not str(row[name]).strip():
                what = "value in column" if name in row else "column"
                hint = "; columns must be separated by commas" if len(row) == 1 and path.suffix == ".csv" else ""
                raise InputError(f"{path}, line {line}: no {what} {name!r}; columns: {', '.join(map(str, row))}{hint}")
        rows.append(tuple(str(row[name]) for name in names))
    if not rows:
        raise InputError(f"{path} has no rows")
    return rows


def table_task(
    path: Path, *, text_column: str, label_column: str, prompt: str, labels: tuple[str, ...] | None, train: int,
    test: int,
) -> Task:  # fmt: skip
    """A task from a file. The classes are the values of the label column in sorted order; `labels` renames them."""
    rows = columns(path, text_column, label_column)
    values = sorted({value for _, value in rows})
    if not 2 <= len(values) < len(rows):
        found = f"got {len(values)} in {len(rows)} rows"
        raise InputError(f"column {label_column!r} of {path} must have at least 2 classes and fewer than rows, {found}")
    if labels is not None and len(labels) != len(values):
        raise InputError(f"{len(labels)} labels are given for the {len(values)} classes: {', '.join(values)}")
    number = {value: index for index, value in enumerate(values)}
    divided = divide([LabelledText(text, number[value]) for text, value in rows], train, test)
    return Task(path.stem, prompt, tuple(f" {label}" for label in labels or values), *divided)
