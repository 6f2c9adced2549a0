"""From a text to a prompt, as a value: zero-shot, few-shot, and both with a chain of thought.

A zero-shot prompt asks. A few-shot prompt shows solved examples first (Brown et al. 2020). A chain of thought is asked
for by the words "Let's think step by step." (Kojima et al. 2022), and shown in the examples too where there are any
(Wei et al. 2022). The answer is then extracted in a second stage, by a conclusion behind the chain (Kojima et al.).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minillm.data.boundary import refuse_merging, refuse_trailing_space, start_token
from minillm.data.tasks import LabelledText, Task
from minillm.errors import InputError
from minillm.tokenizer import Tokenizer

CHAIN_CUE = " Let's think step by step."
CONCLUSION = " Therefore, the answer is"
BETWEEN = "\n\n"


class Shot(NamedTuple):
    """A solved example: its answer begins with its space; the chain of thought that leads to it, if it is known."""

    text: str
    answer: str
    chain: str | None = None


@dataclass(frozen=True)
class Template:
    """All of a prompt but the text, which goes where `question` has {text}.

    `cue` begins an answer that is given at once, `conclusion` one behind a chain; `end` ends an answer that is shown.
    In a chat the examples are turns, the instruction is the system message, and the assistant's turn is begun for it.
    Raises InputError where there is no {text}, for a space at the end, and for a chain that no example has.
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
            raise InputError(f"the prompt {self.question!r} has no {{text}}, where the text would go")
        refuse_trailing_space(self.question + self.answer_start)
        refuse_trailing_space(self.conclusion)
        if self.chain and any(shot.chain is None for shot in self.shots):
            raise InputError(
                "a few-shot chain of thought shows how each example is solved, and these examples have no chains; "
                "without examples the model writes its own"
            )

    @property
    def name(self) -> str:
        return f"{'few' if self.shots else 'zero'}-shot{' chain of thought' if self.chain else ''}"

    @property
    def answer_start(self) -> str:
        """The first words of the answer, with which the prompt ends."""
        return CHAIN_CUE if self.chain else self.cue

    def fill(self, text: str) -> str:
        """The question about a text."""
        return self.question.replace("{text}", text)

    def solution(self, shot: Shot) -> str:
        """The answer of a solved example, with its chain of thought if there is one."""
        before = f"{CHAIN_CUE} {shot.chain}{self.conclusion}" if self.chain else self.cue
        return before + shot.answer + self.end

    def render(self, text: str) -> str:
        """The plain prompt for a text; examples are separated by an empty line."""
        shown = [self.fill(shot.text) + self.solution(shot) for shot in self.shots]
        first = [self.instruction] if self.instruction else []
        return BETWEEN.join([*first, *shown, self.fill(text) + self.answer_start])

    def messages(self, text: str) -> list[dict[str, str]]:
        """The chat for a text, up to its question: what begins the answer follows the generation prompt."""
        found = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for shot in self.shots:
            found.append({"role": "user", "content": self.fill(shot.text)})
            found.append({"role": "assistant", "content": self.solution(shot).lstrip()})
        return [*found, {"role": "user", "content": self.fill(text)}]

    def preview(self, text: str = "{text}", tokenizer: Tokenizer | None = None) -> str:
        """The prompt to look at. A chat is written as the tokenizer's template writes it, or by roles without one."""
        if not self.chat:
            return self.render(text)
        messages = self.messages(text)
        if tokenizer is not None:
            return tokenizer.render_chat(messages) + self.answer_start.lstrip()
        turns = [f"{message['role']}: {message['content']}" for message in messages]
        return BETWEEN.join([*turns, f"assistant:{self.answer_start}"])

    def conclude(self, answer: str) -> str:
        """The generated text after `answer_start`, up to the conclusion, which is appended if it is missing."""
        return answer.removeprefix(self.answer_start).split(self.conclusion)[0].rstrip() + self.conclusion

    def encode(self, tokenizer: Tokenizer, text: str, generated: str = "") -> list[int]:
        """The ids of the prompt and of the text generated so far; bos in front where the model needs it."""
        if self.chat:
            return tokenizer.chat(self.messages(text)) + tokenizer.encode((self.answer_start + generated).lstrip())
        start = [tokenizer.bos] if tokenizer.starts_with_bos and tokenizer.bos is not None else []
        return start + tokenizer.encode(self.render(text) + generated) or [start_token(tokenizer)]

    def answers(self, tokenizer: Tokenizer, texts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """The answers' ids. In a chat, where an answer begins its turn, it begins without a space.

        Raises InputError where one would share a token with the end of one of these texts' prompts.
        """
        if self.chat and not (self.answer_start or self.chain):
            return [tokenizer.encode(answer.lstrip()) for answer in answers]
        for text in texts:
            before_cue = self.answer_start if self.chat else self.fill(text) + self.answer_start
            refuse_merging(tokenizer, self.conclusion if self.chain else before_cue, answers)
        return [tokenizer.encode(answer) for answer in answers]


class Question(NamedTuple):
    """A text in a template, and the answer that the model has generated so far."""

    template: Template
    text: str
    generated: str = ""

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        return self.template.encode(tokenizer, self.text, self.generated)


def task_template(
    task: Task, shots: Sequence[LabelledText] = (), *, chain: bool = False, chat: bool = False
) -> Template:  # fmt: skip
    """A task's prompt as a template, with some of its rows as examples."""
    shown = tuple(Shot(row.text, task.answers[row.label], row.chain) for row in shots)
    question, conclusion = task.prompt.removesuffix(task.cue), task.cue or CONCLUSION
    return Template(question, task.cue, task.end, conclusion, shots=shown, chain=chain, chat=chat)
