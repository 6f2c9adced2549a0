"""How a method is trained: for how long, in which portions, and at which rate each step."""

import math
from dataclasses import dataclass

from minillm.errors import InputError

PRECISIONS = ("bfloat16", "float32", "float64")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: `batch` counts examples a pass, `accumulate` passes a step, `warmup` is a share of the steps.

    Weight decay is for matrices alone; `beta2` is how much AdamW's mean square keeps of what it was. Matrices are
    multiplied in bfloat16 or, for any other precision, in that of the weights.
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
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; it can be {', '.join(PRECISIONS)}")


def rate_at(step: int, steps: int, settings: TrainingSettings) -> float:
    """The learning rate of a step: a straight line up to `rate`, then half a cosine down to a tenth of it."""
    warm = max(1, math.ceil(settings.warmup * steps))
    if step < warm:
        return settings.rate * (step + 1) / warm
    turn = math.cos(math.pi * (step - warm) / max(1, steps - warm))
    return settings.rate * (0.55 + 0.45 * turn)
