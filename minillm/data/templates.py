"""From a text to a prompt, as a value: zero-shot, few-shot, and both with a chain of thought.

A zero-shot prompt asks. A few-shot prompt shows solved examples first (Brown et al. 2020). A chain of thought is asked
for by the words "Let's think step by step." (Kojima et al. 2022), and shown in the examples too where there are any
(Wei et al. 2022). The answer is then drawn out in a second stage, by a conclusion behind the chain (Kojima et al.).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minillm.data.boundary import refuse_merging, refuse_trailing_blank, start_token
from minillm.data.tasks import LabelledText, Task
from minillm.errors import InputError
from minillm.tokenizer import Tokenizer

CHAIN_CUE = " Let's think step by step."
CONCLUSION = " Therefore, the answer is"
BETWEEN = "\n\n"


class Shot(NamedTuple):
    """A solved example: its answer begins with its blank; a chain of thought is what leads to it, if it is known."""

    text: str
    answer: str
    chain: str | None = None


@dataclass(frozen=True)
class Template:
    """All of a prompt but the text, which goes where `question` has {text}.

    `cue` begins an answer that is given at once, `conclusion` one behind a chain; `end` ends an answer that is shown.
    In a chat the examples are turns, the instruction is the system's, and the answer's beginning is put into the
    assistant's mouth. Raises InputError where there is no {text}, for a blank at the end, and for a chain that no
    example has.
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
        refuse_trailing_blank(self.question + self.begun)
        refuse_trailing_blank(self.conclusion)
        if self.chain and any(shot.chain is None for shot in self.shots):
            raise InputError(
                "a few-shot chain of thought shows how each example is solved, and these examples have no chains; "
                "without examples the model writes its own"
            )

    @property
    def name(self) -> str:
        return f"{'few' if self.shots else 'zero'}-shot{' chain of thought' if self.chain else ''}"

    @property
    def begun(self) -> str:
        """The first words of the answer, which the prompt ends with."""
        return CHAIN_CUE if self.chain else self.cue

    def asked(self, text: str) -> str:
        return self.question.replace("{text}", text)

    def solved(self, shot: Shot) -> str:
        """An example's answer as it is shown."""
        before = f"{CHAIN_CUE} {shot.chain}{self.conclusion}" if self.chain else self.cue
        return before + shot.answer + self.end

    def render(self, text: str) -> str:
        """The plain prompt for a text; a blank line parts an example from the next."""
        shown = [self.asked(shot.text) + self.solved(shot) for shot in self.shots]
        first = [self.instruction] if self.instruction else []
        return BETWEEN.join([*first, *shown, self.asked(text) + self.begun])

    def messages(self, text: str) -> list[dict[str, str]]:
        """The chat for a text, up to its question: what begins the answer follows the generation prompt."""
        found = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for shot in self.shots:
            found.append({"role": "user", "content": self.asked(shot.text)})
            found.append({"role": "assistant", "content": self.solved(shot).lstrip()})
        return [*found, {"role": "user", "content": self.asked(text)}]

    def preview(self, text: str = "{text}", tokenizer: Tokenizer | None = None) -> str:
        """The prompt to look at. A chat is written as the tokenizer's template writes it, or by roles without one."""
        if not self.chat:
            return self.render(text)
        messages = self.messages(text)
        if tokenizer is not None:
            return tokenizer.render_chat(messages) + self.begun.lstrip()
        turns = [f"{message['role']}: {message['content']}" for message in messages]
        return BETWEEN.join([*turns, f"assistant:{self.begun}"])

    def conclude(self, answer: str) -> str:
        """What was said after `begun`, up to the conclusion, which is put there if the model did not come to one."""
        return answer.removeprefix(self.begun).split(self.conclusion)[0].rstrip() + self.conclusion

    def encode(self, tokenizer: Tokenizer, text: str, said: str = "") -> list[int]:
        """The prompt's ids, and those of what the model has said already; bos in front where the model wants it."""
        if self.chat:
            return tokenizer.chat(self.messages(text)) + tokenizer.encode((self.begun + said).lstrip())
        start = [tokenizer.bos] if tokenizer.starts_with_bos and tokenizer.bos is not None else []
        return start + tokenizer.encode(self.render(text) + said) or [start_token(tokenizer)]

    def answers(self, tokenizer: Tokenizer, texts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """The answers' ids. In a chat, where nothing stands before them in their turn, they begin without a blank.

        Raises InputError where one would share a token with the end of one of these texts' prompts.
        """
        if self.chat and not (self.begun or self.chain):
            return [tokenizer.encode(answer.lstrip()) for answer in answers]
        for text in texts:
            end = self.conclusion if self.chain else (self.begun if self.chat else self.asked(text) + self.begun)
            refuse_merging(tokenizer, end, answers)
        return [tokenizer.encode(answer) for answer in answers]


class Question(NamedTuple):
    """A text, asked in a template's way, and what the model has said to it already."""

    template: Template
    text: str
    said: str = ""

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        return self.template.encode(tokenizer, self.text, self.said)


def task_template(
    task: Task, shots: Sequence[LabelledText] = (), *, chain: bool = False, chat: bool = False
) -> Template:  # fmt: skip
    """A task's own words as a template, with some of its rows as examples."""
    shown = tuple(Shot(row.text, task.answers[row.label], row.chain) for row in shots)
    question, conclusion = task.prompt.removesuffix(task.cue), task.cue or CONCLUSION
    return Template(question, task.cue, task.end, conclusion, shots=shown, chain=chain, chat=chat)
