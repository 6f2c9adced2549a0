"""`minillm lab juggler`: does a chain of thought help a tiny decoder?

It was trained on generated word problems (like Kojima's juggler); half of the answers, at random, follow a chain of
thought. It is evaluated on the same unseen problems with five prompts: zero-shot, zero-shot chain of thought, few-shot,
few-shot chain of thought (Wei et al. 2022), and self-consistency, the majority of several sampled chains (Wang et al.
2022). A program checks every step of every chain. Problems of two, three and four steps have numbers of equal size.
"""

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from minillm import hub
from minillm.data import word_problems
from minillm.data.extraction import Reading, answer_shares, same_answer
from minillm.data.templates import Question, Template
from minillm.data.word_problems import AT_ONCE, FORM, PRETRAINED_FORMS, PRETRAINED_STEPS, Problem, faults, problems
from minillm.errors import InputError, check_at_least, check_temperature
from minillm.lab.experiment import versions
from minillm.lab.pictures import WIDTH, PictureOptions, dots, draw
from minillm.lab.pretrain import Pretrain, describe, drawn_problems, pretrain
from minillm.lab.report import aligned, standard_error
from minillm.lab.statistics import compare_all
from minillm.lab.study import Table
from minillm.prompting.answering import GenerationSettings, generated_answers, self_consistent
from minillm.prompting.prompt_cache import PromptCache
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.options import NO_SETTINGS, Directory
from minillm.runtime.progress import note, progress
from minillm.runtime.reading import read_json
from minillm.tokenizer import Tokenizer
from minillm.training.checkpoints import check_settings
from minillm.training.pretraining import PretrainingRecipe

Numbers = tuple[int, tuple[str, ...]]
Trial = dict[str, Any]

RESULTS = "juggler.json"
GENERATION = GenerationSettings(max_new_tokens=64, stop=("\n",))
"""Longer than any chain. An answer is one line."""
SHOT_STEPS = 2
"""The number of steps of the few-shot examples: small, so that they fit into the context."""


@dataclass(kw_only=True)
class Juggler(PictureOptions):
    """Compare direct answers to word problems with chains of thought: a table, juggler.json and a picture.

    The base tiny, which comes with the package, is asked, or with --train a model that is trained first. Nothing is
    downloaded. An interrupted run continues where it was.

    Example: minillm lab juggler
    """

    train: bool = False
    """Train a model first, in the way in which tiny was trained."""
    preset: Literal["nano", "tiny", "small"] = "tiny"
    """The size of a model to train, with --train."""
    steps: int | None = None
    """The number of training steps, with --train; depends on the preset if not given."""
    problems: int = 300
    """The number of test problems for each number of reasoning steps."""
    shots: int = 2
    """The number of examples in a few-shot prompt."""
    samples: int = 5
    """The number of sampled chains of thought for self-consistency."""
    temperature: float = 0.7
    """The sampling temperature for self-consistency."""
    out: Directory = Path("juggler")
    """The directory of the model and of juggler.json."""
    overwrite: bool = False
    """Begin again, and replace the results of another run."""

    def __post_init__(self):
        super().__post_init__()
        if not self.train and (self.preset, self.steps) != ("tiny", None):
            raise InputError("--preset and --steps are for a model that is trained; give --train too")
        check_at_least(2, problems=self.problems)
        check_at_least(1, samples=self.samples, shots=self.shots)
        check_temperature(self.temperature, vote=True)

    def run(self) -> None:
        keep_freed_memory()
        use_threads(self.threads)
        found = juggle(self, on_measured=lambda measured: note(describe(measured)))
        files = draw(juggler_picture, found, self.out / "juggler", self.format)
        lines = [table(found), "", *(f"saved: {path}" for path in (*files, self.out / RESULTS))]
        self.show("\n".join(lines), found)

    def described(self) -> dict[str, Any]:
        """The options that determine the results."""
        how = ("device", "threads", "out", *NO_SETTINGS)
        return {name: value for name, value in asdict(self).items() if name not in how}


class Strategy(NamedTuple):
    """A way to prompt: with or without a chain of thought, examples, and a majority vote of sampled answers."""

    name: str
    chain: bool
    shots: bool = False
    vote: bool = False


DIRECT, STEP_BY_STEP = Strategy("zero-shot", chain=False), Strategy("zero-shot chain of thought", chain=True)
STRATEGIES = (
    DIRECT,
    STEP_BY_STEP,
    Strategy("few-shot", chain=False, shots=True),
    Strategy("few-shot chain of thought", chain=True, shots=True),
    Strategy("self-consistency", chain=True, vote=True),
)


class Graded(NamedTuple):
    """The answer in a generated text, and the expected one; `sound` if every step of the chain is right."""

    reading: Reading
    expected: str
    sound: bool

    @property
    def strict(self) -> bool:
        return same_answer(self.reading.strict, self.expected)


