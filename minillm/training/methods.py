"""The methods that are trained by gradient descent: their options, their defaults, and how each is built.

The default learning rates and numbers of epochs were chosen on the validation rows of the film reviews.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Literal, NamedTuple, TypeVar

import torch
from tyro.conf import arg

from minillm.adapt import Adaptation, DoRA, FineTune, LoRA, Method, PiSSA, PrefixTuning, SoftPrompt
from minillm.adapt.low_rank import LowRank
from minillm.adapt.surgery import frozen, lower
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.runtime.option import options_of
from minillm.runtime.options import Names, Text
from minillm.tokenizer import Tokenizer
from minillm.training.schedule import TrainingSettings

Adapted = TypeVar("Adapted", bound=Adaptation | Decoder)
Trained = Literal["soft-prompt", "prefix", "output", "last-blocks", "lora", "dora", "pissa", "full"]
LENGTH = 10


@dataclass(kw_only=True)
class TrainingOptions:
    """Options of training; `epochs` and `learning_rate` depend on the method if they are None."""

    epochs: int | None = None
    """The number of epochs; depends on the method if not given."""
    learning_rate: float | None = None
    """The peak learning rate; depends on the method if not given."""
    batch_size: int = 16
    """The number of rows per optimizer step."""
    patience: int | None = None
    """End the training after so many validated epochs without a better one."""
    replay: int = 0
    """Against forgetting: also train on so many texts that the base itself samples."""
    l2_base: float = 0.0
    """Against forgetting: add so many times the squared distance of trained weights from their start to the loss."""
    forgetting_budget: float | None = None
    """End the training when the loss on text that the base sampled has risen by more, in nats per token."""


@dataclass(kw_only=True)
class MethodOptions(TrainingOptions):
    """Options of the methods; each method uses its own."""

    r: int = 8
    """The rank of LoRA, DoRA and PiSSA."""
    alpha: float = 16.0
    """The scale of a low-rank update is alpha / r."""
    dropout: float = 0.0
    """The dropout probability of the input of a low-rank update."""
    targets: Names = ("query", "value")
    """The adapted matrices: names such as query, value, up or q_proj, paths with wildcards, or all-linear."""
    length: Annotated[int | None, arg(name="virtual-tokens", metavar="INT")] = None
    """The number of trained positions of a prefix (default 10) or soft prompt (default one per initial token)."""
    init_text: Text | None = None
    """The text whose tokens initialise a soft prompt or prefix."""
    layers: int = 2
    """The number of blocks that last-blocks trains."""


class Base(NamedTuple):
    """A base to adapt: its decoder, its tokenizer and, for labels, the token ids of their answers."""

    decoder: Decoder
    tokenizer: Tokenizer
    answers: Sequence[Sequence[int]] | None = None


def soft_prompt(base: Base, options: MethodOptions) -> Method:
    """A soft prompt that starts from the tokens of `init_text`, by default of an instruction for the task."""
    ids = base.tokenizer.encode(instruction(base) if options.init_text is None else options.init_text)
    return SoftPrompt(base.decoder, len(ids) if options.length is None else options.length, ids)


def instruction(base: Base) -> str:
    """An instruction that names the answers of the labels, or a neutral one for free answers."""
    if base.answers is None:
        return "Write the answer to the text below.\n\n"
    *others, last = (base.tokenizer.decode(answer).strip() for answer in base.answers)
    return f"Answer with {', '.join(others)} or {last}.\n\n"


def prefix(base: Base, options: MethodOptions) -> Method:
    init = "random" if options.init_text is None else base.tokenizer.encode(options.init_text)
    return PrefixTuning(base.decoder, LENGTH if options.length is None else options.length, init)


def output(base: Base, options: MethodOptions) -> Method:
    """The head. For labels: its rows of the answers, if each is one distinct token, else a new classifier from zero."""
    if base.answers is None:
        return FineTune(base.decoder, "output")
    tokens = list(dict.fromkeys(answer[0] for answer in base.answers if len(answer) == 1))
    return FineTune(base.decoder, "output", tokens if len(tokens) == len(base.answers) else len(base.answers))


def low_rank(kind: type[LowRank], base: Base, options: MethodOptions) -> Method:
    return kind(base.decoder, r=options.r, alpha=options.alpha, targets=options.targets, dropout=options.dropout)


class Kind(NamedTuple):
    """How a method is built, its default epochs and learning rate, and its options besides those of training."""

    build: Callable[[Base, MethodOptions], Method]
    epochs: int
    learning_rate: float
    options: tuple[str, ...] = ()


PROMPT, LOW_RANK = ("length", "init_text"), ("r", "alpha", "dropout", "targets")
METHODS = {
    "soft-prompt": Kind(soft_prompt, 2, 3e-2, PROMPT),
    "prefix": Kind(prefix, 2, 1e-2, PROMPT),
    "output": Kind(output, 8, 1e-3),
    "last-blocks": Kind(lambda base, options: FineTune(base.decoder, options.layers), 2, 4e-4, ("layers",)),
    "lora": Kind(partial(low_rank, LoRA), 2, 1e-3, LOW_RANK),
    "dora": Kind(partial(low_rank, DoRA), 2, 1e-3, LOW_RANK),
    "pissa": Kind(partial(low_rank, PiSSA), 2, 1e-4, LOW_RANK),
    "full": Kind(lambda base, options: FineTune(base.decoder), 1, 2e-5),
}
"""The methods by their names in the commands (`adapt.METHODS` has their classes)."""
FINE_TUNED = ("output", "last-blocks", "full")
"""The methods that train copies of the base's weights."""


def check_options(name: str, options: MethodOptions) -> None:
    """Raises InputError for an option that was set and that the method does not have."""
    trained = [option.name for option in fields(TrainingOptions)]
    used = [*METHODS[name].options, *trained] if name in METHODS else []
    flags = {field: one.flag for field, one in options_of(MethodOptions).items()}
    for option in fields(MethodOptions):
        if option.name not in used and getattr(options, option.name) != option.default:
            its = ", ".join(flags[one] for one in used) or "none"
            raise InputError(f"{name} has no option {flags[option.name]}; its options: {its}")


def build(base: Base, name: str, options: MethodOptions, precision: str, seed: int) -> Method:
    """The method on the base, whose frozen matrices are in the given precision."""

    def make(decoder: Decoder) -> Method:
        torch.manual_seed(seed)
        return METHODS[name].build(base._replace(decoder=decoder), options)

    return on_lowered_base(name, base.decoder, precision, make)


def on_lowered_base(name: str, decoder: Decoder, precision: str, make: Callable[[Decoder], Adapted]) -> Adapted:
    """The method that `make` builds on the base. For bfloat16 the frozen matrices are cast to bfloat16.

    Fine-tuned copies keep the dtype of the base. The result holds no reference to frozen float32 matrices.
    """
    if precision != "bfloat16":
        return make(decoder)
    if name not in FINE_TUNED:
        return make(frozen(decoder, torch.bfloat16))
    method = make(decoder)
    lower(method.decoder, torch.bfloat16)
    return method


def training_settings(name: str, options: MethodOptions, precision: str, seed: int) -> TrainingSettings:
    """The training settings of a method: its options, and its defaults for options that are None."""
    kind = METHODS[name]
    epochs = kind.epochs if options.epochs is None else options.epochs
    rate = kind.learning_rate if options.learning_rate is None else options.learning_rate
    return TrainingSettings(
        epochs, rate, options.batch_size, precision=precision, seed=seed, patience=options.patience,
        replay=options.replay, l2_base=options.l2_base, forgetting_budget=options.forgetting_budget,
    )  # fmt: skip
