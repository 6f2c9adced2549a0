"""A user's labelled text: a CSV file with a header line, or JSON lines."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minillm.data.tasks import LabelledText, Task, divide
from minillm.errors import InputError


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Each row as a mapping from column to value. Raises InputError for any other file."""
    if path.suffix not in (".csv", ".jsonl"):
        raise InputError(f"{path} must be a .csv or .jsonl file")
    try:
        # Spreadsheets write a byte order mark, which must not become part of the name of the first column.
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                yield from (_json_row(line, path) for line in file if line.strip())
            else:
                # The default limit of a field is 128 kB; reviews are longer.
                csv.field_size_limit(sys.maxsize)
                yield from csv.DictReader(file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a readable {path.suffix[1:].upper()} file: {error}") from error


def _json_row(line: str, path: Path) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise InputError(f"every line of {path} must be a JSON object, got {line.strip()[:40]}")
    return row


def column(row: dict[str, Any], name: str, path: Path) -> str:
    """The value of a row in a column, as text. Raises InputError if there is none, with the names of the columns."""
    if row.get(name) is None:
        raise InputError(f"{path} has a row without a value in column {name!r}; columns: {', '.join(map(str, row))}")
    return str(row[name])


def table_task(
    path: Path, *, text_column: str, label_column: str, prompt: str, labels: tuple[str, ...] | None, train: int,
    test: int,
) -> Task:  # fmt: skip
    """A task from a file. The classes are the values of the label column in sorted order; `labels` renames them."""
    rows = [(column(row, text_column, path), column(row, label_column, path)) for row in read_rows(path)]
    values = sorted({value for _, value in rows})
    if len(values) < 2:
        raise InputError(f"column {label_column!r} of {path} must have at least 2 classes, got {len(values)}")
    if labels is not None and len(labels) != len(values):
        raise InputError(f"{len(labels)} labels are given for the {len(values)} classes: {', '.join(values)}")
    number = {value: index for index, value in enumerate(values)}
    divided = divide([LabelledText(text, number[value]) for text, value in rows], train, test)
    return Task(path.stem, prompt, tuple(f" {label}" for label in labels or values), *divided)
