"""Prompt templates: zero-shot, few-shot, and both with a chain of thought.

A few-shot prompt has solved examples before the question (Brown et al. 2020). "Let's think step by step." starts a
chain of thought (Kojima et al. 2022); few-shot examples then contain chains too (Wei et al. 2022). The answer is
extracted in a second stage, after a conclusion that follows the chain (Kojima et al. 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minillm.data.answers import encode_answers
from minillm.data.boundary import refuse_merging, refuse_trailing_space
from minillm.data.tasks import LabelledText, Task
from minillm.errors import InputError
from minillm.tokenizer import Tokenizer

CHAIN_CUE = " Let's think step by step."
CONCLUSION = " Therefore, the answer is"
BETWEEN = "\n\n"


class Shot(NamedTuple):
    """A solved example: the answer includes the space before it; the chain of thought is optional."""

    text: str
    answer: str
    chain: str | None = None


@dataclass(frozen=True)
class Template:
    """A prompt with a placeholder, {text}, in `question`.

    `cue` begins an answer without a chain, `conclusion` one after a chain; `end` ends the answer of an example. In a
    chat, the examples are turns, the instruction is the system message, and the prompt ends in the assistant's turn.
    Raises InputError for a missing {text}, a trailing space, and examples without the chains that are asked for.
    """

    question: str
    cue: str = ""
    end: str = ""
    conclusion: str = CONCLUSION
    instruction: str = ""
    shots: tuple[Shot, ...] = ()
    chain: bool = False
    chat: bool = False

    def __post_init__(self):
        if "{text}" not in self.question:
            raise InputError(f"the prompt {self.question!r} has no {{text}}, the placeholder of the text")
        refuse_trailing_space(self.question + self.answer_start)
        refuse_trailing_space(self.conclusion)
        if self.chain and any(shot.chain is None for shot in self.shots):
            raise InputError(
                "a few-shot chain of thought needs a chain for each example, but these examples have no chains: "
                "use zero-shot, or other examples"
            )

    @property
    def name(self) -> str:
        return f"{'few' if self.shots else 'zero'}-shot{' chain of thought' if self.chain else ''}"

    @property
    def answer_start(self) -> str:
        """The end of the prompt that begins the answer."""
        return CHAIN_CUE if self.chain else self.cue

    @property
    def after_answer(self) -> str:
        """The text that follows the answer of an example; without examples and without `end` there is none."""
        # In a chat, the end of the turn follows. The start of the next question decides how newlines are tokenised.
        return self.end if self.chat or not (self.shots or self.end) else self.end + BETWEEN + self.question

    def fill(self, text: str) -> str:
        """The question with the text in it."""
        return self.question.replace("{text}", text)

    def solution(self, shot: Shot) -> str:
        """The answer of a solved example, after its chain of thought if the template has chains."""
        before = f"{CHAIN_CUE} {shot.chain}{self.conclusion}" if self.chain else self.cue
        return before + shot.answer + self.end

    def render(self, text: str) -> str:
        """The prompt as plain text; examples are separated by an empty line."""
        shown = [self.fill(shot.text) + self.solution(shot) for shot in self.shots]
        first = [self.instruction] if self.instruction else []
        return BETWEEN.join([*first, *shown, self.fill(text) + self.answer_start])

    def messages(self, text: str) -> list[dict[str, str]]:
        """The prompt as chat messages, without `answer_start`, which follows the generation prompt."""
        found = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for shot in self.shots:
            found.append({"role": "user", "content": self.fill(shot.text)})
            found.append({"role": "assistant", "content": self.solution(shot).lstrip()})
        return [*found, {"role": "user", "content": self.fill(text)}]

    def preview(self, text: str = "{text}", tokenizer: Tokenizer | None = None) -> str:
        """The prompt for display; a chat is rendered by the chat template of the tokenizer, if one is given."""
        if not self.chat or tokenizer is None:
            return self.render(text)
        return tokenizer.render_chat(self.messages(text)) + self.answer_start.lstrip()

    def conclude(self, answer: str) -> str:
        """The generated text after `answer_start` up to and including the conclusion, which is appended if missing."""
        return answer.removeprefix(self.answer_start).split(self.conclusion)[0].rstrip() + self.conclusion

    def encode(self, tokenizer: Tokenizer, text: str, generated: str = "") -> list[int]:
        """The ids of the prompt and of the text generated so far: as `Tokenizer.prompt`, or as a chat."""
        if self.chat:
            return tokenizer.chat(self.messages(text)) + tokenizer.encode((self.answer_start + generated).lstrip())
        return tokenizer.prompt(self.render(text) + generated)

    def answers(self, tokenizer: Tokenizer, texts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """The ids of the answers, which exclude one another (`encode_answers`): the same in training and scoring.

        An answer at the start of a chat turn has no space before it. Raises InputError if an answer would share a token
        with the end of the prompt of one of these texts, and as `encode_answers`.
        """
        if self.chat and not (self.answer_start or self.chain):
            return encode_answers(tokenizer, [answer.lstrip() for answer in answers], self.after_answer)
        for text in texts:
            before_cue = self.answer_start if self.chat else self.fill(text) + self.answer_start
            refuse_merging(tokenizer, self.conclusion if self.chain else before_cue, answers)
        return encode_answers(tokenizer, answers, self.after_answer)


class Question(NamedTuple):
    """A template, a text for it, and the answer generated so far."""

    template: Template
    text: str
    generated: str = ""

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        return self.template.encode(tokenizer, self.text, self.generated)


def task_template(
    task: Task, shots: Sequence[LabelledText] = (), *, chain: bool = False, chat: bool = False
) -> Template:  # fmt: skip
    """The template of a task, with some of its rows as examples."""
    shown = tuple(Shot(row.text, task.answers[row.label], row.chain) for row in shots)
    question, conclusion = task.prompt.removesuffix(task.cue), task.cue or CONCLUSION
    return Template(question, task.cue, task.end, conclusion, shots=shown, chain=chain, chat=chat)
