"""A training step: the gradient of the mean loss, then the optimizer step that uses it.

They are two calls, so that the loop can check the loss before a parameter changes. `TorchLearner` trains every method;
`minillm.training.numpy_learner` does the same with the numpy reference.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from minillm.errors import InputError
from minillm.runtime.device import autocast
from minillm.runtime.distributed import part, process_count, sum_over_processes
from minillm.training.schedule import TrainingSettings

Example = TypeVar("Example")
Batched = TypeVar("Batched", contravariant=True)


@runtime_checkable
class Learner(Protocol[Batched]):
    """The interface that the loop uses: gradients, updates, and a state that can be saved."""

    def backward(self, batches: Sequence[Sequence[Batched]]) -> float:
        """The mean loss over all targets of the batches, in nats; stores its gradient."""
        ...

    def optimizer_step(self, rate: float) -> None:
        """One AdamW step with the stored gradient, whose norm is clipped first."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the following steps depend on."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a `state`. Raises KeyError if a part of it is missing."""
        ...


class TorchLearner(Generic[Example]):
    """Autograd and torch's AdamW.

    `loss(examples)` returns (the sum of their losses, the number of terms). The mean is over all terms of one step, so
    accumulated batches of unequal size, or batches divided among processes, equal one big batch. The penalty `l2_base`
    (L2-SP, Li et al. 2018, eq. 3) is not part of the loss that is returned.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], loss: Callable[[list[Example]], tuple[Tensor, int]],
        settings: TrainingSettings,
    ):  # fmt: skip
        if not parameters:
            raise InputError("there are no trainable parameters")
        self.parameters, self.loss, self.settings = parameters, loss, settings
        self.optimizer = _adamw(list(parameters.values()), settings)
        self.device = next(iter(parameters.values())).device
        self.start = [p.detach().clone() for p in parameters.values()] if settings.l2_base else []

    def backward(self, batches: Sequence[Sequence[Example]]) -> float:
        total, count = 0.0, 0
        for batch in filter(None, map(part, batches)):
            with autocast(self.device, self.settings.precision):
                summed, counted = self.loss(batch)
            summed.backward()
            total, count = total + summed.item(), count + counted
        gradients, total, count = self._over_processes(total, count)
        torch._foreach_div_(gradients, count)
        for parameter, start in zip(self.parameters.values(), self.start, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=2 * self.settings.l2_base)
        return total / count

    def _over_processes(self, total: float, count: int) -> tuple[list[Tensor], float, int]:
        """The gradients, the loss and its count, summed over all processes."""
        for parameter in self.parameters.values() if process_count() > 1 else ():
            if parameter.grad is None:  # this process had no part of the batch
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        if process_count() == 1:
            return gradients, total, count
        numbers = torch.tensor([total, count], dtype=torch.float64, device=self.device)
        sum_over_processes([*gradients, numbers])
        return gradients, numbers[0].item(), int(numbers[1].item())

    def optimizer_step(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def clip(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)

    def state(self) -> dict[str, Tensor]:
        tensors = {f"parameter.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors["random.cpu"] = torch.get_rng_state()
        if (kind := self.device.type) != "cpu":
            tensors[f"random.{kind}"] = torch.get_device_module(kind).get_rng_state(self.device)
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            self.optimizer.state[parameter] = {
                key: tensors[f"optimizer.{key}.{name}"].to(parameter.device, copy=True)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        torch.set_rng_state(tensors["random.cpu"])
        if (kind := self.device.type) != "cpu":
            torch.get_device_module(kind).set_rng_state(tensors[f"random.{kind}"], self.device)


def _adamw(parameters: list[Tensor], settings: TrainingSettings) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if (p.dim() > 1) == matrices], "weight_decay": decay}
        for matrices, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)
