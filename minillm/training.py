"""One training loop for every method: AdamW, warm-up and cosine, clipping, exact accumulation, the best epoch kept.

The loop knows neither the task nor the method: `loss` turns some examples into a sum of losses and the number of
things it summed over, and the method says what is trainable. The mean is over all that one optimizer step has
summed, so that accumulated batches of unequal size equal one big batch.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from minillm.batches import length_buckets
from minillm.device import autocast
from minillm.errors import InputError
from minillm.progress import progress

Example = TypeVar("Example")


@runtime_checkable
class Trainable(Protocol):
    """What the loop needs of a method."""

    def trainable(self) -> dict[str, nn.Parameter]: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: `batch` counts examples a pass, `accumulate` passes a step, `warmup` is a share of the steps."""

    epochs: int = 2
    rate: float = 5e-4
    batch: int = 16
    accumulate: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.rate <= 0 or self.clip <= 0:
            raise InputError(f"the rate ({self.rate}) and the clipping norm ({self.clip}) must be above 0")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision is {self.precision!r}; it can be float32 or bfloat16")


@dataclass
class History:
    """What happened: the mean loss of each step, the validation score of each epoch, and the work done."""

    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    tokens: int = 0
    seconds: float = 0.0


def rate_at(step: int, steps: int, settings: TrainingSettings) -> float:
    """The learning rate of a step: a straight line up to `rate`, then half a cosine down to a tenth of it."""
    warm = max(1, math.ceil(settings.warmup * steps))
    if step < warm:
        return settings.rate * (step + 1) / warm
    turn = math.cos(math.pi * (step - warm) / max(1, steps - warm))
    return settings.rate * (0.55 + 0.45 * turn)


class Loop(Generic[Example]):
    """The state of one training run. `train` is what callers want; this is its inside, one method an idea."""

    def __init__(
        self,
        method: Trainable,
        examples: Sequence[Example],
        loss: Callable[[list[Example]], tuple[Tensor, int]],
        length: Callable[[Example], int],
        settings: TrainingSettings,
    ):
        self.method, self.examples, self.loss, self.settings = method, examples, loss, settings
        self.lengths = [length(example) for example in examples]
        self.parameters = method.trainable()
        if not self.parameters:
            raise InputError("this method has nothing to train")
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.rate, weight_decay=settings.weight_decay, fused=True
        )
        self.device = next(iter(self.parameters.values())).device
        self.order = random.Random(settings.seed)
        self.history = History()
        batches = math.ceil(len(examples) / settings.batch)
        self.steps = settings.epochs * math.ceil(batches / settings.accumulate)

    def groups(self) -> Iterator[list[list[int]]]:
        """The batches of one optimizer step after another, for one epoch."""
        batches = length_buckets(self.lengths, self.settings.batch, self.order)
        for start in range(0, len(batches), self.settings.accumulate):
            yield batches[start : start + self.settings.accumulate]

    def step(self, batches: list[list[int]]) -> float:
        """One optimizer step over some batches; returns the mean loss, in nats."""
        start = time.perf_counter()
        self.optimizer.param_groups[0]["lr"] = rate_at(len(self.history.losses), self.steps, self.settings)
        total, count = 0.0, 0
        for batch in batches:
            with autocast(self.device, self.settings.precision):
                summed, counted = self.loss([self.examples[index] for index in batch])
            summed.backward()
            total, count = total + summed.item(), count + counted
        if not math.isfinite(total):
            raise InputError(
                f"the loss is {total} at step {len(self.history.losses) + 1}: a lower rate than "
                f"{self.settings.rate:g}, or float32, may help"
            )
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        torch._foreach_div_(gradients, count)
        nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.history.losses.append(total / count)
        self.history.tokens += sum(self.lengths[index] for batch in batches for index in batch)
        self.history.seconds += time.perf_counter() - start
        return total / count


def train(
    method: Trainable,
    examples: Sequence[Example],
    loss: Callable[[list[Example]], tuple[Tensor, int]],
    length: Callable[[Example], int],
    settings: TrainingSettings,
    *,
    validate: Callable[[], float] | None = None,
    interrupted: Callable[[], None] | None = None,
    name: str = "training",
) -> History:
    """Train what `method.trainable()` names, and end with the weights of the epoch that validated best.

    `loss(examples)` returns (the sum of their losses, how many were summed). `validate()` scores the method, higher
    is better; without it the last epoch stays. On Ctrl-C `interrupted` is called, to save what there is, before the
    interrupt goes on. Raises InputError when the loss is not finite.
    """
    torch.manual_seed(settings.seed)
    loop = Loop(method, examples, loss, length, settings)
    best: dict[str, Tensor] = {}
    try:
        with progress(total=loop.steps, desc=name, unit="step") as bar:
            for epoch in range(settings.epochs):
                method.train()
                for batches in loop.groups():
                    bar.set_postfix(loss=f"{loop.step(batches):.3f}", refresh=False)
                    bar.update()
                if validate is None:
                    continue
                method.eval()
                loop.history.validation.append(validate())
                bar.set_postfix(validation=f"{loop.history.validation[-1]:.3f}")
                if loop.history.validation[-1] > max(loop.history.validation[:-1], default=-math.inf):
                    loop.history.best_epoch = epoch
                    # The last epoch's weights are the method's own: no copy of them is needed.
                    best = _copy(loop.parameters) if epoch + 1 < settings.epochs else {}
    except KeyboardInterrupt:
        if interrupted is not None:
            interrupted()
        raise
    with torch.no_grad():
        for parameter_name, value in best.items():
            loop.parameters[parameter_name].copy_(value)
    method.eval()
    return loop.history


def _copy(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
