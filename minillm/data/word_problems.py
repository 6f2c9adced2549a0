"""The task `word_problems`: a number of things, a share of them, a share of those, and how many are left?

Generated in the manner of the juggler with 16 balls (Kojima et al. 2022, figure 1), in surface forms of our own. Every
problem comes with the chain of thought that solves it, a sentence a step, and a program reads such a chain and names
each step that is wrong: so a right answer for a wrong reason can be counted.

A share is a fraction or "all but 5". With fractions alone the answer is one product, which two layers add up in their
logarithms at once (measured: 99 % of three steps without a chain); to take some away in between needs one step after
the other.
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
"""Numerator and denominator of a fraction."""

ALL_BUT, FEW = "all but ", range(2, 7)
PARTS = (*SHARES, *(f"{ALL_BUT}{number}" for number in FEW))
"""Every share that a problem can have."""

LARGEST, FEWEST = 150, 3
"""No problem begins with more things, and its shares alone leave so many numbers to begin with at least."""

STEPS = (1, 2, 3, 4)
ANSWER_CUE = " The answer is"
AT_ONCE = Template("Question: {text}\nAnswer:", cue=ANSWER_CUE, conclusion=ANSWER_CUE, end=".")
STEP_BY_STEP = replace(AT_ONCE, chain=True)
FORM = AnswerForm(r"\d+", ANSWER_CUE, end=".")
NAMES = ("Ada", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kim", "Lena")


class Form(NamedTuple):
    """A way to tell a problem: its sentences, what is counted, and what kinds of it there are."""

    opening: str
    step: str
    question: str
    things: str
    kinds: tuple[str, ...]


FORMS = {
    "juggler": Form(
        "A juggler can juggle {count} {things}.", "{Share} of the {group} are {kind}.", "How many {group} are there?",
        "balls", ("golf", "blue", "striped", "new", "rubber", "heavy"),
    ),
    "baker": Form(
        "{name} bakes {count} {things}.", "Of the {group}, {share} are {kind}.", "How many {group} are these?",
        "cakes", ("round", "sweet", "chocolate", "lemon", "iced", "small"),
    ),
    "shelf": Form(
        "There are {count} {things} on the shelf of {name}.", "{Share} of the {group} turn out to be {kind}.",
        "What is the number of {group}?", "books", ("old", "French", "thick", "illustrated", "borrowed", "green"),
    ),
    "garden": Form(
        "In the garden {name} grows {count} {things}.", "{Share} of the {group} in it are {kind}.",
        "How many {group} does {name} grow?", "flowers", ("red", "tall", "fragrant", "wild", "early", "rare"),
    ),
    "harbour": Form(
        "{count} {things} lie in the harbour.", "{Share} of these {group} are {kind}.", "How many {group} lie there?",
        "boats", ("white", "wooden", "fast", "foreign", "rented", "empty"),
    ),
    "school": Form(
        "{name} teaches {count} {things}.", "We know that {share} of the {group} are {kind}.",
        "How many {group} does {name} teach?", "pupils", ("musical", "quiet", "young", "athletic", "local", "curious"),
    ),
    "collector": Form(
        "{name} has collected {count} {things} so far.", "Among the {group}, {share} are {kind}.",
        "So how many {group} has {name}?", "coins", ("silver", "Roman", "worn", "square", "valuable", "shiny"),
    ),
    "orchard": Form(
        "The orchard of {name} has {count} {things} in all.", "And {share} of the {group} there are {kind}.",
        "How many {group} has the orchard?", "trees", ("apple", "dwarf", "flowering", "grafted", "leafy", "crooked"),
    ),
}  # fmt: skip

HELD_OUT_FORMS, HELD_OUT_STEPS = ("collector", "orchard"), (1,)
"""No decoder is pretrained on these: something new is left to adapt it to."""
PRETRAINED_FORMS = tuple(form for form in FORMS if form not in HELD_OUT_FORMS)
PRETRAINED_STEPS = tuple(steps for steps in STEPS if steps not in HELD_OUT_STEPS)

ANSWERS, DIFFERENT = (12, 18, 24, 30), 3000
"""Of the labelled task: its answers, which every share goes into, and how many problems there are."""


class Step(NamedTuple):
    """One sentence of a chain: this share of so many are of this kind, so many."""

    share: str
    before: int
    kind: str
    after: int

    def __str__(self) -> str:
        return f"{_capital(self.share)} of {self.before} are {self.kind}: {self.after}."

    @property
    def adds_up(self) -> bool:
        return part_of(self.before, self.share) == self.after


@dataclass(frozen=True)
class Problem:
    """A problem by what determines it: the form and its words, the number to begin with, and the shares in turn."""

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
        """The chain that solves it."""
        found, before = [], self.count
        for share, kind in zip(self.shares, self.kinds, strict=True):
            after = part_of(before, share)
            assert after is not None
            found.append(Step(share, before, kind, after))
            before = after
        return found

    @property
    def numbers(self) -> tuple[int, tuple[str, ...]]:
        """What is computed, whatever is counted."""
        return self.count, self.shares

    @property
    def answer(self) -> int:
        return self.steps[-1].after

    @property
    def question(self) -> str:
        """The prompt that either answer follows."""
        return AT_ONCE.fill(self.text)

    @property
    def direct(self) -> str:
        """The answer at once."""
        return AT_ONCE.solution(self.shot)

    @property
    def chain(self) -> str:
        """The answer step by step."""
        return STEP_BY_STEP.solution(self.shot)

    @property
    def shot(self) -> Shot:
        """The problem as an example in a prompt."""
        return Shot(self.text, f" {self.answer}", " ".join(map(str, self.steps)))


def part_of(count: int, share: str) -> int | None:
    """How many a share of so many is; None where that is no whole number of at least one."""
    if share.startswith(ALL_BUT):
        left = count - int(share.removeprefix(ALL_BUT))
        return left if left > 0 else None
    numerator, denominator = SHARES[share]
    return None if count < 1 or count % denominator else count * numerator // denominator


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def problems(seed: int, *, forms: Sequence[str] = tuple(FORMS), steps: Sequence[int] = STEPS) -> Iterator[Problem]:
    """Problems without end, the same ones for the same seed. Raises InputError for unknown forms or steps."""
    for name in forms:
        if name not in FORMS:
            raise InputError(f"there is no form {name!r} of word problem; there are: {', '.join(FORMS)}")
    if not forms or not steps or not set(steps) <= set(STEPS):
        raise InputError(f"word problems have {', '.join(map(str, STEPS))} steps and a form, not {steps} and {forms}")
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
    """What a problem can begin with: from the least on, in steps that every step of the problem divides."""
    products = accumulate((Fraction(*SHARES[share]) for share in shares if share in SHARES), mul, initial=Fraction(1))
    period = lcm(*(product.denominator for product in products))
    first = next((count for count in range(1, LARGEST + 1) if _divides(count, shares)), LARGEST + 1)
    return range(first, LARGEST + 1, period)


def _divides(count: int, shares: Sequence[str]) -> bool:
    left: int | None = count
    for share in shares:
        left = part_of(left, share)
        if left is None:
            return False
    return True


def exchanges(found: Iterable[Problem], seed: int) -> list[tuple[str, str]]:
    """Questions and answers to train on: at once or step by step by the toss of a coin, and then an empty line.

    One after another they are examples for each other, as in a prompt with shots.
    """
    coin = random.Random(seed)
    return [(p.question, (p.direct if coin.random() < 0.5 else p.chain) + BETWEEN) for p in found]


def word_problems_task(train: int, test: int) -> Task:
    """Problems of one step in forms that no decoder is pretrained on: which of four numbers is the answer?

    They are all different, and each answer is as likely as the others. Raises InputError where there are too few.
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
    """The steps that a text takes, right or wrong, in its order."""
    found = _SENTENCE.findall(text)
    return [Step(share.lower(), int(before), kind, int(after)) for share, before, kind, after in found]


def read_answer(text: str) -> int | None:
    """The number that a text gives strictly as its answer; None where it gives none."""
    found = FORM.read(text).strict
    return None if found is None else int(found)


def faults(problem: Problem, text: str) -> list[str]:
    """What is wrong with a chain of thought for a problem, a sentence a fault; nothing if every step is right.

    A step must take the share and the kind that the problem names, of what the step before has left, and compute it
    right; there are as many steps as the problem has, and the answer is what the last one leaves.
    """
    steps, found = read_chain(text), []
    left = problem.count
    for number, (step, right) in enumerate(zip(steps, problem.steps, strict=False), 1):
        if (step.share, step.kind) != (right.share, right.kind):
            found.append(f"step {number} has {step.share} {step.kind}, and the problem {right.share} {right.kind}")
        if step.before != left:
            found.append(f"step {number} begins with {step.before}, and there are {left}")
        if not step.adds_up:
            found.append(f"step {number} is miscalculated: {step}")
        left = step.after
    if len(steps) != len(problem.shares):
        found.append(f"there are {len(steps)} steps, and the problem has {len(problem.shares)}")
    if read_answer(text) != left:
        found.append(f"the answer is {read_answer(text)}, and the last step leaves {left}")
    return found
