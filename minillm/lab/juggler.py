"""`minillm lab juggler`: does a chain of thought help a tiny decoder that is trained from scratch?

The training data are generated word problems (like Kojima's juggler); half of the answers, at random, follow a chain of
thought. The trained model is then evaluated on the same unseen problems with five prompts: zero-shot, zero-shot chain
of thought, few-shot, few-shot chain of thought (Wei et al. 2022), and self-consistency, the majority of several sampled
chains (Wang et al. 2022). A program checks every step of every chain.
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

from minillm.data.extraction import Reading, answer_shares, same_answer
from minillm.data.templates import Question, Template
from minillm.data.word_problems import AT_ONCE, FORM, PRETRAINED_FORMS, PRETRAINED_STEPS, Problem, faults, problems
from minillm.errors import check_at_least, check_temperature
from minillm.lab.pretrain import Pretrain, describe, drawn_problems, pretrain
from minillm.lab.report import aligned, standard_error
from minillm.prompting.answering import GenerationSettings, generated_answers, self_consistent
from minillm.prompting.prompt_cache import PromptCache
from minillm.runtime.device import keep_freed_memory, use_threads
from minillm.runtime.options import NO_SETTINGS, Directory, RunOptions
from minillm.runtime.progress import note, progress
from minillm.runtime.reading import read_json
from minillm.tokenizer import Tokenizer
from minillm.training.checkpoints import check_settings

Numbers = tuple[int, tuple[str, ...]]

GENERATION = GenerationSettings(max_new_tokens=64, stop=("\n",))
"""Longer than any chain. An answer is one line."""
SHOT_STEPS = 2
"""The number of steps of the few-shot examples: small, so that they fit into the context."""


@dataclass(kw_only=True)
class Juggler(RunOptions):
    """Train a tiny model on word problems, and compare direct answers with chains of thought.

    Nothing is downloaded. An interrupted run resumes its training.

    Example: minillm lab juggler --preset nano
    """

    preset: Literal["nano", "tiny", "small"] = "tiny"
    """The size of the model."""
    steps: int | None = None
    """The number of training steps; depends on the preset if not given."""
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
    """Train again, and replace the results of another run."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(2, problems=self.problems)
        check_at_least(1, samples=self.samples, shots=self.shots)
        check_temperature(self.temperature, vote=True)

    def run(self) -> None:
        keep_freed_memory()
        use_threads(self.threads)
        found = juggle(self, on_measured=lambda measured: note(describe(measured)))
        seconds = f"training: {found['training_seconds']:.0f} s, evaluation: {found['asking_seconds']:.0f} s"
        self.show(f"{table(found)}\n{seconds}\nsaved: {self.out / 'juggler.json'}", found)

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
    seed = {"shots": 1, "asked": 2, "guess": 3}[what] + 10 * (options.seed + 1) + 1_000_000_007
    return problems(seed, forms=PRETRAINED_FORMS, steps=steps)


def unseen(options: Juggler, steps: int, known: Collection[Numbers]) -> list[Problem]:
    """Distinct test problems whose numbers do not occur together in the training data, so none can be memorised."""
    found: dict[str, Problem] = {}
    for problem in _drawn(options, (steps,), "asked"):
        if problem.numbers not in known:
            found[problem.text] = problem
        if len(found) == options.problems:
            break
    return list(found.values())


def ask(
    solve: Callable[[list[Problem], Strategy], list[Graded]], options: Juggler, known: Collection[Numbers] = ()
) -> dict[str, Any]:
    """Evaluate all strategies for each number of steps on unseen problems, with the paired effect of the chain."""
    rows, differences = [], []
    with progress(total=len(PRETRAINED_STEPS) * len(STRATEGIES), desc="evaluating", unit="prompt") as bar:
        for steps in PRETRAINED_STEPS:
            asked = unseen(options, steps, known)
            graded = {}
            for strategy in STRATEGIES:
                graded[strategy.name] = solve(asked, strategy)
                rows.append({"way": strategy.name, "steps": steps, **shares(graded[strategy.name])})
                bar.update()
            difference = paired(graded[DIRECT.name], graded[STEP_BY_STEP.name])
            differences.append({"steps": steps, **difference, "guess": guess(asked, options, steps)})
    return {"ways": rows, "chain_less_direct": differences}


