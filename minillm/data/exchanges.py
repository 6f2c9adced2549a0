"""Texts that ask and texts that answer, for tasks whose answers are free: a summary, a translation, a reply."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minillm.data.tables import column, read_rows
from minillm.data.tasks import divide
from minillm.errors import InputError


class Exchange(NamedTuple):
    """A prompt and the answer that should follow it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Exchanges:
    """A task of free answers. What is tuned is tuned on `validation`; `test` is scored once."""

    name: str
    train: list[Exchange]
    validation: list[Exchange]
    test: list[Exchange]


def table_exchanges(
    path: Path, *, prompt_column: str, answer_column: str, template: str, train: int, test: int
) -> Exchanges:
    """The task from a CSV or JSON lines file, divided as labelled text is; `template` is what is asked, with {text} for
    the prompt column's value. Raises InputError for an empty answer."""
    rows = [(column(row, prompt_column, path), column(row, answer_column, path)) for row in read_rows(path)]
    if not all(asked.strip() and answer.strip() for asked, answer in rows):
        raise InputError(f"{path} has a row whose {prompt_column!r} or {answer_column!r} is empty")
    exchanges = [Exchange(template.replace("{text}", asked), answer) for asked, answer in rows]
    return Exchanges(path.stem, *divide(exchanges, train, test))
