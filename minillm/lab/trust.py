"""The ladder of trust: compares a computation in numpy with the same computation in torch. The engine of all checks.

    differences    numpy's gradient against central differences along a random direction,
                   (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h
    numpy          the formula in torch against numpy, both in float64 on the CPU: the output and every gradient
    fast           the fast implementation against numpy, both in float64 on the CPU
    here           torch in the user's dtype on the user's device, against numpy in float64, on the same rounded inputs
    kernel         the kernel in the user's dtype against numpy in float64, on the same rounded inputs; the limit is
                   2 x error(torch in this dtype) + 4 ulp (for the fast implementation 2 x error(formula) + 8 ulp)

Each rung reports the part (the output or a gradient) with the largest ratio of error to limit; both are relative to the
largest magnitude in the part. The limit of `here` is 8 ulp of the dtype plus 8 times the change of the exact result
when all inputs and the gradient of the output are perturbed by one ulp. `minillm check` runs these rungs on the user's
machine, the tests run them on random sizes.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minillm.operations import FAST, PLAIN, TRITON, backend

Arrays = dict[str, np.ndarray]
DIFFERENCE, EXACT = 1e-6, 1e-9
STEP, FACTOR = 1e-5, 8
# A result that is exactly 0 is computed as 1e-17: below this magnitude, errors are absolute.
SMALLEST = 1e-3
OUTPUT = "the output"


@dataclass(frozen=True)
class Case:
    """A computation in numpy and in torch, and its inputs.

    In numpy, `forward` maps inputs by name to (out, cache), and `backward` maps (dout, cache) to gradients by name; it
    is None for a function without gradients. `run` is the same in torch. `wide` means that torch computes in at least
    float32; `kinks`, that a difference quotient may cross a point without a derivative.
    """

    what: str
    inputs: Arrays
    forward: Callable[[Arrays], tuple[np.ndarray, Any]]
    backward: Callable[[np.ndarray, Any], Mapping[str, np.ndarray]] | None
    run: Callable[[dict[str, Tensor], torch.dtype, torch.device], Tensor]
    wide: bool = False
    kinks: bool = False


class Measured(NamedTuple):
    """The part with the largest ratio of relative error to limit, and the location of its largest error."""

    part: str
    error: float
    limit: float
    largest: str = ""

    @property
    def good(self) -> bool:
        # NaN is not within any limit.
        return self.error <= self.limit

    @property
    def severity(self) -> float:
        return self.error / self.limit if math.isfinite(self.error) else math.inf


def differences(case: Case, random: np.random.Generator) -> Measured | None:
    """Numpy's gradients against central differences, one direction per input; None without gradients or with kinks."""
    if case.backward is None or case.kinks:
        return None
    out, cache = case.forward(case.inputs)
    dout = random.normal(size=np.shape(out))
    gradients = dict(case.backward(dout, cache))
    found = []
    for name, gradient in gradients.items():
        direction = random.normal(size=gradient.shape)
        expected = _derivative(case, name, direction, dout)
        size = math.sqrt(max((other**2).sum() for other in _siblings(name, gradients)))
        error = abs((gradient * direction).sum() - expected) / max(size, SMALLEST)
        found.append(Measured(_gradient_of(name), float(error), DIFFERENCE))
    return worst(found)


def _derivative(case: Case, name: str, direction: np.ndarray, dout: np.ndarray) -> float:
    def moved(steps: int) -> float:
        inputs = {**case.inputs, name: case.inputs[name] + steps * STEP * direction}
        return (case.forward(inputs)[0] * dout).sum()

    return (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * STEP)


def against_numpy(case: Case, random: np.random.Generator, name: str = PLAIN) -> Measured:
    """The formula or the fast implementation in torch against numpy, both in float64 on the CPU."""
    dout = random.normal(size=np.shape(case.forward(case.inputs)[0]))
    expected = _by_numpy(case, case.inputs, dout)
    with backend(name):
        actual = _by_torch(case, case.inputs, dout, expected, torch.float64, torch.device("cpu"))
    errors = _errors(actual, expected).items()
    return worst([Measured(part, error, EXACT, largest) for part, (error, largest) in errors])


def here(case: Case, random: np.random.Generator, dtype: torch.dtype, device: torch.device) -> Measured:
    """Torch in this dtype on this device against numpy in float64, on inputs rounded to the dtype."""
    inputs, dout, expected = _rounded_inputs(case, random, dtype)
    actual = _by_torch(case, inputs, dout, expected, dtype, device)
    ulp = torch.finfo(dtype).eps
    inside = torch.finfo(torch.promote_types(dtype, torch.float32)).eps if case.wide else ulp
    nearby = {name: _perturbed(array, inside, random) for name, array in inputs.items()}
    moved = _errors(_by_numpy(case, nearby, _perturbed(dout, inside, random)), expected)
    errors = _errors(actual, expected).items()
    return worst([Measured(part, error, FACTOR * (ulp + moved[part][0]), largest) for part, (error, largest) in errors])