def shares(answers: Sequence[Graded]) -> dict[str, float]:
    """Accuracies, and the share of right answers with a wrong chain."""
    found = answer_shares([answer.reading for answer in answers], [answer.expected for answer in answers])
    right = [answer for answer in answers if answer.strict]
    return {
        **found,
        "standard_error": standard_error(found["strict"], len(answers)),
        "right_for_wrong_reason": statistics.fmean(not answer.sound for answer in right) if right else 0.0,
    }


def paired(direct: Sequence[Graded], chained: Sequence[Graded]) -> dict[str, float]:
    """The mean paired difference of strict accuracy, with its 95 % confidence interval (normal approximation)."""
    each = [int(two.strict) - int(one.strict) for one, two in zip(direct, chained, strict=True)]
    mean, error = statistics.fmean(each), statistics.stdev(each) / math.sqrt(len(each))
    return {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}


def guess(asked: Sequence[Problem], options: Juggler, steps: int) -> float:
    """The accuracy of the majority baseline: always the most common answer for this number of steps."""
    common = Counter(problem.answer for problem in islice(_drawn(options, (steps,), "guess"), 2000))
    return statistics.fmean(problem.answer == common.most_common(1)[0][0] for problem in asked)


def juggle(
    options: Juggler, on_measured: Callable[[Mapping[str, Any]], None] = lambda measured: None
) -> dict[str, Any]:  # fmt: skip
    """Train (or resume), evaluate, and write `juggler.json`. Raises the errors of `pretrain`."""
    start, earlier = time.perf_counter(), options.out / "juggler.json"
    if earlier.exists() and not options.overwrite:
        check_settings(options.out, read_json(earlier), options.described())
    pretraining = Pretrain(
        task="word_problems", preset=options.preset, steps=options.steps, seed=options.seed, device=options.device,
        out=options.out / "model", overwrite=options.overwrite,
    )  # fmt: skip
    run = pretrain(pretraining, on_measured)
    trained = time.perf_counter()
    known = {problem.numbers for problem in drawn_problems(pretraining, run.recipe)}
    found = ask(partial(solve, PromptCache(run.decoder), run.rows.tokenizer, options), options, known)
    described = {
        **options.described(),
        "forms": PRETRAINED_FORMS,
        "parameters": sum(parameter.numel() for parameter in run.decoder.parameters()),
        "training_steps": run.loop.done,
        "tokens_read": run.loop.history.tokens,
        "training_seconds": trained - start,
        "asking_seconds": time.perf_counter() - trained,
        **found,
    }
    options.save(options.out, "juggler.json", json.dumps(described, indent=2))
    return described


def table(found: Mapping[str, Any]) -> str:
    """Accuracy by strategy and number of steps, and the effect of the chain."""
    counts = sorted({row["steps"] for row in found["ways"]})
    rows = [("strict accuracy", *(f"{steps} steps" for steps in counts))]
    for strategy in STRATEGIES:
        ways = [next(w for w in found["ways"] if (w["way"], w["steps"]) == (strategy.name, steps)) for steps in counts]
        rows.append((strategy.name, *(f"{way['strict']:.3f} ± {way['standard_error']:.3f}" for way in ways)))
        three = ("flexible", "unparsed", "right_for_wrong_reason")
        rows.append(("  flexible/unparsed/unsound", *("/".join(f"{way[name]:.2f}" for name in three) for way in ways)))
    lines = [aligned(rows, least=rows[0][:1:-1])]
    lines.append("unsound: the share of right answers whose chain of thought has a wrong step")
    for row in found["chain_less_direct"]:
        lines.append(
            f"{row['steps']} steps: effect of the chain {100 * row['mean']:+.1f} points (95 % CI "
            f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}); majority baseline {100 * row['guess']:.1f} %"
        )
    return "\n".join(lines)
