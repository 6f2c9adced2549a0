"""Conversations, and their token ids with the part that is trained on: the assistant's answers and their ends.

The ids are those of inference: each answer follows `tokenizer.chat` of the messages before it. Where a template writes
earlier answers in another way than the last one (Qwen leaves their thoughts out), or without an end, a conversation has
several rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from minillm.errors import InputError
from minillm.tokenizer import Tokenizer


class Conversation(NamedTuple):
    """Messages with a role and a content, tools for the template, keywords of the last answer, and the file's row."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    keywords: tuple[str, ...] = ()
    place: str = ""

    @property
    def turns(self) -> list[int]:
        """The indices of the assistant's messages."""
        return [n for n, message in enumerate(self.messages) if message["role"] == "assistant"]


class EncodedConversation(NamedTuple):
    """Token ids, and for each whether it is trained on."""

    ids: list[int]
    trained: list[bool]


def encode_conversation(tokenizer: Tokenizer, conversation: Conversation) -> list[EncodedConversation]:
    """The rows of a conversation, up to its last answer; mostly one.

    Raises InputError for a template that fails, or that does not continue the prompt of generation with the answer.
    """
    rows: list[EncodedConversation] = []
    for turn in conversation.turns:
        try:
            ids, trained = _turn(tokenizer, conversation, turn)
        except InputError as problem:
            raise InputError(f"{conversation.place or 'a conversation'}: {problem}") from None
        if rows and ids[: len(rows[-1].ids)] == rows[-1].ids:
            before = rows.pop().trained
            trained = before + trained[len(before) :]
        rows.append(EncodedConversation(ids, trained))
    return rows


def _turn(tokenizer: Tokenizer, conversation: Conversation, turn: int) -> tuple[list[int], list[bool]]:
    """The ids up to the end of an answer, and which of them belong to this answer."""
    messages, tools = conversation.messages, conversation.tools
    prompt = tokenizer.chat(messages[:turn], tools=tools)
    ids, spans = tokenizer.chat_spans(messages[: turn + 1], tools=tools)
    if ids[: len(prompt)] != prompt:
        raise InputError(_discontinued(tokenizer, prompt, ids))
    end = next((n for n in range(len(prompt), len(ids)) if ids[n] in tokenizer.stop), None)
    if end is None:
        if tokenizer.eos is None:
            raise InputError("an answer needs an end: one in the chat template, or the tokenizer's end of text (eos)")
        end, ids = len(ids), [*ids, tokenizer.eos]
    spanned = {place for span in spans for place in span}
    inside = [not spans or place in spanned or (place == end and place - 1 in spanned) for place in range(end + 1)]
    return ids[: end + 1], [within and place >= len(prompt) for place, within in enumerate(inside)]


def _discontinued(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    first = next((n for n, (one, other) in enumerate(zip(prompt, ids, strict=False)) if one != other), len(ids))
    ends = (tokenizer.decode(row[max(first - 5, 0) : first + 10]) for row in (prompt, ids))
    return "the chat template continues its prompt for generation, {!r}, with another text, {!r}: ".format(*ends) + (
        "what is trained would not be what is generated; use another template, or an answer that begins differently"
    )
