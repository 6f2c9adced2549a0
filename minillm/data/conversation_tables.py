"""Conversations from a user's table: messages, ShareGPT, Alpaca, or a column of prompts and one of answers.

Every row is checked. Contents are in NFC, without whitespace at their ends: an answer that begins with a newline would
share a token with its prompt.
"""

import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from minillm.data.conversations import Conversation
from minillm.data.exchanges import Exchanges
from minillm.data.tables import Row, Table, printed
from minillm.data.tasks import divide
from minillm.errors import InputError

Kind = Literal["labels", "messages", "sharegpt", "alpaca", "answers"]
COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",),),
    "alpaca": (("instruction",), ("output", "response")),
    "answers": (("prompt", "question"), ("answer", "completion", "response")),
}
"""By kind, the names of each column that it needs."""
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant", "bot": "assistant", "tool": "tool", "observation": "tool",
}  # fmt: skip
"""The roles in files, and the roles in chat templates."""
AFTER = {
    "the start": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}  # fmt: skip
"""By role, those that may follow."""


def recognised(table: Table) -> str:
    """The kind of a table by its columns. Raises InputError if there is none."""
    names = _names(table)
    if {"text", "label"} <= names.keys():
        return "labels"
    for kind in COLUMNS:
        if (columns := _columns(kind, names)) is not None:
            print(f"{table.path}: {kind}, recognised by {' and '.join(columns)}; --kind overrules", file=sys.stderr)
            return kind
    raise InputError(
        f"{table.path}: no conversations, prompts or labelled texts by its columns, {', '.join(names)}; name those of "
        "texts and labels (--text-column, --label-column) or of prompts and answers (--prompt-column, --answer-column)"
    )


def _names(table: Table) -> dict[str, None]:
    """The names of the columns of all rows, in order; of CSV files these are in the header."""
    likely = [name for needed in COLUMNS.values() for names in needed for name in names]
    return {name: None for row in table.read(*likely).rows for name in row.values}


def _columns(kind: str, names: Iterable[str]) -> list[str] | None:
    """The columns of a kind, if it is one of conversations and all are there."""
    found = [next((name for name in needed if name in names), None) for needed in COLUMNS.get(kind, ())]
    return [name for name in found if name is not None] if all(found) else None


def table_conversations(
    table: Table, kind: str, columns: Sequence[str] | None, train: int | None, test: int | None
) -> Exchanges:
    """The conversations of a table, divided like labelled text; `columns` are those of prompts and answers.

    Raises InputError for a table or a row that is not of this kind.
    """
    names = _names(table)
    columns = _columns(kind, names) if columns is None else columns
    if columns is None or len(columns) != len(COLUMNS[kind]):
        needed = " and ".join(" or ".join(some) for some in COLUMNS[kind])
        raise InputError(f"{table.path}: {kind} has the columns {needed}; the file has {', '.join(names)}")
    contents = table.read(*columns)
    found = [_conversation(row, columns) for row in contents.rows]
    notes = [table.note(contents)]
    if unanswered := sum(one.messages[-1]["role"] != "assistant" for one in found):
        notes.append(f"{unanswered} of {len(found)} conversations have messages after the last answer: not used")
    return Exchanges(table.path.stem, *divide(found, train, test), note="\n".join(filter(None, notes)))


def _conversation(row: Row, columns: Sequence[str]) -> Conversation:
    """The conversation of a row. Raises InputError for wrong roles, contents and tools."""
    messages = _listed(row, *columns) if len(columns) == 1 else _pair(row, *columns)
    if isinstance(system := row.values.get("system"), str) and system.strip():
        messages = [{"role": "system", "content": _content(row, "the system message", system)}, *messages]
    roles = [message["role"] for message in messages]
    for number, (before, role) in enumerate(pairwise(["the start", *roles]), 1):
        if role not in AFTER[before]:
            raise row.wrong(f"message {number} is of {role}; after {before} comes {' or '.join(AFTER[before])}")
    if "assistant" not in roles:
        raise row.wrong("no message of the assistant, and so nothing to train on")
    if not isinstance(tools := row.values.get("tools") or None, list | None):
        raise row.wrong(f"tools must be a list, got {type(tools).__name__}")
    return Conversation(messages, tools, place=row.place)


def _pair(row: Row, prompt: str, answer: str) -> list[dict[str, Any]]:
    """A prompt, with Alpaca's input after it, and its answer."""
    asked = [row.text(prompt).strip()]
    if row.values.get("input") not in (None, "") and "input" not in (prompt, answer):
        asked.append(row.text("input").strip())
    return [
        {"role": "user", "content": "\n\n".join(asked)}, {"role": "assistant", "content": row.text(answer).strip()},
    ]  # fmt: skip


def _listed(row: Row, column: str) -> list[dict[str, Any]]:
    """The messages of a list, as objects of role and content or of from and value."""
    if not isinstance(found := row.values.get(column), list):
        hint = "; a .jsonl file has lists" if isinstance(found, str) else ""
        raise row.wrong(f"{column!r} must be a list of messages, got {type(found).__name__}{hint}")
    messages = []
    for number, message in enumerate(found, 1):
        if not isinstance(message, dict):
            raise row.wrong(f"message {number} must be an object with role and content, got {type(message).__name__}")
        rest = {name: value for name, value in message.items() if name not in ("role", "from", "content", "value")}
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            raise row.wrong(f"message {number} has the role {role!r}; the roles are {', '.join(ROLES)}")
        content = "" if not content and rest.get("tool_calls") else _content(row, f"message {number}", content)
        messages.append({**rest, "role": ROLES[role], "content": content})
    return messages


def _content(row: Row, what: str, content: Any) -> str:
    """The text of a message, which may have several parts. Raises InputError for an empty one, and for no text."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise row.wrong(f"the content of {what} must be a text or a list of texts, got {type(content).__name__}")
    try:
        text = printed(content).strip()
    except ValueError as problem:
        raise row.wrong(f"the content of {what} has {problem}") from None
    if not text:
        raise row.wrong(f"the content of {what} is empty")
    return text


def lecture() -> Exchanges:
    """Questions on the lecture; validation and test ask for the same answers in other words."""
    rows = Table(Path(__file__).with_name("lecture.csv")).read().rows

    def asked(column: str) -> list[Conversation]:
        return [
            Conversation(
                _pair(row, column, "answer"), keywords=tuple(row.text("keywords").split(";")), place=f"lecture, row {n}"
            )
            for n, row in enumerate(rows, 1)
        ]  # fmt: skip

    held_out = asked("paraphrase")
    half = len(held_out) // 2
    return Exchanges("lecture", asked("question"), held_out[:half], held_out[half:])
