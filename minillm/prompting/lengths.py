"""Lengths: a prompt must fit into the decoder's context, with the prefix of a method before it and its answer after it.

All prompts are checked before anything is trained or generated. A text that is too long is refused, or cut by whole
tokens so that its prompt just fits; templates and answers are never cut.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch

from minillm.data.templates import Question, Template
from minillm.errors import InputError
from minillm.generation import LanguageModel
from minillm.runtime.device import autocast
from minillm.runtime.progress import note
from minillm.tokenizer import Tokenizer

Truncate = Literal["error", "left", "right"]
SHOWN = 40
"""The number of characters of a text in an error message."""


class Room(NamedTuple):
    """Tokens: the decoder's context, the prefix of a method, and the answer (its last token is predicted, not read)."""

    context: int
    prefix: int
    answer: int

    @property
    def prompt(self) -> int:
        return self.context - self.prefix - self.answer

    def __str__(self) -> str:
        parts = [(self.prefix, "the method's prefix"), (self.answer, "the answer")]
        return ", ".join([f"a context of {self.context}", *(f"{count} for {what}" for count, what in parts if count)])


def room(model: LanguageModel, answer: int, precision: str = "float32") -> Room:
    """The room for prompts of a model, before answers of so many tokens."""
    with torch.no_grad(), autocast(model.decoder.embed.weight.device, precision):
        prefix = model.prefix()
    return Room(model.decoder.config.context_length, 0 if prefix is None else len(prefix), answer)


def fit(
    tokenizer: Tokenizer, questions: Sequence[Question], rooms: Sequence[Room], truncate: str, places: Sequence[str]
) -> tuple[list[Question], list[list[int]]]:
    """The questions within their rooms, and the ids of their prompts.

    With `truncate` left or right, a line on stderr reports how many texts were cut. `places` name the rows in errors.

    Raises InputError for a prompt that is too long if `truncate` is error, and for one that is too long without a text.
    """
    questions = list(questions)
    prompts = [question.encode(tokenizer) for question in questions]
    long = [n for n, prompt in enumerate(prompts) if len(prompt) > rooms[n].prompt]
    if not long:
        return questions, prompts
    count = f"{len(long)} of {len(prompts)} texts"
    longest = max(len(prompts[n]) for n in long)
    first = long[0]
    without = len(questions[first]._replace(text="").encode(tokenizer))
    if without > rooms[first].prompt:
        raise _no_room(places[first], questions[first], rooms[first], without)
    if truncate == "error":
        raise InputError(
            f"{places[first]} ({questions[first].text[:SHOWN]!r}): its prompt has {len(prompts[first])} tokens, and "
            f"{max(rooms[first].prompt, 0)} fit ({rooms[first]}); {count} are too long, the longest prompt has "
            f"{longest}: shorten them, or set truncate (--truncate) to left or right, the side where texts are cut"
        )
    for n in long:
        questions[n] = _cut(tokenizer, questions[n], rooms[n], truncate, places[n])
        prompts[n] = questions[n].encode(tokenizer)
    note(f"truncated ({truncate}): {count}, the longest prompt has {longest} tokens")
    return questions, prompts


def check_truncate(truncate: str) -> None:
    """Raises InputError for anything but error, left and right."""
    if truncate not in get_args(Truncate):
        raise InputError(f"truncate must be error, left or right, got {truncate!r}")


def _cut(tokenizer: Tokenizer, question: Question, room: Room, side: str, place: str) -> Question:
    """The question with as much of its text as fits: its end is cut if the side is right."""
    spans = _spans(tokenizer, question.text)

    def part(count: int) -> Question:
        return question._replace(text=_part(question.text, spans, count, side))

    # The length of the whole prompt: tokens at the edges of the text may merge with the template.
    most = bisect_right(range(1, len(spans) + 1), room.prompt, key=lambda count: len(part(count).encode(tokenizer)))
    if most == 0:
        raise _no_room(place, question, room, len(part(0).encode(tokenizer)))
    return part(most)


def _no_room(place: str, question: Question, room: Room, without: int) -> InputError:
    return InputError(
        f"{place}: the prompt without its text has {without} tokens, and {max(room.prompt, 0)} fit ({room}): shorten "
        f"the template or the answer{', or show fewer or shorter examples (shots)' if question.template.shots else ''}"
    )


def _spans(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """The first character of each token of the text, and the one after its last."""
    return tokenizer.pipeline.encode(text, add_special_tokens=False).offsets


def _part(text: str, spans: Sequence[tuple[int, int]], count: int, side: str) -> str:
    """The text of the first tokens if the end is cut (right), else of the last; without whitespace where it is cut."""
    if count in (0, len(spans)):
        return text if count else ""
    return text[: spans[count - 1][1]].rstrip() if side == "right" else text[spans[-count][0] :].lstrip()


def fit_examples(tokenizer: Tokenizer, template: Template, room: Room, truncate: str) -> Template:
    """The template; if its examples leave a text less room than an example has on average, their longer texts are cut.

    Each gets an equal share of the room. Nothing is cut if `truncate` is error.
    """
    if truncate == "error" or not template.shots:
        return template
    bare = replace(template, shots=tuple(shot._replace(text="") for shot in template.shots))
    share = (room.prompt - len(bare.encode(tokenizer, ""))) // (len(template.shots) + 1)
    if share < 1 or room.prompt - len(template.encode(tokenizer, "")) >= share:
        return template
    shots, cut = [], 0
    for shot in template.shots:
        spans = _spans(tokenizer, shot.text)
        cut += len(spans) > share
        shots.append(shot._replace(text=_part(shot.text, spans, min(share, len(spans)), truncate)))
    note(f"truncated ({truncate}): {cut} of {len(shots)} examples, to {share} tokens")
    return replace(template, shots=tuple(shots))
