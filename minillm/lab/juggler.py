"""`minillm lab juggler`: a tiny decoder, trained from nothing, is asked for answers at once and step by step.

One model learns word problems (Kojima's juggler, generated) whose answers stand there at once or after a chain of
thought, by the toss of a coin. Then the same weights are asked the same unseen problems in five ways, and only the
prompt differs: zero-shot, zero-shot with a chain, few-shot, few-shot with chains (Wei et al. 2022), and the majority of
several sampled chains (Wang et al. 2022). A program checks every step of every chain.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from minillm.data.extraction import Reading, answer_shares, same_answer
from minillm.data.templates import Question, Template
from minillm.data.word_problems import (
    AT_ONCE,
    FORM,
    PRETRAINED_FORMS,
    PRETRAINED_STEPS,
    Problem,
    faults,
    problems,
)
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.lab.pretrain import PretrainSettings, drawn_problems, pretrain
from minillm.lab.statistics import standard_error
from minillm.prompting.answering import Speech, self_consistent, spoken
from minillm.prompting.prompt_cache import Reader
from minillm.runtime.files import write_text
from minillm.runtime.progress import progress
from minillm.tokenizer import Tokenizer

Numbers = tuple[int, tuple[str, ...]]

SPEECH = Speech(max_new_tokens=64, stop=("\n",))
"""Longer than any chain; an answer is a line."""
SHOT_STEPS = 2
"""How many steps the problems have that are shown with their answers: short ones, so that the prompt has room."""


@dataclass(frozen=True)
class JugglerSettings:
    """What is trained and what is asked. `steps` are of training (default: the preset's); `problems` a step count."""

    preset: str = "tiny"
    steps: int | None = None
    problems: int = 300
    shots: int = 2
    samples: int = 5
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self):
        if self.problems < 2 or self.samples < 1 or self.shots < 1:
            raise InputError(
                f"problems ({self.problems}) must be 2 at least, samples ({self.samples}) and shots ({self.shots}) 1"
            )
        if self.temperature <= 0:
            raise InputError(f"the temperature is {self.temperature}; samples that vote need one above 0")


class Way(NamedTuple):
    """A way to ask: with a chain of thought or without, after examples or without, how many samples to vote."""

    name: str
    chain: bool
    shots: bool = False
    vote: bool = False


DIRECT, STEP_BY_STEP = Way("zero-shot", chain=False), Way("zero-shot chain of thought", chain=True)
WAYS = (
    DIRECT,
    STEP_BY_STEP,
    Way("few-shot", chain=False, shots=True),
    Way("few-shot chain of thought", chain=True, shots=True),
    Way("self-consistency", chain=True, vote=True),
)


class Marked(NamedTuple):
    """An answer, read; `sound` says that all the steps that led there are right."""

    reading: Reading
    expected: str
    sound: bool

    @property
    def strict(self) -> bool:
        return same_answer(self.reading.strict, self.expected)


def template(way: Way, shots: Sequence[Problem]) -> Template:
    """Only the prompt tells one way from another."""
    return replace(AT_ONCE, chain=way.chain, shots=tuple(shot.shot for shot in shots if way.shots))


def mark(problem: Problem, text: str, chain: bool) -> Marked:
    return Marked(FORM.read(text), str(problem.answer), not chain or not faults(problem, text))


