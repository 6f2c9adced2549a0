"""The training loop of every method: warm-up and cosine decay, clipping, gradient accumulation, the best epoch.

The loop knows neither the task nor the method: it decides the order of the examples and the learning rate of each step,
and records the losses. `Loop.state` is everything that the rest of a run depends on: a restored run continues bit for
bit.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from minillm.data.batches import length_buckets
from minillm.errors import InputError
from minillm.runtime.progress import progress
from minillm.training.learners import Example, Learner, TorchLearner
from minillm.training.schedule import TrainingSettings, rate_at


@dataclass
class History:
    """Loss of each step, score of each validated epoch, best epoch (from 0; the last if none), tokens, seconds."""

    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Loop(Generic[Example]):
    """One training run of `settings.epochs`, or of the given number of `steps`; `train` is its usual caller."""

    def __init__(
        self, learner: Learner[Example], examples: Sequence[Example], length: Callable[[Example], int],
        settings: TrainingSettings, steps: int | None = None,
    ):  # fmt: skip
        self.learner, self.examples, self.settings = learner, examples, settings
        self.lengths = [length(example) for example in examples]
        self.order = random.Random(settings.seed)  # draws the order of the batches
        self.epoch_order, self.steps_in_epoch = self.order.getstate(), 0
        self.history = History()
        batches = math.ceil(len(examples) / settings.batch_size)
        self.steps = steps or settings.epochs * math.ceil(batches / settings.accumulate)

    def groups(self) -> Iterator[list[list[int]]]:
        """The batches of each optimizer step of one epoch or, once restored, of the rest of it."""
        self.epoch_order = self.order.getstate()
        batches = length_buckets(self.lengths, self.settings.batch_size, self.order)
        passes = self.settings.accumulate
        for start in range(self.steps_in_epoch * passes, len(batches), passes):
            yield batches[start : start + passes]
        self.steps_in_epoch = 0

    def step(self, batches: list[list[int]]) -> float:
        """One optimizer step over some batches; returns the mean loss, in nats."""
        start, done = time.perf_counter(), len(self.history.losses)
        loss = self.learner.backward([[self.examples[index] for index in batch] for batch in batches])
        if not math.isfinite(loss):
            rate = f"{self.settings.learning_rate:g}"
            raise InputError(f"the loss is {loss} at step {done + 1}: try a learning rate below {rate}, or float32")
        self.learner.optimizer_step(rate_at(done, self.steps, self.settings))
        self.steps_in_epoch += 1
        self.history.losses.append(loss)
        self.history.tokens += sum(self.lengths[index] for batch in batches for index in batch)
        self.history.seconds += time.perf_counter() - start
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the following steps depend on: tensors by name, and values in JSON's types."""
        place = {"epoch_order": self.epoch_order, "steps_in_epoch": self.steps_in_epoch}
        return self.learner.state(), place | {"history": asdict(self.history)}

    def restore(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """Continue from a `state` with the same examples and settings. Raises KeyError if a part of it is missing."""
        self.learner.restore(tensors)
        version, words, gauss = rest["epoch_order"]
        self.order.setstate((version, tuple(words), gauss))
        self.epoch_order, self.steps_in_epoch = self.order.getstate(), rest["steps_in_epoch"]
        self.history = History(**rest["history"])


@runtime_checkable
class Trainable(Protocol):
    """The part of a method's interface that `train` uses."""

    def trainable(self) -> dict[str, nn.Parameter]: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


def train(
    method: Trainable, examples: Sequence[Example], loss: Callable[[list[Example]], tuple[Tensor, int]],
    length: Callable[[Example], int], settings: TrainingSettings, *, validate: Callable[[], float] | None = None,
    on_interrupt: Callable[[], None] | None = None, name: str = "training",
) -> History:  # fmt: skip
    """Train the parameters in `method.trainable()`; at the end they have the values of the best validated epoch.

    `loss(examples)` returns (the sum of their losses, the number of terms). `validate()` returns a score, higher is
    better; without it the last epoch is used. On Ctrl-C after the first step, `on_interrupt` is called before
    KeyboardInterrupt is raised, to save the weights trained so far. Raises InputError when the loss is not finite.
    """
    torch.manual_seed(settings.seed)
    learner = TorchLearner(method.trainable(), loss, settings)
    loop = Loop(learner, examples, length, settings)
    best: dict[str, Tensor] = {}
    try:
        with progress(total=loop.steps, desc=name, unit="step") as bar:
            for epoch in range(settings.epochs):
                method.train()
                for batches in loop.groups():
                    bar.set_postfix(loss=f"{loop.step(batches):.3f}", refresh=False)
                    bar.update()
                if validate is None:
                    loop.history.best_epoch = epoch
                    continue
                method.eval()
                loop.history.validation.append(validate())
                bar.set_postfix(validation=f"{loop.history.validation[-1]:.3f}")
                if loop.history.validation[-1] > max(loop.history.validation[:-1], default=-math.inf):
                    loop.history.best_epoch = epoch
                    # After the last epoch the method has these weights itself.
                    last = epoch + 1 == settings.epochs
                    best = {} if last else {name: p.detach().clone() for name, p in learner.parameters.items()}
    except KeyboardInterrupt:
        if on_interrupt is not None and loop.history.losses:
            on_interrupt()
        raise
    with torch.no_grad():
        for parameter_name, value in best.items():
            learner.parameters[parameter_name].copy_(value)
    method.eval()
    return loop.history
