"""Conversations, and their token ids with the part that is trained on: the assistant's answers and their ends.

The ids are those of inference: each answer follows `tokenizer.chat` of the messages before it. Where a template writes
earlier answers in another way than the last one (Qwen leaves their thoughts out), or without an end, a conversation has
several rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from minillm.errors import InputError
from minillm.tokenizer import Tokenizer


class Conversation(NamedTuple):
    """Messages with a role and a content, and the tools for the chat template.

    With `template`, a text with {text}, this is a prompt and an answer without a chat template. `keywords` are those of
    the last answer, and `place` is the row of a file.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    template: str | None = None
    keywords: tuple[str, ...] = ()
    place: str = "a conversation"

    @property
    def turns(self) -> list[int]:
        """The indices of the assistant's messages."""
        return [n for n, message in enumerate(self.messages) if message["role"] == "assistant"]

    @property
    def text(self) -> str:
        """The messages before the last answer, for display."""
        return "\n".join(message["content"] for message in self.messages[: self.turns[-1]])

    def without_turn(self, side: str) -> "Conversation | None":
        """Without the first (left) or last (right) turn; None if there is only one, and for another side."""
        users = [n for n, message in enumerate(self.messages) if message["role"] == "user" and n < self.turns[-1]]
        if len(users) < 2 or side not in ("left", "right"):
            return None
        first, last = users[:2] if side == "left" else (users[-1], len(self.messages))
        return self._replace(messages=[*self.messages[:first], *self.messages[last:]])


def exchange(text: str, answer: str, template: str | None = None, place: str = "a text") -> Conversation:
    """A message of the user and the answer to it."""
    messages = {"role": "user", "content": text}, {"role": "assistant", "content": answer}
    return Conversation(messages, template=template, place=place)


@dataclass(frozen=True)
class Conversations:
    """A task with free answers. Tune on `validation`; score `test` once."""

    name: str
    train: list[Conversation]
    validation: list[Conversation]
    test: list[Conversation]
    note: str = ""
    """How the file was read."""


class EncodedConversation(NamedTuple):
    """Token ids, and for each whether it is trained on; the last one is."""

    ids: list[int]
    trained: list[bool]

    @property
    def targets(self) -> list[int]:
        """The places of the ids that are trained on."""
        return [place for place, trained in enumerate(self.trained) if trained and place > 0]

    @property
    def answer(self) -> int:
        """The place where the last answer begins."""
        return len(self.ids) - self.trained[::-1].index(False)


def answered(prompt: Sequence[int], answer: Sequence[int]) -> EncodedConversation:
    """A prompt and an answer, which is trained on."""
    return EncodedConversation([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))


def encode_conversation(tokenizer: Tokenizer, conversation: Conversation) -> list[EncodedConversation]:
    """The rows of a conversation, up to its last answer; mostly one.

    Raises InputError for a template that fails, or that does not continue the prompt of generation with the answer, and
    if nothing is trained on.
    """
    rows: list[EncodedConversation] = []
    for turn in conversation.turns:
        try:
            ids, trained = _turn(tokenizer, conversation, turn)
        except InputError as problem:
            raise InputError(f"{conversation.place}: {problem}") from None
        if not trained:
            continue
        if rows and ids[: len(rows[-1].ids)] == rows[-1].ids:
            before = rows.pop().trained
            trained = before + trained[len(before) :]
        rows.append(EncodedConversation(ids, trained))
    if not rows:
        raise InputError(
            f"{conversation.place}: {{% generation %}} or the weights of messages leave no answer to train"
        )
    return rows


def _turn(tokenizer: Tokenizer, conversation: Conversation, turn: int) -> tuple[list[int], list[bool]]:
    """The ids up to the end of an answer, and which of them belong to this answer; nothing if none is trained."""
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
    spanned |= {end} if end - 1 in spanned else set()
    tagged = "endgeneration" in (tokenizer.chat_template or "")
    places = [n for n in range(len(prompt), end + 1) if n in spanned or not tagged]
    if not places or messages[turn].get("weight") == 0:  # as in files for OpenAI
        return [], []
    return ids[: places[-1] + 1], [n in places for n in range(places[-1] + 1)]


def _discontinued(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    first = next((n for n, (one, other) in enumerate(zip(prompt, ids, strict=False)) if one != other), len(ids))
    before, after = (tokenizer.decode(row[max(first - 5, 0) : first + 10]) for row in (prompt, ids))
    return (
        f"the chat template continues its prompt for generation, {before!r}, with another text, {after!r}: training "
        "and generation would have different tokens; use another template, or an answer that begins differently"
    )
