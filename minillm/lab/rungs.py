"""The rungs of the ladder by name: each method with its options, its place in figure 1, and how it is trained.

The rates and epochs were found on the validation rows of the reviews.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from minillm.adapt import DoRA, FineTune, LoRA, Method, PiSSA, PrefixTuning, SoftPrompt
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.lab.climbing import features, in_context, trained
from minillm.lab.world import Bench, Keep, Outcome, World, keep_nothing
from minillm.training.schedule import TrainingSettings

SHOTS = 8
INSTRUCTION = "Answer with negative or positive.\n\n"


@dataclass(frozen=True)
class Options:
    """What a method can be given; each reads what it has a use for. `epochs` and `rate` default to the rung's own."""

    r: int = 8
    alpha: int | float = 16
    targets: Sequence[str] = ("query", "value")
    length: int = 10
    words: str | None = None
    layers: int = 2
    epochs: int | None = None
    rate: float | None = None
    batch: int = 16


@dataclass(frozen=True)
class Trained:
    """A method that is trained: how it is made on a bench, for how many epochs and at which rate.

    `lower` says that it leaves the base's matrices frozen, so that they can be held in half precision.
    """

    make: Callable[[Bench, Options], Callable[[Decoder], Method]]
    epochs: int
    rate: float
    lower: bool = True

    def settings(self, bench: Bench, options: Options) -> TrainingSettings:
        return TrainingSettings(
            epochs=self.epochs if options.epochs is None else options.epochs,
            rate=self.rate if options.rate is None else options.rate,
            batch=options.batch,
            precision=bench.precision,
            seed=bench.seed,
        )

    def method(self, bench: Bench, options: Options) -> Callable[[Decoder], Method]:
        """What makes the method; its random start is the seed's."""

        def make(decoder: Decoder) -> Method:
            torch.manual_seed(bench.seed)
            return self.make(bench, options)(decoder)

        return make


def _low_rank(kind: type[LoRA] | type[DoRA] | type[PiSSA], _: Bench, options: Options) -> Callable[[Decoder], Method]:
    return partial(kind, r=options.r, alpha=options.alpha, targets=tuple(options.targets))


def _soft_prompt(bench: Bench, options: Options) -> Callable[[Decoder], Method]:
    """Words are where a soft prompt starts best: by default the instruction, in as many vectors as it has tokens."""
    ids = bench.tokenizer.encode(INSTRUCTION if options.words is None else options.words)
    return partial(SoftPrompt, length=max(len(ids), options.length) if options.words else len(ids), init=ids)


def _prefix(bench: Bench, options: Options) -> Callable[[Decoder], Method]:
    init = "random" if options.words is None else bench.tokenizer.encode(options.words)
    return partial(PrefixTuning, length=options.length, init=init)


def _output(bench: Bench, _: Options) -> Callable[[Decoder], Method]:
    """The answers' rows of the LM head, from where they are: all others have no gradient from the answers' loss."""
    if not isinstance(bench, World):
        return partial(bench.fine_tuned, layers="output")
    answers = bench.answers()
    tokens = list(dict.fromkeys(answer[0] for answer in answers if len(answer) == 1))
    return partial(bench.fine_tuned, layers="output", classes=tokens if len(tokens) == len(answers) else len(answers))


TRAINED = {
    "soft-prompt": Trained(_soft_prompt, epochs=2, rate=3e-2),
    "prefix": Trained(_prefix, epochs=2, rate=1e-2),
    "output": Trained(_output, epochs=8, rate=1e-3, lower=False),
    "last-blocks": Trained(
        lambda bench, options: partial(bench.fine_tuned, layers=options.layers), epochs=2, rate=4e-4, lower=False
    ),
    "lora": Trained(partial(_low_rank, LoRA), epochs=2, rate=1e-3),
    "dora": Trained(partial(_low_rank, DoRA), epochs=2, rate=1e-3),
    "pissa": Trained(partial(_low_rank, PiSSA), epochs=2, rate=1e-4),
    "full": Trained(lambda *_: FineTune, epochs=1, rate=2e-5, lower=False),
}


def climb_by_training(
    world: World, name: str, options: Options | None = None, keep: Keep = keep_nothing
) -> Outcome:  # fmt: skip
    recipe, options = TRAINED[name], options or Options()
    return trained(world, name, recipe.method(world, options), recipe.settings(world, options), recipe.lower, keep)


@dataclass(frozen=True)
class Rung:
    """A technique, its place in figure 1, and how it is climbed."""

    name: str
    technique: str
    place: str
    climb: Callable[[World], Outcome]


def _by_training(name: str, technique: str, place: str) -> Rung:
    return Rung(name, technique, place, partial(climb_by_training, name=name))


RUNGS = {
    rung.name: rung
    for rung in (
        Rung("zero-shot", "zero-shot prompt", "1 prompt", partial(in_context, name="zero-shot", shots=0)),
        Rung("few-shot", f"{SHOTS}-shot prompt", "1 prompt", partial(in_context, name="few-shot", shots=SHOTS)),
        _by_training("soft-prompt", "soft prompt", "2 embeddings"),
        _by_training("prefix", "prefix tuning, 10 positions", "2 every layer"),
        Rung("features", "stored features, classifier", "4 on top", partial(features, name="features")),
        _by_training("output", "output layer, answers' rows", "4 on top"),
        _by_training("last-blocks", "last two blocks, final norm", "4 last layers"),
        _by_training("lora", "LoRA r 8, query and value", "3 weights"),
        _by_training("full", "full fine-tuning", "3 weights"),
    )
}


def chosen_rungs(names: str) -> list[Rung]:
    """The rungs of a comma-separated list, or `all`. Raises InputError for one that is unknown."""
    if names.strip() == "all":
        return list(RUNGS.values())
    found = []
    for name in names.split(","):
        if name.strip() not in RUNGS:
            raise InputError(f"there is no rung {name.strip()!r}; there are: {', '.join(RUNGS)}, or all")
        found.append(RUNGS[name.strip()])
    return found
