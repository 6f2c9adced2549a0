"""`minillm prompt --example NAME`: the lecture's four examples of prompts, asked of a real small model.

What comes out is shown as it comes, right or wrong: a model of this size is often wrong, and that is the lesson.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from minillm.data.extraction import NUMBER, AnswerForm, Reading, same_answer
from minillm.data.templates import Question, Shot, Template
from minillm.errors import InputError
from minillm.lab.asking import BRIEF, Asked, Manner, ask
from minillm.lab.world import Bench
from minillm.prompting.answering import Speech, concluded
from minillm.prompting.prompt_cache import Reader

CHAIN = Speech(max_new_tokens=128, stop=("\n\n", "\nQ:"))


@dataclass(frozen=True)
class Example:
    """A text, the ways in which it is asked, and what a person would answer: a label, or a number said freely."""

    about: str
    text: str
    expected: str
    ways: tuple[Template, ...]
    labels: tuple[str, ...] | None = None


FUNNY = Template("Text: {text}\nFunny, not funny or slightly funny? This text is")
JOKES = (
    Shot("The bus to the station leaves at ten past eight.", " not funny"),
    Shot("My cat has opened a bank account, and I am the one who pays the fees.", " funny"),
    Shot("He looked for his glasses for an hour, and he had them on.", " slightly funny"),
)
COLOUR = Template("Thing: {text}\nColour:")
THINGS = (Shot("a ripe strawberry", " red"), Shot("a leaf of spinach", " green"))
NUMBERS = Template("Q: {text}\nA:", cue=" The answer (arabic numerals) is", end=".")
KOJIMA = replace(NUMBERS, chain=True, conclusion=" Therefore, the answer (arabic numerals) is")
COUNTED = (
    Shot(
        "Omar has 9 jars of honey. He sells 4 of them and fills 2 crates with 3 jars each. "
        "How many jars does Omar have now?",
        " 11",
        "Omar has 9 jars and sells 4, so 9 - 4 = 5 are left. 2 crates of 3 jars are 2 * 3 = 6 jars. 5 + 6 = 11.",
    ),
    Shot(
        "A shelf holds 12 cans. Mia takes half of them, and puts 1 back. How many cans are on the shelf?",
        " 7",
        "Half of 12 cans are 6, so 12 - 6 = 6 cans stay. One comes back, and 6 + 1 = 7.",
    ),
)

EXAMPLES = {
    "funny": Example(
        "labels of a joke, asked for without and with examples (Brown et al. 2020)",
        "I told my computer that I needed a break, and it went to sleep.",
        "funny",
        (FUNNY, replace(FUNNY, shots=JOKES)),
        (" funny", " not funny", " slightly funny"),
    ),
    "juggler": Example(
        "Kojima et al. 2022, figure 1: the answer at once, and step by step in two stages",
        "A juggler can juggle 16 balls. Half of the balls are golf balls, and half of the golf balls are blue. "
        "How many blue golf balls are there?",
        "4",
        (NUMBERS, KOJIMA),
    ),
    "colour": Example(
        "red or green? The examples tell the task, no instruction does",
        "a fire engine",
        "red",
        (COLOUR, replace(COLOUR, shots=THINGS)),
        (" red", " green"),
    ),
    "cans": Example(
        "Susan's cans: examples with the answer alone, and with the chain that leads to it (Wei et al. 2022)",
        "Susan has 7 cans of soup. She buys 3 boxes with 4 cans in each, and gives 5 cans to her neighbour. "
        "How many cans does Susan have now?",
        "14",
        (replace(NUMBERS, shots=COUNTED), replace(KOJIMA, shots=COUNTED)),
    ),
}


@dataclass(frozen=True)
class Said:
    """A way in which an example was asked, and the answer: read freely, or by what each label got."""

    example: Example
    question: Question
    text: str
    reading: Reading
    asked: Asked | None

    @property
    def answer(self) -> str | None:
        return self.reading.strict or self.reading.flexible

    @property
    def right(self) -> bool:
        return same_answer(self.answer, self.example.expected)

    def described(self) -> dict[str, Any]:
        return {
            "way": self.question.template.name,
            "prompt": self.question.template.preview(self.question.text),
            "said": self.text,
            **self.reading._asdict(),
            "expected": self.example.expected,
            "right": self.right,
        }


def example(name: str) -> Example:
    """Raises InputError for a name that there is not, naming those that there are."""
    if name not in EXAMPLES:
        raise InputError(f"there is no example {name!r}; there are: {', '.join(EXAMPLES)}")
    return EXAMPLES[name]


def shown(bench: Bench, one: Example, manner: Manner, *, chat: bool = False) -> Iterator[Said]:
    """The example in each of its ways."""
    for template in one.ways:
        question = Question(replace(template, chat=chat), one.text)
        if one.labels is not None:
            asked = ask(bench, [question], one.labels, manner)
            best = one.labels[int(asked.preferences.scores[0].argmax())]
            yield Said(one, question, best, Reading(best.strip(), best.strip()), asked)
        else:
            speech = replace(CHAIN if template.chain else BRIEF, seed=manner.seed)
            text = concluded(Reader(bench.decoder), bench.tokenizer, [question], speech)[0]
            form = AnswerForm(NUMBER, (template.conclusion if template.chain else template.cue).strip())
            yield Said(one, question, text, form.read(text), None)
