"""The settings of training, and the learning rate of each step."""

import math
from dataclasses import dataclass

from minillm.errors import InputError, check_at_least

PRECISIONS = ("bfloat16", "float32", "float64")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. A step accumulates the gradients of `accumulate` batches; `warmup` is a share of the steps.

    Weight decay applies to matrices only; `clip` is the maximum norm of the gradient. With precision bfloat16, matrix
    products are computed in bfloat16, else in the precision of the weights. `TrainingOptions` describes the others.
    """

    epochs: int = 2
    learning_rate: float = 5e-4
    batch_size: int = 16
    accumulate: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.0
    beta2: float = 0.999
    clip: float = 1.0
    precision: str = "float32"
    seed: int = 0
    patience: int | None = None
    replay: int = 0
    l2_base: float = 0.0
    forgetting_budget: float | None = None

    def __post_init__(self):
        check_at_least(1, epochs=self.epochs, batch_size=self.batch_size, accumulate=self.accumulate)
        check_at_least(1, patience=self.patience)
        if self.patience is not None and self.epochs < 2:
            raise InputError("patience needs validation rows and at least 2 epochs")
        check_at_least(0, replay=self.replay)
        for name, value in (("l2_base", self.l2_base), ("forgetting_budget", self.forgetting_budget or 0.0)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name} must be a finite number of at least 0, got {value}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate must be a finite number above 0, got {self.learning_rate}")
        if not self.clip > 0:
            raise InputError(f"clip must be above 0, got {self.clip}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    def epoch_steps(self, examples: int) -> int:
        """The optimizer steps of an epoch."""
        return math.ceil(math.ceil(examples / self.batch_size) / self.accumulate)


def rate_at(step: int, steps: int, settings: TrainingSettings) -> float:
    """The learning rate of a step: linear warm-up to `learning_rate`, then cosine decay to a tenth of it."""
    warm = max(1, math.ceil(settings.warmup * steps))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    turn = math.cos(math.pi * (step - warm) / max(1, steps - warm))
    return settings.learning_rate * (0.55 + 0.45 * turn)
