"""A task from a user's table: the classes, their answers, and stratified parts."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from minillm.data.tables import SHOWN, Contents, Row, Table
from minillm.data.tasks import LabelledText, Task, divide_by_class
from minillm.errors import InputError

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
FEWEST = 6
"""Rows of a class that give 2 to each part."""


@dataclass(frozen=True)
class TableTask(Task):
    """A task from a file: the values of its label column in the order of the classes, and a note on how it was read."""

    values: tuple[str, ...] = ()
    note: str = ""


def table_task(
    table: Table, *, text_column: str, label_column: str, prompt: str, labels: tuple[str, ...] | None,
    train: int | None, test: int | None,
) -> TableTask:  # fmt: skip
    """A task from a file. The classes are the values of the label column in order; `labels` renames them.

    Raises InputError for a row without a text or a label, for labels of several types, and for too few rows.
    """
    contents = table.read(text_column, label_column)
    texts, found = [row.text(text_column) for row in contents.rows], column_labels(contents.rows, label_column)
    refuse_rows_in_quotes(contents, label_column, {*found})
    values = in_order(found)
    if not 2 <= len(values) < len(found):
        raise InputError(
            f"column {label_column!r} of {table.path} must have at least 2 classes and fewer than rows, got "
            f"{len(values)} in {len(found)} rows"
        )
    if train is None and test is None:
        refuse_rare(Counter(found))
    number = {value: index for index, value in enumerate(values)}
    labelled = [
        LabelledText(text, number[value], place=row.place)
        for text, value, row in zip(texts, found, contents.rows, strict=True)
    ]
    return TableTask(
        table.path.stem, prompt, answers_of(values, labels), *divide_by_class(labelled, train, test), values=values,
        note=table.note(contents),
    )  # fmt: skip


def column_labels(rows: Sequence[Row], name: str) -> list[str]:
    """The labels of all rows, without surrounding whitespace. Raises InputError for labels of several types."""
    labels = []
    for row in rows:
        labels.append(row.text(name).strip())
        if len(labels[-1].splitlines()) > 1:
            raise row.wrong(f"the label in column {name!r} has a newline; is a quote left open?")
        kind, first = _kind(row.values[name]), _kind(rows[0].values[name])
        if kind != first:
            raise row.wrong(f"the label in column {name!r} is a {kind}, and a {first} in {rows[0].place}")
    return labels


def _kind(value: object) -> str:
    return "string" if isinstance(value, str) else "Boolean" if isinstance(value, bool) else "number"


def refuse_rows_in_quotes(contents: Contents, name: str, labels: set[str]) -> None:
    """Raises InputError for a quoted text with a line that is a row with a known label: an open quote, closed later."""
    for row in contents.rows:
        for line in row.source.splitlines()[:-1] if contents.delimiter else ():
            cells = line.replace('"', "").split(contents.delimiter)
            if len(cells) == len(row.values) and cells[list(row.values).index(name)].strip() in labels:
                raise row.wrong(
                    f"a quoted text of several lines contains another row, {line[:SHOWN]!r}; close the quote, or use "
                    "JSON lines if this is the text"
                )


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels: numbers by size, others as strings. Raises InputError for one number in two spellings."""
    found = sorted({*labels})
    if not all(map(NUMBER.fullmatch, found)):
        return tuple(found)
    found.sort(key=float)
    for one, other in pairwise(found):
        if float(one) == float(other):
            raise InputError(f"the labels {one!r} and {other!r} are the same number; write it in one way")
    return tuple(found)


def refuse_rare(counts: Counter[str]) -> None:
    """Raises InputError for a class with too few rows for all parts."""
    if rare := [f"{value!r} ({count})" for value, count in counts.items() if count < FEWEST]:
        raise InputError(
            f"a class needs at least {FEWEST} rows, 2 each for training, validation and test, to divide the data; "
            f"fewer have {', '.join(rare)}; add or remove rows, or give --train and --test"[:500]
        )


def answers_of(values: Sequence[str], labels: Sequence[str] | None) -> tuple[str, ...]:
    """The answer of each value, with a space before it: the value itself, or as `labels` say.

    These are value=answer in any order, or all answers in the order of the values. Raises InputError for other labels.
    """
    named = [label.partition("=") for label in labels or values]
    if labels is None or not any(equals for _, equals, _ in named):
        answers = tuple(labels or values)
        if len(answers) != len(values):
            raise InputError(f"{len(answers)} labels are given for the {len(values)} classes: {', '.join(values)}")
    else:
        by_value = {value.strip(): answer.strip() for value, equals, answer in named if equals}
        if len(by_value) < len(named) or {*by_value} != {*values}:
            raise InputError(
                f"labels must give one answer to each value of the label column, as value=answer; the values: "
                f"{', '.join(values)}; got {', '.join(labels)}"
            )
        answers = tuple(by_value[value] for value in values)
    if not 2 <= len(answers) == len({*answers}) or not all(answers):
        raise InputError(f"labels must be at least two different non-empty texts, got {', '.join(answers)}")
    return tuple(f" {answer}" for answer in answers)
