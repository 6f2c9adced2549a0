"""One training loop for every method: AdamW, warm-up and cosine, clipping, exact accumulation, the best epoch.

The loop knows neither the task nor the method: it decides the order of the examples and the rate of each step, and
records the losses. Everything that the rest of a run depends on is the loop's `state`: a restored run continues bit for
bit.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic

import torch
from torch import Tensor, nn

from minillm.data.batches import length_buckets
from minillm.errors import InputError
from minillm.runtime.progress import progress
from minillm.training.learners import Example, Learner, TorchLearner, Trainable
from minillm.training.schedule import TrainingSettings, rate_at


@dataclass
class History:
    """The mean loss of each step, the validation score of each epoch, the tokens processed and the seconds."""

    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Loop(Generic[Example]):
    """The state of one training run. `train` is what callers want; this is its inside, one method an idea.

    The run is `settings.epochs` long, or as many `steps` as are given.
    """

    def __init__(
        self,
        learner: Learner[Example],
        examples: Sequence[Example],
        length: Callable[[Example], int],
        settings: TrainingSettings,
        steps: int | None = None,
    ):
        self.learner, self.examples, self.settings = learner, examples, settings
        self.lengths = [length(example) for example in examples]
        self.order = random.Random(settings.seed)
        self.epoch_order, self.steps_in_epoch = self.order.getstate(), 0
        self.history = History()
        batches = math.ceil(len(examples) / settings.batch_size)
        self.steps = steps or settings.epochs * math.ceil(batches / settings.accumulate)

    def groups(self) -> Iterator[list[list[int]]]:
        """The batches of one optimizer step after another, for one epoch or, once restored, for what is left of it."""
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
            raise InputError(
                f"the loss is {loss} at step {done + 1}: a lower learning rate than "
                f"{self.settings.learning_rate:g}, or float32, may help"
            )
        self.learner.optimizer_step(rate_at(done, self.steps, self.settings))
        self.steps_in_epoch += 1
        self.history.losses.append(loss)
        self.history.tokens += sum(self.lengths[index] for batch in batches for index in batch)
        self.history.seconds += time.perf_counter() - start
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the steps to come depend on: tensors by name, and what JSON can hold."""
        place = {"epoch_order": self.epoch_order, "steps_in_epoch": self.steps_in_epoch}
        return self.learner.state(), place | {"history": asdict(self.history)}

    def restore(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """Go on from a `state` of a loop over the same examples and settings. Raises KeyError where a part of it is
        missing."""
        self.learner.restore(tensors)
        version, words, gauss = rest["epoch_order"]
        self.order.setstate((version, tuple(words), gauss))
        self.epoch_order, self.steps_in_epoch = self.order.getstate(), rest["steps_in_epoch"]
        self.history = History(**rest["history"])


def train(
    method: Trainable,
    examples: Sequence[Example],
    loss: Callable[[list[Example]], tuple[Tensor, int]],
    length: Callable[[Example], int],
    settings: TrainingSettings,
    *,
    validate: Callable[[], float] | None = None,
    on_interrupt: Callable[[], None] | None = None,
    name: str = "training",
) -> History:
    """Train what `method.trainable()` names, and end with the weights of the epoch that validated best.

    `loss(examples)` returns (the sum of their losses, how many were summed). `validate()` scores the method, higher
    is better; without it the last epoch stays. On Ctrl-C, if a step was taken, `on_interrupt` is called before the
    interrupt is raised, to save what is trained so far. Raises InputError when the loss is not finite.
    """
    torch.manual_seed(settings.seed)
    learner = TorchLearner(method, loss, settings)
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
                    continue
                method.eval()
                loop.history.validation.append(validate())
                bar.set_postfix(validation=f"{loop.history.validation[-1]:.3f}")
                if loop.history.validation[-1] > max(loop.history.validation[:-1], default=-math.inf):
                    loop.history.best_epoch = epoch
                    # The last epoch's weights are the method's own: no copy of them is needed.
                    best = _copy(learner.parameters) if epoch + 1 < settings.epochs else {}
    except KeyboardInterrupt:
        if on_interrupt is not None and loop.history.losses:
            on_interrupt()
        raise
    with torch.no_grad():
        for parameter_name, value in best.items():
            learner.parameters[parameter_name].copy_(value)
    method.eval()
    return loop.history


def _copy(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
