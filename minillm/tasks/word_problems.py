"""The task `word_problems`: a number of things, a share of them, a share of those, and how many are left?

Generated in the manner of the juggler with 16 balls (Kojima et al. 2022, figure 1), in surface forms of our own. Every
problem comes with the chain of thought that solves it, a sentence a step, and a program reads such a chain and names
each step that is wrong: so a right answer for a wrong reason can be counted.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import NamedTuple

from minillm.errors import InputError

SHARES = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}
"""A share in words, by what one divides by."""

LARGEST, FEWEST_ANSWERS = 480, 6
"""No problem begins with more things, and whatever its shares are, so many answers are possible at least."""

STEPS = (2, 3, 4)
CUE, ANSWER_CUE, BETWEEN = "Let's think step by step.", "The answer is", "\n\n"
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


class Step(NamedTuple):
    """One sentence of a chain: a share of so many is so many."""

    divisor: int
    before: int
    after: int

    def __str__(self) -> str:
        return f"{_capital(SHARES[self.divisor])} of {self.before} is {self.after}."


@dataclass(frozen=True)
class Problem:
    """A problem by what determines it: the form and its words, the number to begin with, and the divisors in turn."""

    form: str
    name: str
    count: int
    divisors: tuple[int, ...]
    kinds: tuple[str, ...]

    @property
    def text(self) -> str:
        form = FORMS[self.form]
        groups = [form.things, *(f"{kind} {form.things}" for kind in self.kinds)]
        words = {"name": self.name, "count": self.count, "things": form.things}
        sentences = [form.opening.format(**words)]
        for divisor, kind, group in zip(self.divisors, self.kinds, groups, strict=False):
            share = SHARES[divisor]
            sentences.append(form.step.format(share=share, Share=_capital(share), group=group, kind=kind))
        return " ".join([*sentences, form.question.format(group=groups[-1], **words)])

    @property
    def steps(self) -> list[Step]:
        """The chain that solves it."""
        found, before = [], self.count
        for divisor in self.divisors:
            found.append(Step(divisor, before, before // divisor))
            before //= divisor
        return found

    @property
    def answer(self) -> int:
        return self.steps[-1].after

    @property
    def question(self) -> str:
        """What stands before either answer."""
        return f"Question: {self.text}\nAnswer:"

    @property
    def direct(self) -> str:
        """The answer at once."""
        return f" {ANSWER_CUE} {self.answer}."

    @property
    def chain(self) -> str:
        """The answer step by step."""
        return " ".join([f" {CUE}", *map(str, self.steps), f"{ANSWER_CUE} {self.answer}."])


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
        divisors = _divisors(order, order.choice(steps))
        product = prod(divisors)
        kinds = order.sample(FORMS[form].kinds, len(divisors))
        count = product * order.randint(1, LARGEST // product)
        yield Problem(form, order.choice(NAMES), count, divisors, tuple(kinds))


def _divisors(order: random.Random, steps: int) -> tuple[int, ...]:
    while True:
        divisors = tuple(order.choice(tuple(SHARES)) for _ in range(steps))
        if prod(divisors) * FEWEST_ANSWERS <= LARGEST:
            return divisors


def documents(found: Iterator[Problem], count: int, seed: int) -> list[str]:
    """Texts to train on: each problem with its answer, at once or step by step by the toss of a coin, and a blank line.

    One after another they are examples for each other, as in a prompt with shots.
    """
    coin = random.Random(seed)
    return [p.question + (p.direct if coin.random() < 0.5 else p.chain) + BETWEEN for p in islice(found, count)]


_SENTENCE = re.compile(rf"({'|'.join(map(_capital, SHARES.values()))}) of (\d+) is (\d+)\.")
_ANSWER = re.compile(rf"{ANSWER_CUE} (\d+)\.")


def read_chain(text: str) -> list[Step]:
    """The steps that a text takes, right or wrong, in its order."""
    divisor_of = {_capital(words): divisor for divisor, words in SHARES.items()}
    return [Step(divisor_of[share], int(before), int(after)) for share, before, after in _SENTENCE.findall(text)]


def read_answer(text: str) -> int | None:
    """The number that a text gives as its answer in so many words; None where it gives none."""
    found = _ANSWER.search(text)
    return int(found[1]) if found else None


def faults(problem: Problem, text: str) -> list[str]:
    """What is wrong with a chain of thought for a problem, a sentence a fault; nothing if every step is right.

    A step must take the share that the problem names, of what the step before has left, and compute it right; there
    are as many steps as the problem has, and the answer is what the last one leaves.
    """
    steps, found = read_chain(text), []
    left = problem.count
    for number, (step, divisor) in enumerate(zip(steps, problem.divisors, strict=False), 1):
        if step.divisor != divisor:
            found.append(f"step {number} takes {SHARES[step.divisor]}, and the problem {SHARES[divisor]}")
        if step.before != left:
            found.append(f"step {number} begins with {step.before}, and there are {left}")
        if step.after * step.divisor != step.before:
            found.append(f"step {number} is miscalculated: {step}")
        left = step.after
    if len(steps) != len(problem.divisors):
        found.append(f"there are {len(steps)} steps, and the problem has {len(problem.divisors)}")
    if read_answer(text) != left:
        found.append(f"the answer is {read_answer(text)}, and the last step leaves {left}")
    return found