def by_ratio(
    case: Case, random: np.random.Generator, dtype: torch.dtype, device: torch.device, name: str = TRITON
) -> Measured | None:
    """The kernel compared with the fast implementation, or the fast one with the formula, by their errors to numpy.

    The limit is twice the error of the simpler one plus 4 ulp for the kernel, or 8 ulp for the fast implementation,
    which accumulates in this dtype in another order. None if no kernel was called. New memory is filled with NaN, so
    that elements which a kernel does not write are found.
    """
    inputs, dout, expected = _rounded_inputs(case, random, dtype)
    with backend(FAST if name == TRITON else PLAIN):
        simpler = _errors(_by_torch(case, inputs, dout, expected, dtype, device), expected)
    with backend(name), _poisoned_memory(), OurKernels() as kernels:
        errors = _errors(_by_torch(case, inputs, dout, expected, dtype, device), expected)
    if name == TRITON and not kernels.seen:
        return None
    limit = (4 if name == TRITON else FACTOR) * torch.finfo(dtype).eps
    found = ((part, error, 2 * simpler[part][0] + limit, largest) for part, (error, largest) in errors.items())
    return worst([Measured(*one) for one in found])


def _rounded_inputs(case: Case, random: np.random.Generator, dtype: torch.dtype) -> tuple[Arrays, np.ndarray, Arrays]:
    """Inputs and a gradient of the output, rounded to the dtype, and numpy's results for them."""
    inputs = {name: _rounded(array, dtype) for name, array in case.inputs.items()}
    dout = _rounded(random.normal(size=np.shape(case.forward(inputs)[0])), dtype)
    return inputs, dout, _by_numpy(case, inputs, dout)


class OurKernels(TorchDispatchMode):
    """Records the operations of minillm that torch dispatches."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "minillm":
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """torch fills new memory with NaN in deterministic mode."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def worst(measured: list[Measured]) -> Measured:
    return max(measured, key=lambda one: one.severity)


def _by_numpy(case: Case, inputs: Arrays, dout: np.ndarray) -> Arrays:
    """The output and the gradients, by their names in reports."""
    out, cache = case.forward(inputs)
    gradients = {} if case.backward is None else case.backward(dout, cache)
    return {OUTPUT: np.asarray(out, np.float64)} | {
        _gradient_of(name): gradient for name, gradient in gradients.items()
    }


def _by_torch(
    case: Case, inputs: Arrays, dout: np.ndarray, expected: Arrays, dtype: torch.dtype, device: torch.device
) -> Arrays:
    """The parts of `expected`, computed by torch; NaN for a gradient that torch does not compute."""
    tensors = {name: _tensor(array, dtype, device) for name, array in inputs.items()}
    trained = {_gradient_of(name): tensor for name, tensor in tensors.items() if _gradient_of(name) in expected}
    for tensor in trained.values():
        tensor.requires_grad_()
    out = case.run(tensors, dtype, device)
    gradients = dict.fromkeys(trained)
    if out.requires_grad and tuple(out.shape) == np.shape(dout):
        given = _tensor(dout, out.dtype, device)
        gradients = dict(
            zip(trained, torch.autograd.grad(out, [*trained.values()], given, allow_unused=True), strict=True)
        )
    return {part: _array(found) for part, found in {OUTPUT: out, **gradients}.items()}


def _tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    # Cast on the CPU: not every device has float64.
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).to(device)


def _array(tensor: Tensor | None) -> np.ndarray:
    """A gradient that torch did not compute is NaN."""
    return np.array(np.nan) if tensor is None else tensor.detach().to("cpu", torch.float64).numpy()


def _rounded(array: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    tensor = torch.from_numpy(np.array(array))
    return tensor.to(dtype).double().numpy() if tensor.is_floating_point() else array


def _perturbed(array: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    return np.asarray(array * (1 + share * random.choice((-1.0, 1.0), array.shape)))


def _errors(actual: Arrays, expected: Arrays) -> dict[str, tuple[float, str]]:
    """The relative error of each part and its location; the gradients of one layer share one scale."""
    return {
        part: relative_error(actual[part], array, max(np.abs(one).max(initial=0) for one in _siblings(part, expected)))
        for part, array in expected.items()
    }


def relative_error(actual: np.ndarray, expected: np.ndarray, size: float) -> tuple[float, str]:
    """The largest error relative to `size`, and the two numbers there; infinite for different shapes."""
    if actual.shape != expected.shape:
        return math.inf, f", the shape is {actual.shape} instead of {expected.shape}"
    if not expected.size:
        return 0.0, ""
    errors = np.abs(actual - expected)
    place = np.unravel_index(errors.argmax(), errors.shape)
    largest = f", largest at {[int(axis) for axis in place]}: {actual[place]:#.3g} instead of {expected[place]:#.3g}"
    return float(errors[place] / max(size, SMALLEST)), largest


def _siblings(name: str, parts: Arrays) -> list[np.ndarray]:
    """The part and those of the same layer: `key.weight` for `key.bias`, whose gradient may be exactly 0."""
    parent, dot, _ = name.rpartition(".")
    return [array for other, array in parts.items() if other == name or (dot and other.rpartition(".")[0] == parent)]


def _gradient_of(name: str) -> str:
    return f"the gradient of {name}"
