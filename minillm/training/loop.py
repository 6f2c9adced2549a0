"""The training loop of every method: warm-up and cosine decay, clipping, gradient accumulation, the best epoch.

The loop knows neither the task nor the method: it decides the order of the examples and the learning rate of each step,
and records the losses. `Loop.state` is everything that the rest of a run depends on: a restored run continues bit for
bit.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from minillm.adapt import FineTune
from minillm.data.batches import length_buckets
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.runtime import distributed
from minillm.runtime.fingerprint import json_fingerprint
from minillm.runtime.finite import check_finite
from minillm.runtime.interrupts import interrupt_deferred
from minillm.runtime.locks import locked
from minillm.runtime.progress import note, progress
from minillm.training.checkpoints import Checkpoints
from minillm.training.learners import Example, Learner
from minillm.training.schedule import TrainingSettings, rate_at
from minillm.training.sharded import collected, gather, learner_of, shard, whole

FORGETTING_STEPS = 4
"""The number of steps between two measurements of forgetting."""
Scored = tuple[float, float]


@dataclass
class History:
    """Loss of each step, score and loss of each validated epoch, measured forgetting by step, best epoch (from 0; the
    last if none), tokens, seconds."""

    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    forgetting: dict[str, float] = field(default_factory=dict)
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
        self.best: dict[str, Tensor] = {}  # the parameters after the best validated epoch, unless it is the last
        self.epoch_steps = settings.epoch_steps(len(examples))
        self.steps = steps or settings.epochs * self.epoch_steps
        self.forgetting: Callable[[], float] | None = None  # measures it, in nats per token

    @property
    def done(self) -> int:
        """The number of steps so far."""
        return len(self.history.losses)

    @property
    def epoch(self) -> int:
        """The number of epochs whose batches have all been used."""
        return (self.done - self.steps_in_epoch) // self.epoch_steps

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, validation is no longer better, or too much was forgotten."""
        history, patience, budget = self.history, self.settings.patience, self.settings.forgetting_budget
        late = patience is not None and len(history.validation) > history.best_epoch + patience
        forgot = budget is not None and max(history.forgetting.values(), default=0.0) > budget
        return late or forgot or self.epoch == self.settings.epochs

    def groups(self) -> Iterator[list[list[int]]]:
        """The batches of each optimizer step of one epoch or, once restored, of the rest of it."""
        self.epoch_order = self.order.getstate()
        batches = length_buckets(self.lengths, self.settings.batch_size, self.order)
        passes = self.settings.accumulate
        for start in range(self.steps_in_epoch * passes, len(batches), passes):
            yield batches[start : start + passes]
        self.epoch_order, self.steps_in_epoch = self.order.getstate(), 0

    def step(self, batches: list[list[int]]) -> float:
        """One optimizer step over some batches; returns the mean loss, in nats."""
        start, done = time.perf_counter(), self.done
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
        """Everything that the following steps depend on: tensors by name, and values in JSON's types.

        Raises InputError for NaN and infinite values, so that no checkpoint is replaced by them.
        """
        place = {"epoch_order": self.epoch_order, "steps_in_epoch": self.steps_in_epoch}
        tensors = self.learner.state() | {f"best.{name}": collected(tensor) for name, tensor in self.best.items()}
        self.check_finite(tensors)
        return tensors, place | {"history": asdict(self.history)}

    def metrics(self) -> str:
        """metrics.csv: loss and rate of each step; after some of them, validation loss and score, and forgetting."""
        lines, held = ["step,loss,rate,validation,score,forgetting"], {}
        for epoch, of in enumerate(zip(self.history.validation_losses, self.history.validation, strict=False), 1):
            held[epoch * self.epoch_steps] = of
        for step, loss in enumerate(self.history.losses, 1):
            forgetting = self.history.forgetting.get(str(step), "")
            row = (step, loss, rate_at(step - 1, self.steps, self.settings), *held.get(step, ("", "")), forgetting)
            lines.append(",".join(map(str, row)))
        return "\n".join([*lines, ""])

    def check_finite(self, tensors: Mapping[str, Tensor]) -> None:
        check_finite(tensors, f"with a learning rate of {self.settings.learning_rate:g}, the method")

    def restore(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """Continue from a `state` with the same examples and settings. Raises KeyError if a part of it is missing."""
        self.learner.restore(tensors)
        version, words, gauss = rest["epoch_order"]
        self.order.setstate((version, tuple(words), gauss))
        self.epoch_order, self.steps_in_epoch = self.order.getstate(), rest["steps_in_epoch"]
        self.history = History(**rest["history"])
        self.best = {name[len("best.") :]: tensor for name, tensor in tensors.items() if name.startswith("best.")}


@runtime_checkable
class Trainable(Protocol):
    """The part of a method's interface that `train` uses."""

    def trainable(self) -> dict[str, nn.Parameter]: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


def train(
    method: Trainable, examples: Sequence[Example], loss: Callable[[list[Example]], tuple[Tensor, int]],
    length: Callable[[Example], int], settings: TrainingSettings, *, validate: Callable[[], Scored] | None = None,
    forgetting: Callable[[], float] | None = None, checkpoints: Checkpoints | None = None,
    on_interrupt: Callable[[], None] | None = None, name: str = "training",
) -> History:  # fmt: skip
    """Train the parameters in `method.trainable()`; at the end they have the values of the best validated epoch.

    `loss(examples)` returns (the sum of their losses, the number of terms). `validate()` returns (a score, higher is
    better, and the loss); without it the last epoch is used. `forgetting()`, in nats per token, is measured every
    few steps. With `checkpoints`, a run that was ended continues bit for bit, and metrics.csv is written. On Ctrl-C
    after the first step, a checkpoint is saved and `on_interrupt` is called, to save the weights trained so far, before
    KeyboardInterrupt is raised. Raises InputError when the loss or a trained weight is not finite.
    """
    if settings.patience is not None and validate is None:
        raise InputError("patience needs validation rows and at least 2 epochs")
    torch.manual_seed(settings.seed)
    sharded = method.decoder if isinstance(method, FineTune) and method.layers == "all" else None
    if sharded is not None:
        shard(sharded)
    learner = learner_of(method.trainable(), loss, settings)
    loop = Loop(learner, examples, length, settings)
    loop.forgetting = forgetting
    if checkpoints is not None:
        described = {**checkpoints.settings, **asdict(settings), "examples": json_fingerprint(list(examples))}
        checkpoints = replace(checkpoints, settings=described)
    with locked(checkpoints.directory) if checkpoints is not None and distributed.is_first() else nullcontext():
        if checkpoints is not None:
            checkpoints.restore(loop)
        if number := distributed.process_number():  # dropout on other rows has other random numbers
            torch.manual_seed(settings.seed + loop.done + number)
        try:
            _epochs(loop, method, validate, checkpoints, name)
        except (KeyboardInterrupt, ConnectionAbortedError) as ended:
            lost = isinstance(ended, ConnectionAbortedError)
            if loop.done and not (lost and sharded is not None):  # with the lost process, its parts
                _save_ended(loop, sharded, checkpoints, on_interrupt)
                if checkpoints is not None and not lost:
                    ended.args = (f"step {loop.done} of {loop.steps}",)
            raise
        if checkpoints is not None:
            checkpoints.save(loop, state=False)
    if loop.epoch < settings.epochs:
        note(f"{name}: ended early, at step {loop.done} of {loop.steps}")
    if not loop.history.validation:
        loop.history.best_epoch = math.ceil(loop.done / loop.epoch_steps) - 1
    gather(sharded)
    with torch.no_grad():
        for parameter_name, value in loop.best.items():
            method.trainable()[parameter_name].copy_(whole(value))
    loop.check_finite(method.trainable())
    method.eval()
    return loop.history


def _save_ended(
    loop: Loop, sharded: Decoder | None, checkpoints: Checkpoints | None, on_interrupt: Callable[[], None] | None
) -> None:
    """Save a checkpoint and the weights trained so far."""
    with interrupt_deferred():  # torchrun ends the others after the first
        if checkpoints is not None:
            checkpoints.save(loop)
        if on_interrupt is not None:
            gather(sharded)
            on_interrupt()


def _epochs(
    loop: Loop, method: Trainable, validate: Callable[[], Scored] | None, checkpoints: Checkpoints | None, name: str
) -> None:
    """Train and validate the epochs that are left. A validation that was ended is repeated."""
    with progress(total=loop.steps, initial=loop.done, desc=name, unit="step") as bar:
        while True:
            if validate is not None and len(loop.history.validation) < loop.epoch:
                method.eval()
                with _measured_together():
                    _record(loop, method, *distributed.numbers_of_first(*validate()))
                bar.set_postfix(validation=f"{loop.history.validation[-1]:.3f}")
            if loop.ended:
                return
            _epoch(loop, method, checkpoints, bar)


def _epoch(loop: Loop, method: Trainable, checkpoints: Checkpoints | None, bar: Any) -> None:
    """The steps of an epoch, or of the rest of it. Ctrl-C raises KeyboardInterrupt between two of them."""
    for batches in loop.groups():
        if loop.forgetting is not None and loop.done % FORGETTING_STEPS == 0:
            method.eval()
            with _measured_together():
                (loop.history.forgetting[str(loop.done)],) = distributed.numbers_of_first(loop.forgetting())
            if loop.ended:
                return
        method.train()
        with _ended_together():
            loss = loop.step(batches)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
        epoch_ends, last = loop.steps_in_epoch == loop.epoch_steps, loop.done == loop.steps
        if checkpoints is not None and distributed.any_process(last or checkpoints.due(loop.done, epoch_ends)):
            with _measured_together():
                checkpoints.save(loop)


def _measured_together() -> AbstractContextManager[None]:
    """Where steps of several processes may gather weights, Ctrl-C waits for the end of the block; else it does not."""
    return _ended_together() if distributed.process_count() > 1 else nullcontext()


@contextmanager
def _ended_together() -> Iterator[None]:
    """Ctrl-C within the block raises KeyboardInterrupt after it, in all processes. Notices a lost process."""
    with interrupt_deferred() as interrupted, distributed.loss_noticed():
        yield
        ended = distributed.any_process(interrupted())
    if ended or interrupted():
        raise KeyboardInterrupt


def _record(loop: Loop, method: Trainable, score: float, loss: float) -> None:
    """Record the validation of an epoch, and its weights if it is the best so far."""
    if score > max(loop.history.validation, default=-math.inf):
        loop.history.best_epoch = len(loop.history.validation)
        # After the last epoch the method has these weights itself.
        last = loop.epoch == loop.settings.epochs
        loop.best = {} if last else {name: p.detach().clone() for name, p in method.trainable().items()}
    # Last, so that a validation that is interrupted is repeated.
    loop.history.validation_losses[len(loop.history.validation) :] = [loss]
    loop.history.validation.append(score)
