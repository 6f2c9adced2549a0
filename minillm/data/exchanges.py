"""Prompts with free-form answers: summaries, translations, replies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minillm.data.conversations import Conversation
from minillm.data.tables import Table
from minillm.data.tasks import divide
from minillm.tokenizer import Tokenizer


class Exchange(NamedTuple):
    """A text, the answer that should follow its prompt, the prompt template and, if known, the row of a file."""

    text: str
    answer: str
    template: str = "{text}"
    place: str = ""

    @property
    def prompt(self) -> str:
        return self.template.replace("{text}", self.text)

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """The ids of the prompt."""
        return tokenizer.prompt(self.prompt)


@dataclass(frozen=True)
class Exchanges:
    """A task with free-form answers, or conversations. Tune on `validation`; score `test` once."""

    name: str
    train: Sequence[Exchange | Conversation]
    validation: Sequence[Exchange | Conversation]
    test: Sequence[Exchange | Conversation]
    note: str = ""
    """How the file was read, if not as usual."""


def table_exchanges(
    table: Table, *, prompt_column: str, answer_column: str, template: str, train: int | None, test: int | None
) -> Exchanges:
    """The task of a table, divided like labelled text. {text} in `template` is the value of the prompt column.

    Raises InputError for an empty prompt or answer.
    """
    contents = table.read(prompt_column, answer_column)
    exchanges = [
        Exchange(row.text(prompt_column), row.text(answer_column), template, row.place) for row in contents.rows
    ]
    return Exchanges(table.path.stem, *divide(exchanges, train, test), note=table.note(contents))
