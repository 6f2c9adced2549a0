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


def divide(rows: Sequence[Row], train: int, test: int) -> tuple[list[Row], list[Row], list[Row]]:
    """(train, validation, test) of one fixed shuffle: test first, then validation up to row 999, then train.

    In shorter data, validation gets the rows between test and train. Raises InputError if there are too few rows.
    """
    if train < 2 or test < 2:
        raise InputError(f"{train} training and {test} test rows are too few: at least 2 each are needed")
    start = min(VALIDATION_END, len(rows) - train) if test < VALIDATION_END else len(rows) - train
    if start <= test:
        raise InputError(
            f"the data has {len(rows)} rows: too few for {train} to train on and {test} to test on; give at least "
            f"{train + test + 1} rows, or lower --train or --test"
        )
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    return shuffled[start : start + train], shuffled[test:start], shuffled[:test]
