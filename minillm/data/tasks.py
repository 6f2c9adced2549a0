"""Tasks: labelled text, with one fixed division into train, validation and test."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from minillm.data.boundary import refuse_trailing_space
from minillm.errors import InputError

Row = TypeVar("Row")

VALIDATION_END = 1000
"""The index at which the validation rows end and the training rows begin, if there are enough rows."""


class LabelledText(NamedTuple):
    """A text, the index of its class and, if known, the chain of thought that leads to it and the row of a file."""

    text: str
    label: int
    chain: str | None = None
    place: str = ""


@dataclass(frozen=True)
class Task:
    """Texts of two or more classes, a prompt that asks for the class, and an answer per class.

    `prompt` contains `{text}`; an answer includes the space before it (" positive"). Tune on `validation`; score `test`
    once. `cue` is the part of the prompt that begins the answer and follows a chain of thought (" The answer is");
    `end` ends the answer of a solved example.
    """

    name: str
    prompt: str
    answers: tuple[str, ...]
    train: list[LabelledText]
    validation: list[LabelledText]
    test: list[LabelledText]
    cue: str = ""
    end: str = ""

    def __post_init__(self):
        if "{text}" not in self.prompt:
            raise InputError(f"the prompt {self.prompt!r} has no {{text}}, the placeholder of the text")
        refuse_trailing_space(self.prompt)
        if len(set(self.answers)) < 2:
            given = ", ".join(answer.strip() for answer in self.answers)
            raise InputError(f"a task must have at least 2 different labels, got {given}")
        for split in ("train", "test"):
            if len({row.label for row in getattr(self, split)}) < 2:
                raise InputError(f"the {split} rows of {self.name} are all of one class; at least 2 are needed")


def divide(
    rows: Sequence[Row], train: int | None, test: int | None
) -> tuple[list[Row], list[Row], list[Row]]:  # fmt: skip
    """(train, validation, test) of one fixed shuffle: test first, then validation up to row 999, then train.

    In shorter data, validation gets the rows between test and train. Without `test`, a tenth of the rows is for test;
    without `train`, another tenth for validation and all others for train. Raises InputError if there are too few rows.
    """
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    return _cut(shuffled, train, test)


def divide_by_class(
    rows: Sequence[LabelledText], train: int | None, test: int | None
) -> tuple[list[LabelledText], list[LabelledText], list[LabelledText]]:
    """Like `divide`, with about the same share of each class in all parts.

    Without both sizes, validation and test have a tenth of each class, and at least 2 rows of it.
    """
    order, classes = random.Random(0), dict[int, list[LabelledText]]()
    for row in rows:
        classes.setdefault(row.label, []).append(row)
    for of_class in classes.values():
        order.shuffle(of_class)
    if train is None and test is None:
        by_class = [_cut(of_class, None, None) for of_class in classes.values()]
        parts = tuple([row for cut in by_class for row in cut[part]] for part in range(3))
    else:
        # In any stretch of this order, each class has its share of the rows.
        ranked = [((n + 0.5) / len(of_class), row) for of_class in classes.values() for n, row in enumerate(of_class)]
        parts = _cut([row for _, row in sorted(ranked, key=lambda ranked: ranked[0])], train, test)
    for part in parts:
        order.shuffle(part)
    return parts[0], parts[1], parts[2]


def _cut(rows: list[Row], train: int | None, test: int | None) -> tuple[list[Row], list[Row], list[Row]]:
    tenth = max(2, len(rows) // 10)
    test = tenth if test is None else test
    if train is None:
        train, start = len(rows) - test - tenth, test + tenth
    else:
        start = min(VALIDATION_END, len(rows) - train) if test < VALIDATION_END else len(rows) - train
    if train < 2 or test < 2:
        raise InputError(f"{train} training and {test} test rows are too few: at least 2 each are needed")
    if start <= test:
        raise InputError(
            f"the data has {len(rows)} rows: too few for {train} to train on and {test} to test on; give at least "
            f"{train + test + 1} rows, or lower --train or --test"
        )
    return rows[start : start + train], rows[test:start], rows[:test]