def template(strategy: Strategy, shots: Sequence[Problem]) -> Template:
    """Strategies differ only in the prompt."""
    return replace(AT_ONCE, chain=strategy.chain, shots=tuple(shot.shot for shot in shots if strategy.shots))


def grade(problem: Problem, text: str, chain: bool) -> Graded:
    return Graded(FORM.read(text), str(problem.answer), not chain or not faults(problem, text))


def solve(
    cache: PromptCache, tokenizer: Tokenizer, options: Juggler, asked: Sequence[Problem], strategy: Strategy
) -> list[Graded]:
    """The model's graded answers to some problems."""
    shots = list(islice(_drawn(options, (SHOT_STEPS,), "shots"), options.shots))
    questions = [Question(template(strategy, shots), problem.text) for problem in asked]
    answer = partial(generated_answers, cache, tokenizer, questions)
    sampling = replace(GENERATION, temperature=options.temperature, seed=options.seed)
    texts = self_consistent(answer, sampling, options.samples, FORM) if strategy.vote else answer(GENERATION)
    return [grade(problem, text, strategy.chain) for problem, text in zip(asked, texts, strict=True)]


def _drawn(options: Juggler, steps: tuple[int, ...], what: str) -> Iterator[Problem]:
    """Problems of a seed that is not used in training."""
    seed = {"shots": 1, "asked": 2}[what] + 10 * (options.seed + 1) + 1_000_000_007
    return problems(seed, forms=PRETRAINED_FORMS, steps=steps)


def unseen(options: Juggler, steps: int, known: Collection[Numbers]) -> list[Problem]:
    """Distinct test problems, equally many of each of `word_problems.SIZES`, whose numbers do not occur together in the
    training data, so none can be memorised. Raises InputError if there are too few."""
    each = math.ceil(options.problems / len(word_problems.SIZES))
    found = [(*size, dict[str, Problem]()) for size in word_problems.SIZES]
    for problem in islice(_drawn(options, (steps,), "asked"), 1_000_000):
        for starts, answers, texts in found:
            if problem.count in starts and problem.answer in answers and problem.numbers not in known:
                texts[problem.text] = problem
        if min(len(texts) for _, _, texts in found) >= each:
            rows = zip(*(texts.values() for _, _, texts in found), strict=False)
            return [problem for row in rows for problem in row][: options.problems]
    raise InputError(f"too few problems of {steps} steps are new to the model; give fewer --problems or --steps")


def ask(
    solve: Callable[[list[Problem], Strategy], list[Graded]], questions: Mapping[int, list[Problem]],
    trials: Sequence[Trial] = (),
) -> Iterator[list[Trial]]:  # fmt: skip
    """Evaluate all strategies on the problems of each number of steps, after the `trials` of an earlier run; yield the
    trials so far."""
    plan, trials = [(steps, strategy) for steps in questions for strategy in STRATEGIES], list(trials)
    with progress(total=len(plan), initial=len(trials), desc="evaluating", unit="prompt") as bar:
        for steps, strategy in plan[len(trials) :]:
            start = time.perf_counter()
            measured = shares(solve(questions[steps], strategy)) | {"guess": guess(questions[steps])}
            settings = {"way": strategy.name, "steps": steps}
            trials.append({"settings": settings, "measured": measured, "seconds": time.perf_counter() - start})
            bar.update()
            yield trials
    yield trials


def shares(answers: Sequence[Graded]) -> dict[str, Any]:
    """Accuracies, the share of right answers with a wrong chain, and which answers are right."""
    found = answer_shares([answer.reading for answer in answers], [answer.expected for answer in answers])
    right = [answer for answer in answers if answer.strict]
    return {
        **found,
        "standard_error": standard_error(found["strict"], len(answers)),
        "right_for_wrong_reason": statistics.fmean(not answer.sound for answer in right) if right else 0.0,
        "right": [int(answer.strict) for answer in answers],
    }


def paired(direct: Sequence[int], chained: Sequence[int]) -> dict[str, float]:
    """The mean paired difference of right answers (1), with its 95 % bootstrap interval."""
    (found,) = compare_all({"chained": np.array([chained]) > 0, "direct": np.array([direct]) > 0})
    return {"mean": found["difference"], "low": found["low"], "high": found["high"]}


