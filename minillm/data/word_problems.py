"""The task `word_problems`: a number of things, a share of them, a share of those, and how many are there?

Problems are generated in the manner of the juggler with 16 balls (Kojima et al. 2022, figure 1), in eight surface
forms. Each comes with the chain of thought that solves it, one sentence per step. `faults` parses such a chain and
lists the wrong steps, so that a right answer with a wrong chain can be counted.

A share is a fraction or "all but 5". With fractions alone the answer is one product, which two layers compute without
a chain (measured: 99 % accuracy for three steps). "All but" makes the steps depend on their order.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import accumulate
from math import lcm
from operator import mul
from typing import NamedTuple

from minillm.data.extraction import AnswerForm
from minillm.data.tasks import LabelledText, Task, divide
from minillm.data.templates import BETWEEN, Shot, Template
from minillm.errors import InputError

SHARES = {
    "half": (1, 2), "a third": (1, 3), "two thirds": (2, 3), "a quarter": (1, 4), "three quarters": (3, 4),
    "a fifth": (1, 5), "two fifths": (2, 5),
}  # fmt: skip
"""Numerator and denominator of each fraction."""
ALL_BUT = "all but "
PARTS = (*SHARES, *(f"{ALL_BUT}{number}" for number in range(2, 7)))
"""Every share that occurs in a problem."""

LARGEST, FEWEST = 150, 3
"""The largest number of things at the start, and the fewest possible start numbers for the shares of a problem."""

STEPS = (1, 2, 3, 4)
ANSWER_CUE = " The answer is"
AT_ONCE = Template("Question: {text}\nAnswer:", cue=ANSWER_CUE, conclusion=ANSWER_CUE, end=".")
STEP_BY_STEP = replace(AT_ONCE, chain=True)
FORM = AnswerForm(r"\d+", ANSWER_CUE, end=".")
NAMES = ("Ada", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kim", "Lena")


class Form(NamedTuple):
    """A surface form: the sentences of a problem, the things that are counted, and their kinds."""

    opening: str
    step: str
    question: str
    things: str
    kinds: tuple[str, ...]


FORMS = {
    "juggler": Form(
        "A juggler can juggle {count} {things}.", "{Share} of the {group} are {kind}.", "How many {group} are there?",
        "balls", ("golf", "blue", "striped", "new", "rubber", "heavy")),
    "baker": Form(
        "{name} bakes {count} {things}.", "Of the {group}, {share} are {kind}.", "How many {group} are these?", "cakes",
        ("round", "sweet", "chocolate", "lemon", "iced", "small")),
    "shelf": Form(
        "There are {count} {things} on the shelf of {name}.", "{Share} of the {group} turn out to be {kind}.",
        "What is the number of {group}?", "books", ("old", "French", "thick", "illustrated", "borrowed", "green")),
    "garden": Form(
        "In the garden {name} grows {count} {things}.", "{Share} of the {group} in it are {kind}.",
        "How many {group} does {name} grow?", "flowers", ("red", "tall", "fragrant", "wild", "early", "rare")),
    "harbour": Form(
        "{count} {things} lie in the harbour.", "{Share} of these {group} are {kind}.", "How many {group} lie there?",
        "boats", ("white", "wooden", "fast", "foreign", "rented", "empty")),
    "school": Form(
        "{name} teaches {count} {things}.", "We know that {share} of the {group} are {kind}.",
        "How many {group} does {name} teach?", "pupils", ("musical", "quiet", "young", "athletic", "local", "curious")),
    "collector": Form(
        "{name} has collected {count} {things} so far.", "Among the {group}, {share} are {kind}.",
        "So how many {group} has {name}?", "coins", ("silver", "Roman", "worn", "square", "valuable", "shiny")),
    "orchard": Form(
        "The orchard of {name} has {count} {things} in all.", "And {share} of the {group} there are {kind}.",
        "How many {group} has the orchard?", "trees", ("apple", "dwarf", "flowering", "grafted", "leafy", "crooked")),
}  # fmt: skip

HELD_OUT_FORMS, HELD_OUT_STEPS = ("collector", "orchard"), (1,)
"""No decoder is pretrained on these forms and numbers of steps."""
PRETRAINED_FORMS = tuple(form for form in FORMS if form not in HELD_OUT_FORMS)
PRETRAINED_STEPS = tuple(steps for steps in STEPS if steps not in HELD_OUT_STEPS)

SIZES = (
    (range(1, 51), range(1, 11)), (range(1, 51), range(11, 31)), (range(51, 101), range(31, 61)),
    (range(51, 101), range(61, 101)), (range(101, 151), range(91, 151)),
)  # fmt: skip
"""Numbers at the start and answers: classes of problems that are compared across numbers of steps. Other sizes hardly
occur among problems of two steps that are not in the training data."""

ANSWERS, DIFFERENT = (12, 18, 24, 30), 3000
"""The classes of the labelled task, divisible for every fraction, and its number of problems."""


class Step(NamedTuple):
    """One sentence of a chain: this share of `before` things are of this kind, which leaves `after`."""

    share: str
    before: int
    kind: str
    after: int

    def __str__(self) -> str:
        return f"{_capital(self.share)} of {self.before} are {self.kind}: {self.after}."


@dataclass(frozen=True)
class Problem:
    """A problem: the form and the words in it, the number of things at the start, and the shares in order."""

    form: str
    name: str
    count: int
    shares: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def text(self) -> str:
        form = FORMS[self.form]
        groups = [form.things, *(f"{kind} {form.things}" for kind in self.kinds)]
        words = {"name": self.name, "count": self.count, "things": form.things}
        sentences = [form.opening.format(**words)]
        for share, kind, group in zip(self.shares, self.kinds, groups, strict=False):
            sentences.append(form.step.format(share=share, Share=_capital(share), group=group, kind=kind))
        return " ".join([*sentences, form.question.format(group=groups[-1], **words)])

    @property
    def steps(self) -> list[Step]:
        """The chain of thought that solves it."""
        found, before = [], self.count
        for share, kind in zip(self.shares, self.kinds, strict=True):
            after = part_of(before, share)
            assert after is not None
            found.append(Step(share, before, kind, after))
            before = after
        return found

    @property
    def numbers(self) -> tuple[int, tuple[str, ...]]:
        """The computation, without its words."""
        return self.count, self.shares

    @property
    def answer(self) -> int:
        return self.steps[-1].after

    @property
    def question(self) -> str:
        """The prompt, for both kinds of answer."""
        return AT_ONCE.fill(self.text)

    @property
    def direct(self) -> str:
        """The answer without a chain of thought."""
        return AT_ONCE.solution(self.shot)

    @property
    def chain(self) -> str:
        """The answer after a chain of thought."""
        return STEP_BY_STEP.solution(self.shot)

    @property
    def shot(self) -> Shot:
        """The problem as an example in a prompt."""
        return Shot(self.text, f" {self.answer}", " ".join(map(str, self.steps)))


def part_of(count: int, share: str) -> int | None:
    """This share of `count` things; None if that is not a positive integer."""
    if share.startswith(ALL_BUT):
        left, rest = count - int(share.removeprefix(ALL_BUT)), 0
    else:
        left, rest = divmod(count * SHARES[share][0], SHARES[share][1])
    return left if left > 0 and rest == 0 else None


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def problems(seed: int, *, forms: Sequence[str] = tuple(FORMS), steps: Sequence[int] = STEPS) -> Iterator[Problem]:
    """An endless, seeded stream of problems. Raises InputError for unknown forms or steps."""
    if not forms or not set(forms) <= FORMS.keys():
        raise InputError(f"the forms of word problems must be among {', '.join(FORMS)}, got {tuple(forms)}")
    if not steps or not set(steps) <= set(STEPS):
        raise InputError(f"the steps of word problems must be among {STEPS}, got {tuple(steps)}")
    return _problems(random.Random(seed), tuple(forms), tuple(steps))


def _problems(order: random.Random, forms: tuple[str, ...], steps: tuple[int, ...]) -> Iterator[Problem]:
    while True:
        form = order.choice(forms)
        shares = _shares(order, order.choice(steps))
        kinds = order.sample(FORMS[form].kinds, len(shares))
        yield Problem(form, order.choice(NAMES), order.choice(_counts(shares)), shares, tuple(kinds))


def _shares(order: random.Random, steps: int) -> tuple[str, ...]:
    while True:
        shares = tuple(order.choice(PARTS) for _ in range(steps))
        if len(_counts(shares)) >= FEWEST:
            return shares


@cache
def _counts(shares: tuple[str, ...]) -> range:
    """The possible numbers at the start: from the least on, at intervals that are divisible in every step."""
    products = accumulate((Fraction(*SHARES[share]) for share in shares if share in SHARES), mul, initial=Fraction(1))
    period = lcm(*(product.denominator for product in products))
    first = next((count for count in range(1, LARGEST + 1) if _divides(count, shares)), LARGEST + 1)
    return range(first, LARGEST + 1, period)


def _divides(count: int | None, shares: Sequence[str]) -> bool:
    for share in shares:
        count = part_of(count, share) if count is not None else None
    return count is not None


def exchanges(found: Iterable[Problem], seed: int) -> list[tuple[str, str]]:
    """Prompts and answers to train on: with probability 1/2 the answer has a chain of thought.

    Each answer ends with an empty line, so that concatenated exchanges look like a few-shot prompt.
    """
    coin = random.Random(seed)
    return [(p.question, (p.direct if coin.random() < 0.5 else p.chain) + BETWEEN) for p in found]


def word_problems_task(train: int, test: int) -> Task:
    """Problems of one step in the held-out forms: which of four numbers is the answer?

    All problems are different, and each class is equally likely. Raises InputError if there are too few.
    """
    order, rows = random.Random(0), dict[str, LabelledText]()
    while len(rows) < DIFFERENT:
        label, share = order.randrange(len(ANSWERS)), order.choice(tuple(SHARES))
        numerator, denominator = SHARES[share]
        form = order.choice(HELD_OUT_FORMS)
        count, kind = ANSWERS[label] * denominator // numerator, order.choice(FORMS[form].kinds)
        shot = Problem(form, order.choice(NAMES), count, (share,), (kind,)).shot
        rows[shot.text] = LabelledText(shot.text, label, shot.chain)
    answers = tuple(f" {answer}" for answer in ANSWERS)
    divided = divide(list(rows.values()), train, test)
    return Task("word_problems", AT_ONCE.question + ANSWER_CUE, answers, *divided, cue=ANSWER_CUE, end=AT_ONCE.end)


_SENTENCE = re.compile(rf"({'|'.join(map(_capital, SHARES))}|{_capital(ALL_BUT)}\d+) of (\d+) are (\w+): (\d+)\.")


def read_chain(text: str) -> list[Step]:
    """The steps in a text, right or wrong, in order."""
    found = _SENTENCE.findall(text)
    return [Step(share.lower(), int(before), kind, int(after)) for share, before, kind, after in found]


def read_answer(text: str) -> int | None:
    """The strict answer of a text as a number, or None."""
    found = FORM.read(text).strict
    return None if found is None else int(found)


def faults(problem: Problem, text: str) -> list[str]:
    """The mistakes in a chain of thought for a problem, a sentence each; empty if every step is right.

    A step must have the share and the kind of the problem, start from the result of the step before, and be calculated
    correctly. The number of steps and the answer must be right too.
    """
    steps, found = read_chain(text), []
    left = problem.count
    for number, (step, right) in enumerate(zip(steps, problem.steps, strict=False), 1):
        if (step.share, step.kind) != (right.share, right.kind):
            found.append(f"step {number} is about {step.share} {step.kind}, expected {right.share} {right.kind}")
        if step.before != left:
            found.append(f"step {number} starts from {step.before}, expected {left}")
        if part_of(step.before, step.share) != step.after:
            found.append(f"step {number} is miscalculated: {step}")
        left = step.after
    if len(steps) != len(problem.shares):
        found.append(f"there are {len(steps)} steps, expected {len(problem.shares)}")
    if read_answer(text) != left:
        found.append(f"the answer is {read_answer(text)}, expected {left} from the last step")
    return found
