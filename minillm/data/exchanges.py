"""Prompts with free-form answers: summaries, translations, replies."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minillm.data.tables import columns
from minillm.data.tasks import divide


class Exchange(NamedTuple):
    """A prompt and the answer that should follow it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Exchanges:
    """A task with free-form answers. Tune on `validation`; score `test` once."""

    name: str
    train: list[Exchange]
    validation: list[Exchange]
    test: list[Exchange]


def table_exchanges(
    path: Path, *, prompt_column: str, answer_column: str, template: str, train: int, test: int
) -> Exchanges:
    """The task of a CSV or JSON lines file, divided like labelled text. {text} in `template` is the value of the
    prompt column. Raises InputError for an empty prompt or answer."""
    rows = columns(path, prompt_column, answer_column)
    exchanges = [Exchange(template.replace("{text}", asked), answer) for asked, answer in rows]
    return Exchanges(path.stem, *divide(exchanges, train, test))
