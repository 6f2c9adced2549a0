"""Conversations from a user's table: messages, ShareGPT, Alpaca, or a column of prompts and one of answers.

Every row is checked. Contents are in NFC, without whitespace at their ends: an answer that begins with a newline would
share a token with its prompt.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from minillm.data.conversations import Conversation, Conversations, exchange
from minillm.data.tables import Contents, Row, Table
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


def table_conversations(
    table: Table, kind: str | None, columns: Sequence[str], train: int | None, test: int | None,
    template: str | None = None,
) -> Conversations | None:  # fmt: skip
    """The conversations of a table, divided like labelled text; None if its columns are those of labelled texts.

    A kind that is None is recognised. `columns`, if any, are those of prompts and answers, which with a template stay
    as they are. Raises InputError for a table or a row that is not of this kind.
    """
    known = (name for needed in COLUMNS.values() for names in needed for name in names)
    found, delimiter, encoding = table.scan(*columns, *known)
    first = next(found)
    names = first.values
    if kind is None and {"text", "label"} <= names.keys():
        return None
    for name in COLUMNS if kind is None else (kind,):
        chosen = columns or [next((name for name in some if name in names), "") for some in COLUMNS[name]]
        if all(chosen) and len(chosen) == len(COLUMNS[name]):
            break
    else:
        needed = "; ".join(f"{name} has {' and '.join(map(' or '.join, some))}" for name, some in COLUMNS.items())
        raise InputError(
            f"{table.path} has the columns {', '.join(names)}, and data of {kind or 'a known kind'} others ({needed}); "
            "name yours by --text-column and --label-column, or by --prompt-column and --answer-column"
        )
    contents = Contents([first, *found], delimiter, encoding)
    if template is None:
        rows = [_conversation(row, chosen) for row in contents.rows]
    else:
        rows = [exchange(row.text(chosen[0]), row.text(chosen[1]), template, row.place) for row in contents.rows]
    notes = [table.note(contents)]
    if kind is None:
        notes.append(f"{table.path}: recognised {name} by its columns, {' and '.join(chosen)}; --kind overrules")
    if unanswered := sum(one.messages[-1]["role"] != "assistant" for one in rows):
        notes.append(f"{unanswered} of {len(rows)} conversations have messages after the last answer: not used")
    return Conversations(table.path.stem, *divide(rows, train, test), note="\n".join(filter(None, notes)))


def _conversation(row: Row, columns: Sequence[str]) -> Conversation:
    """The conversation of a row. Raises InputError for wrong messages, their order, and tools."""
    found = row.values.get(columns[0])
    if len(columns) == 2:  # a prompt, with Alpaca's input after it, and its answer
        more = "\n\n" + row.text("input") if str(row.values.get("input") or "").strip() else ""
        found = [*exchange(row.text(columns[0]) + more, row.text(columns[1])).messages]
    if not isinstance(found, list):
        hint = "; a .jsonl file has lists" if isinstance(found, str) else ""
        raise row.wrong(f"{columns[0]!r} must be a list of messages, got {type(found).__name__}{hint}")
    if system := row.values.get("system"):
        found = [{"role": "system", "content": system}, *found]
    messages = [_message(row, number, message) for number, message in enumerate(found, 1)]
    roles = [message["role"] for message in messages]
    for number, (before, role) in enumerate(pairwise(["the start", *roles]), 1):
        if role not in AFTER[before]:
            raise row.wrong(f"message {number} is of {role}; after {before} comes {' or '.join(AFTER[before])}")
    if "assistant" not in roles:
        raise row.wrong("no message of the assistant, and so nothing to train on")
    if not isinstance(tools := row.values.get("tools") or None, list | None):
        raise row.wrong(f"tools must be a list, got {type(tools).__name__}")
    return Conversation(messages, tools, place=row.place)


def _message(row: Row, number: int, message: Any) -> dict[str, Any]:
    """A message with role and content, from one that may have from and value, and a content of several texts."""
    if not isinstance(message, dict):
        raise row.wrong(f"message {number} must be an object with role and content, got {type(message).__name__}")
    rest = {name: value for name, value in message.items() if name not in ("role", "from", "content", "value")}
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise row.wrong(f"message {number} has the role {role!r}; the roles are {', '.join(ROLES)}")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if content or not rest.get("tool_calls"):
        name = f"content of message {number}"
        content = row._replace(values={name: content}).text(name).strip()
    return {**rest, "role": ROLES[role], "content": content or ""}


def lecture() -> Conversations:
    """Questions on the lecture; validation and test ask for the same answers in other words."""
    rows = Table(Path(__file__).with_name("lecture.csv")).read().rows

    def asked(column: str, row: Row) -> Conversation:
        keywords = tuple(row.text("keywords").split(";"))
        return _conversation(row, (column, "answer"))._replace(keywords=keywords, place="lecture")

    train, held_out = ([asked(column, row) for row in rows] for column in ("question", "paraphrase"))
    return Conversations("lecture", train, held_out[: len(rows) // 2], held_out[len(rows) // 2 :])
