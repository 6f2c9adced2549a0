"""The methods that are trained by gradient descent, by name: their options, their defaults, and how each is built.

Rates and epochs were found on the validation rows of the reviews.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from minillm.adapt import Adaptation, DoRA, FineTune, LoRA, Method, PiSSA, PrefixTuning, SoftPrompt
from minillm.adapt.surgery import frozen, lower
from minillm.decoder import Decoder
from minillm.runtime.options import Names
from minillm.tokenizer import Tokenizer
from minillm.training.schedule import TrainingSettings

Adapted = TypeVar("Adapted", bound=Adaptation | Decoder)
INSTRUCTION = "Answer with negative or positive.\n\n"


@dataclass(kw_only=True)
class MethodOptions:
    """The options of the methods; each method uses its own. `epochs` and `learning_rate` depend on the method."""

    r: int = 8
    """The rank of a low-rank method."""
    alpha: float = 16.0
    """Its scale is alpha / r."""
    targets: Names = ("query", "value")
    """Its matrices: roles, paths with wildcards or all-linear, comma-separated."""
    length: int = 10
    """Positions of a prefix."""
    init_text: str | None = None
    """The words that a soft prompt or a prefix starts from."""
    layers: int = 2
    """How many blocks last-blocks trains."""
    epochs: int | None = None
    """How often each row is seen (default: the method's own number)."""
    learning_rate: float | None = None
    """The learning rate at its highest (default: the method's own)."""
    batch_size: int = 16
    """Rows a step."""


class Base(NamedTuple):
    """A base to adapt: its decoder, its tokenizer and, where there are labels, the ids of their answers."""

    decoder: Decoder
    tokenizer: Tokenizer
    answers: Sequence[Sequence[int]] | None = None


def soft_prompt(base: Base, options: MethodOptions) -> Method:
    """A soft prompt starts best from words: by default the instruction, in as many vectors as it has tokens."""
    ids = base.tokenizer.encode(INSTRUCTION if options.init_text is None else options.init_text)
    return SoftPrompt(base.decoder, max(len(ids), options.length) if options.init_text else len(ids), ids)


def prefix(base: Base, options: MethodOptions) -> Method:
    init = "random" if options.init_text is None else base.tokenizer.encode(options.init_text)
    return PrefixTuning(base.decoder, options.length, init)


def output(base: Base, options: MethodOptions) -> Method:
    """The LM head; for labels, the answers' rows alone: no other row has a gradient from the answers' loss."""
    if base.answers is None:
        return FineTune(base.decoder, "output")
    tokens = list(dict.fromkeys(answer[0] for answer in base.answers if len(answer) == 1))
    return FineTune(base.decoder, "output", tokens if len(tokens) == len(base.answers) else len(base.answers))


METHODS: dict[str, Callable[[Base, MethodOptions], Method]] = {
    "soft-prompt": soft_prompt,
    "prefix": prefix,
    "output": output,
    "last-blocks": lambda on, options: FineTune(on.decoder, options.layers),
    "lora": lambda on, options: LoRA(on.decoder, r=options.r, alpha=options.alpha, targets=options.targets),
    "dora": lambda on, options: DoRA(on.decoder, r=options.r, alpha=options.alpha, targets=options.targets),
    "pissa": lambda on, options: PiSSA(on.decoder, r=options.r, alpha=options.alpha, targets=options.targets),
    "full": lambda on, options: FineTune(on.decoder),
}
"""The methods that are trained by gradient descent, by the names that the commands give them."""

FINE_TUNED = ("output", "last-blocks", "full")
"""Those that train copies of the base's own weights."""


class TrainingDefaults(NamedTuple):
    epochs: int
    learning_rate: float


DEFAULTS = {
    "soft-prompt": TrainingDefaults(2, 3e-2), "prefix": TrainingDefaults(2, 1e-2),
    "output": TrainingDefaults(8, 1e-3), "last-blocks": TrainingDefaults(2, 4e-4), "lora": TrainingDefaults(2, 1e-3),
    "dora": TrainingDefaults(2, 1e-3), "pissa": TrainingDefaults(2, 1e-4), "full": TrainingDefaults(1, 2e-5),
}  # fmt: skip


def build(base: Base, name: str, options: MethodOptions, precision: str, seed: int) -> Method:
    """The method on the base, whose frozen matrices are held in the precision."""

    def make(decoder: Decoder) -> Method:
        torch.manual_seed(seed)
        return METHODS[name](base._replace(decoder=decoder), options)

    return on_lowered_base(name, base.decoder, precision, make)


def on_lowered_base(name: str, decoder: Decoder, precision: str, make: Callable[[Decoder], Adapted]) -> Adapted:
    """The method that `make` makes on a base whose frozen matrices are in bfloat16, if that is the precision.

    Fine-tuned copies are taken in the base's own dtype. No float32 matrix that is frozen is referred to any more.
    """
    if precision != "bfloat16":
        return make(decoder)
    if name not in FINE_TUNED:
        return make(frozen(decoder, torch.bfloat16))
    method = make(decoder)
    lower(method.decoder, torch.bfloat16)
    return method


def training_settings(name: str, options: MethodOptions, precision: str, seed: int) -> TrainingSettings:
    """How the method is trained: by its options, else by its own defaults."""
    epochs, learning_rate = DEFAULTS[name]
    return TrainingSettings(
        epochs=epochs if options.epochs is None else options.epochs,
        learning_rate=learning_rate if options.learning_rate is None else options.learning_rate,
        batch_size=options.batch_size,
        precision=precision,
        seed=seed,
    )