class Student:
    """The model and its tokenizer, as one who answers in text."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer):
        self.reader, self.tokenizer = Reader(decoder), tokenizer

    def solve(self, asked: Sequence[Problem], way: Way, settings: JugglerSettings) -> list[Marked]:
        shots = list(islice(_drawn(settings, (SHOT_STEPS,), "shots"), settings.shots))
        questions = [Question(template(way, shots), problem.text) for problem in asked]
        speak = partial(spoken, self.reader, self.tokenizer, questions)
        freely = replace(SPEECH, temperature=settings.temperature, seed=settings.seed)
        texts = self_consistent(speak, freely, settings.samples, FORM) if way.vote else speak(SPEECH)
        return [mark(problem, text, way.chain) for problem, text in zip(asked, texts, strict=True)]


def _drawn(settings: JugglerSettings, steps: tuple[int, ...], what: str) -> Iterator[Problem]:
    """Problems of a seed that training does not draw from."""
    seed = {"shots": 1, "asked": 2, "guess": 3}[what] + 10 * (settings.seed + 1) + 1_000_000_007
    return problems(seed, forms=PRETRAINED_FORMS, steps=steps)


def unseen(settings: JugglerSettings, steps: int, known: Collection[Numbers]) -> list[Problem]:
    """Different problems to ask, whose numbers did not occur together where it was learned: none is remembered."""
    found: dict[str, Problem] = {}
    for problem in _drawn(settings, (steps,), "asked"):
        if problem.numbers not in known:
            found[problem.text] = problem
        if len(found) == settings.problems:
            break
    return list(found.values())


def ask(student: Student, settings: JugglerSettings, known: Collection[Numbers] = ()) -> dict[str, Any]:
    """All ways, for every number of steps, on problems that are not known, and what a chain changes, paired."""
    rows, differences = [], []
    with progress(total=len(PRETRAINED_STEPS) * len(WAYS), desc="asking", unit="way") as bar:
        for steps in PRETRAINED_STEPS:
            asked = unseen(settings, steps, known)
            marks = {}
            for way in WAYS:
                marks[way.name] = student.solve(asked, way, settings)
                rows.append({"way": way.name, "steps": steps, **shares(marks[way.name])})
                bar.update()
            difference = paired(marks[DIRECT.name], marks[STEP_BY_STEP.name])
            differences.append({"steps": steps, **difference, "guess": guess(asked, settings, steps)})
    return {"ways": rows, "chain_less_direct": differences}


def shares(marks: Sequence[Marked]) -> dict[str, float]:
    """Accuracies, and of the right answers the share whose reasons are wrong."""
    found = answer_shares([mark.reading for mark in marks], [mark.expected for mark in marks])
    right = [mark for mark in marks if mark.strict]
    return {
        **found,
        "standard_error": standard_error(found["strict"], len(marks)),
        "right_for_wrong_reason": _share(not mark.sound for mark in right) if right else 0.0,
    }


def _share(found: Iterator[bool]) -> float:
    values = list(found)
    return sum(values) / len(values)


def paired(direct: Sequence[Marked], chained: Sequence[Marked]) -> dict[str, float]:
    """The mean difference over the same problems, with its 95 % interval (normal; strict marks)."""
    each = [int(two.strict) - int(one.strict) for one, two in zip(direct, chained, strict=True)]
    mean = sum(each) / len(each)
    spread = math.sqrt(sum((one - mean) ** 2 for one in each) / (len(each) - 1) / len(each))
    return {"mean": mean, "low": mean - 1.96 * spread, "high": mean + 1.96 * spread}


def guess(asked: Sequence[Problem], settings: JugglerSettings, steps: int) -> float:
    """The accuracy of always giving the answer that is commonest for this number of steps."""
    common = Counter(problem.answer for problem in islice(_drawn(settings, (steps,), "guess"), 2000))
    return _share(problem.answer == common.most_common(1)[0][0] for problem in asked)


def juggle(
    settings: JugglerSettings, out: Path, *, device: str = "auto", fresh: bool = False,
    say: Callable[[Mapping[str, Any]], None] = lambda measured: None,
) -> dict[str, Any]:  # fmt: skip
    """Train (or go on training), ask, and write `juggler.json`. Raises what `pretrain` raises."""
    start = time.perf_counter()
    task = PretrainSettings(task="word_problems", preset=settings.preset, steps=settings.steps, seed=settings.seed)
    run = pretrain(task, out / "model", device=device, fresh=fresh, say=say)
    trained = time.perf_counter()
    known = {problem.numbers for problem in drawn_problems(task, run.recipe)}
    found = ask(Student(run.decoder, run.rows.tokenizer), settings, known)
    described = {
        **asdict(settings),
        "forms": PRETRAINED_FORMS,
        "parameters": sum(parameter.numel() for parameter in run.decoder.parameters()),
        "training_steps": run.done,
        "tokens_read": run.loop.history.tokens,
        "training_seconds": trained - start,
        "asking_seconds": time.perf_counter() - trained,
        **found,
    }
    write_text(out / "juggler.json", json.dumps(described, indent=2) + "\n")
    return described


def table(found: Mapping[str, Any]) -> str:
    """Accuracy by way and number of steps, and under it what the chain changes."""
    counts = sorted({row["steps"] for row in found["ways"]})
    lines = [f"{'strict accuracy':28}" + "".join(f"{steps:>9} steps" for steps in counts)]
    lines.append("-" * len(lines[0]))
    for way in WAYS:
        rows = [next(r for r in found["ways"] if (r["way"], r["steps"]) == (way.name, steps)) for steps in counts]
        lines.append(f"{way.name:28}" + "".join(f"{r['strict']:8.3f} ± {r['standard_error']:.3f}"[-15:] for r in rows))
        detail = "".join(f"{r['flexible']:6.2f}/{r['unparsed']:.2f}/{r['right_for_wrong_reason']:.2f}" for r in rows)
        lines.append(f"{'  flexible/unparsed/unsound':28}{detail}")
    lines.append("unsound: the share of right answers for a wrong reason, of those with a chain")
    for row in found["chain_less_direct"]:
        lines.append(
            f"{row['steps']} steps: a chain makes {100 * row['mean']:+.1f} points (95 %: {100 * row['low']:+.1f} to "
            f"{100 * row['high']:+.1f}); the commonest answer alone would have {100 * row['guess']:.1f} %"
        )
    return "\n".join(lines)