def guess(asked: Sequence[Problem]) -> float:
    """The accuracy of the majority baseline: always the most common answer."""
    return Counter(problem.answer for problem in asked).most_common(1)[0][1] / len(asked)


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """The results by strategy and number of steps, the effects of the chain, the table and the conclusions."""
    ways = [trial["settings"] | trial["measured"] for trial in trials]
    right = {(way["way"], way["steps"]): way.pop("right") for way in ways}
    effects = [
        {"steps": n, **paired(right[DIRECT.name, n], right[STEP_BY_STEP.name, n]), "guess": guess}
        for n, guess in {way["steps"]: way.pop("guess") for way in ways}.items()
    ]
    columns = ("strict accuracy", *(f"{effect['steps']} steps" for effect in effects))
    tables, conclusions = [Table("The juggler", columns, _rows(ways))._asdict()], list(map(_conclusion, effects))
    return {"ways": ways, "chain_less_direct": effects, "tables": tables, "conclusions": conclusions}


def _rows(ways: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Two lines per strategy, with a column per number of steps."""
    rows: dict[str, list[str]] = {}
    for way in ways:
        accuracy = f"{way['strict']:.3f} ± {way['standard_error']:.3f}"
        rows.setdefault(way["way"], [way["way"]]).append(accuracy)
        three = "/".join(f"{way[name]:.2f}" for name in ("flexible", "unparsed", "right_for_wrong_reason"))
        rows.setdefault(f"{way['way']} ", ["  flexible/unparsed/unsound"]).append(three)
    return list(rows.values())


def _conclusion(effect: Mapping[str, float | int]) -> str:
    verdict = "it helps" if effect["low"] > 0 else "it harms" if effect["high"] < 0 else "within the noise"
    return (
        f"{effect['steps']} steps: effect of the chain {100 * effect['mean']:+.1f} points (95 % CI "
        f"{100 * effect['low']:+.1f} to {100 * effect['high']:+.1f}): {verdict}; "
        f"majority baseline {100 * effect['guess']:.1f} %"
    )


def juggle(
    options: Juggler, on_measured: Callable[[Mapping[str, Any]], None] = lambda measured: None
) -> dict[str, Any]:  # fmt: skip
    """Train if asked to, evaluate, and write `juggler.json` after each prompt. Raises the errors of `pretrain`."""
    described = json.loads(json.dumps({"experiment": "juggler", **options.described(), "forms": PRETRAINED_FORMS}))
    resumed = (options.out / RESULTS).exists() and not options.overwrite
    earlier = read_json(options.out / RESULTS) if resumed else {**described, "trials": []}
    check_settings(options.out, earlier, described)
    pretraining = Pretrain(
        task="word_problems", preset=options.preset, steps=options.steps, seed=options.seed if options.train else 0,
        device=options.device, out=options.out / "model", overwrite=options.overwrite,
    )  # fmt: skip
    recipe = PretrainingRecipe.from_preset(options.preset, options.steps)
    known = {problem.numbers for problem in drawn_problems(pretraining, recipe)}
    questions = {steps: unseen(options, steps, known) for steps in PRETRAINED_STEPS}
    if options.train:
        run = pretrain(pretraining, on_measured)
        decoder, tokenizer = run.decoder, run.rows.tokenizer
        described |= {"training_steps": run.loop.done, "tokens_read": run.loop.history.tokens}
    else:
        decoder, tokenizer = hub.load("tiny")
        assert tokenizer is not None
        decoder.to(pick_device(options.device))
    parameters, found = sum(parameter.numel() for parameter in decoder.parameters()), dict[str, Any]()
    described |= {"parameters": parameters, "versions": versions(), "command": options.command_line}
    for trials in ask(partial(solve, PromptCache(decoder), tokenizer, options), questions, earlier["trials"]):
        found = {**described, "trials": trials, **summary(trials[: len(trials) - len(trials) % len(STRATEGIES)])}
        options.save(options.out, RESULTS, json.dumps(found, indent=2))
    return found


def table(found: Mapping[str, Any]) -> str:
    """Accuracy by strategy and number of steps, and the effect of the chain."""
    columns, rows = (found["tables"][0][name] for name in ("columns", "rows"))
    unsound = "unsound: the share of right answers whose chain of thought has a wrong step"
    return "\n".join([aligned([columns, *rows], least=columns[:1:-1]), unsound, *found["conclusions"]])


def juggler_picture(pyplot: Any, found: Mapping[str, Any]) -> Any:
    """A panel per number of steps, and a line per prompt: accuracy with its standard error."""
    effects = found["chain_less_direct"]
    figure, panels = pyplot.subplots(1, len(effects), figsize=(WIDTH, 3.6), sharex=True, sharey=True)
    for axes, effect in zip(panels, effects, strict=True):
        ways = [way for way in found["ways"] if way["steps"] == effect["steps"]]
        dots(axes, [(way["way"], way["strict"], way["standard_error"]) for way in reversed(ways)], effect["guess"])
        axes.set_title(f"{effect['steps']} steps")
        axes.locator_params(axis="x", nbins=3)
    figure.supxlabel("accuracy (± standard error); dashed: the majority baseline")
    return figure
