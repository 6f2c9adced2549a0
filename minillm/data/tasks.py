"""Labelled text to adapt to: what a task is, and how its rows are divided once and for all."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from minillm.data.boundary import refuse_trailing_space
from minillm.errors import InputError

Row = TypeVar("Row")

VALIDATION_END = 1000
"""Where the validation rows end and the training rows begin, in data that has enough rows."""


class LabelledText(NamedTuple):
    """A text, the index of its class, and the chain of thought that leads to it, if it is known."""

    text: str
    label: int
    chain: str | None = None


@dataclass(frozen=True)
class Task:
    """Texts of two or more classes, a prompt that asks for the class, and the answer that stands for each.

    `prompt` contains `{text}`; an answer begins with its space (" positive"), as it follows the prompt. What is tuned
    is tuned on `validation`; `test` is scored once. `cue` is the end of the prompt that begins the answer, which a
    chain of thought comes before; `end` ends the answer of a solved example.
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
            raise InputError(f"the prompt {self.prompt!r} has no {{text}}, where the text would go")
        refuse_trailing_space(self.prompt)
        if len(set(self.answers)) < 2:
            raise InputError(f"a task needs two different labels at least; it has: {', '.join(self.answers)}")
        for split in ("train", "test"):
            if len({row.label for row in getattr(self, split)}) < 2:
                raise InputError(
                    f"the {split} rows of {self.name} are all of one class: there is nothing to tell apart"
                )


def divide(rows: Sequence[Row], train: int, test: int) -> tuple[list[Row], list[Row], list[Row]]:
    """(train, validation, test) of one fixed shuffle: test first, validation up to row 999, then train.

    Data too short for that gives what lies between test and train to validation. Raises InputError where the rows do
    not suffice.
    """
    if train < 2 or test < 2:
        raise InputError(f"{train} training and {test} test rows are too few: each needs 2 at least")
    start = min(VALIDATION_END, len(rows) - train) if test < VALIDATION_END else len(rows) - train
    if start <= test:
        raise InputError(
            f"the data has {len(rows)} rows: too few for {train} to train, {test} to test and some to validate on"
        )
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    return shuffled[start : start + train], shuffled[test:start], shuffled[:test]
