"""One training loop for every method: AdamW, warm-up and cosine, clipping, exact accumulation, the best epoch kept.

The loop knows neither the task nor the method: `loss` turns some examples into a sum of losses and the number of
things it summed over, and the method says what is trainable. The mean is over all that one optimizer step has
summed, so that accumulated batches of unequal size equal one big batch. The same holds of batches that are divided
among processes. Everything that the rest of a run depends on is the loop's `state`: a run that is restored goes on bit
for bit.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from minillm.batches import length_buckets
from minillm.device import autocast
from minillm.distributed import part, size, sum_over_processes
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
    """How to train: `batch` counts examples a pass, `accumulate` passes a step, `warmup` is a share of the steps.

    Weight decay is for matrices alone; `beta2` is how much AdamW's mean square keeps of what it was.
    """

    epochs: int = 2
    rate: float = 5e-4
    batch: int = 16
    accumulate: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.0
    beta2: float = 0.999
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
    """The state of one training run. `train` is what callers want; this is its inside, one method an idea.

    The run is `settings.epochs` long, or as many `steps` as are given.
    """

    def __init__(
        self,
        method: Trainable,
        examples: Sequence[Example],
        loss: Callable[[list[Example]], tuple[Tensor, int]],
        length: Callable[[Example], int],
        settings: TrainingSettings,
        steps: int | None = None,
    ):
        self.method, self.examples, self.loss, self.settings = method, examples, loss, settings
        self.lengths = [length(example) for example in examples]
        self.parameters = method.trainable()
        if not self.parameters:
            raise InputError("this method has nothing to train")
        self.optimizer = _adamw(list(self.parameters.values()), settings)
        self.device = next(iter(self.parameters.values())).device
        self.order = random.Random(settings.seed)
        self.epoch_order, self.steps_in_epoch = self.order.getstate(), 0
        self.history = History()
        batches = math.ceil(len(examples) / settings.batch)
        self.steps = steps or settings.epochs * math.ceil(batches / settings.accumulate)

    def groups(self) -> Iterator[list[list[int]]]:
        """The batches of one optimizer step after another, for one epoch or, once restored, for what is left of it."""
        self.epoch_order = self.order.getstate()
        batches = length_buckets(self.lengths, self.settings.batch, self.order)
        passes = self.settings.accumulate
        for start in range(self.steps_in_epoch * passes, len(batches), passes):
            yield batches[start : start + passes]
        self.steps_in_epoch = 0

    def step(self, batches: list[list[int]]) -> float:
        """One optimizer step over some batches; returns the mean loss, in nats."""
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(len(self.history.losses), self.steps, self.settings)
        total, count = 0.0, 0
        for batch in filter(None, map(part, batches)):
            with autocast(self.device, self.settings.precision):
                summed, counted = self.loss([self.examples[index] for index in batch])
            summed.backward()
            total, count = total + summed.item(), count + counted
        gradients, total, count = self._over_processes(total, count)
        if not math.isfinite(total):
            raise InputError(
                f"the loss is {total} at step {len(self.history.losses) + 1}: a lower rate than "
                f"{self.settings.rate:g}, or float32, may help"
            )
        torch._foreach_div_(gradients, count)
        nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_in_epoch += 1
        self.history.losses.append(total / count)
        self.history.tokens += sum(self.lengths[index] for batch in batches for index in batch)
        self.history.seconds += time.perf_counter() - start
        return total / count

    def _over_processes(self, total: float, count: int) -> tuple[list[Tensor], float, int]:
        """The gradients, the loss and its count, of this process or summed over all."""
        if size() > 1:
            for parameter in self.parameters.values():
                if parameter.grad is None:  # this process had no part of the batch
                    parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        numbers = torch.tensor([total, count], dtype=torch.float64, device=self.device)
        sum_over_processes([*gradients, numbers])
        return gradients, numbers[0].item(), int(numbers[1].item())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the steps to come depend on: tensors by name, and what JSON can hold."""
        tensors = {f"parameter.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        place = {"epoch_order": self.epoch_order, "steps_in_epoch": self.steps_in_epoch}
        return tensors, place | {"history": asdict(self.history)}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """Go on from a `state` of a loop over the same examples and settings. Raises KeyError where a part of it is
        missing."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            self.optimizer.state[parameter] = {
                key: tensors[f"optimizer.{key}.{name}"].to(parameter.device, copy=True)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        version, words, gauss = rest["epoch_order"]
        self.order.setstate((version, tuple(words), gauss))
        self.epoch_order, self.steps_in_epoch = self.order.getstate(), rest["steps_in_epoch"]
        self.history = History(**rest["history"])


def _adamw(parameters: list[nn.Parameter], settings: TrainingSettings) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if (p.dim() > 1) == matrices], "weight_decay": decay}
        for matrices, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, settings.beta2), fused=True)


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
