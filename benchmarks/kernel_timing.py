"""One operation by all sides: checked against a wider precision, then timed, the sides taking turns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.comparison import Comparison, Rounds
from benchmarks.gpu_clock import Call
from benchmarks.kernel_works import Draw, Run, Work
from minillm import operations
from minillm.errors import InputError
from minillm.lab.check import find_config, shrunk
from minillm.lab.check_operations import operation_cases
from minillm.lab.trust import Measured, by_ratio
from minillm.operations import FAST, TRITON, backend

OURS, REFERENCE = "minillm", "torch"
PASSES = ("forward", "forward + backward")
CONFIG = "smollm2-135m"

Parts = dict[str, Tensor]


@dataclass
class Timed:
    """A pass of a work: rounds and errors of all sides, the sizes that choose the kernel, and the sides that failed."""

    work: Work
    which: str
    sizes: tuple[int, ...]
    comparison: Comparison
    yardsticks: Sequence[str]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        """Of our kernel over torch."""
        ratios = zip(self.comparison.rounds, self.comparison.ratios(), strict=True)
        return next(ratio.of_medians for rounds, ratio in ratios if rounds.side == OURS)


class _Asked(Exception):
    def __init__(self, sizes: tuple[int, ...]):
        self.sizes = sizes


def asked_sizes(work: Work) -> tuple[int, ...] | None:
    """The sizes that the operation passes to `by_kernel`, recorded by a mock; None if it has no kernel."""

    def listen(operation: str, tensor: Tensor, sizes: Callable[[], tuple[int, ...]]) -> bool:
        assert operation == work.operation, f"{work.operation} asks for the kernel of {operation}"
        raise _Asked(sizes())

    with mock.patch.object(operations, "by_kernel", listen):
        try:
            work.run(**work.arguments(Draw(torch.device("meta"), work.dtype)))
        except _Asked as question:
            return question.sizes
    return None


def check_against_numpy(device: torch.device) -> dict[str, dict[str, float]]:
    """The error of every kernel at small sizes against numpy, by dtype. Raises InputError for a wrong kernel."""
    errors: dict[str, dict[str, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        random = np.random.default_rng(0)
        for case in operation_cases(shrunk(find_config(CONFIG)), random):
            found = by_ratio(case, random, dtype, device)
            if found is not None:
                _refuse(case.what, str(dtype), found)
                here = errors.setdefault(str(dtype).removeprefix("torch."), {})
                here[case.what] = max(found.error, here.get(case.what, 0.0))
    return errors


def _refuse(what: str, dtype: str, found: Measured) -> None:
    if not found.good:
        raise InputError(
            f"the kernel of {what} is wrong in {dtype.removeprefix('torch.')}: {found.part} has a "
            f"relative error of {found.error:.1e}, at most {found.limit:.1e} is allowed; it is not timed"
        )


def sides_of(work: Work) -> dict[str, Run]:
    """Our kernel, torch's implementation, the peers and the yardsticks."""

    def by(name: str) -> Run:
        def run(**arguments: Any) -> Any:
            with backend(name):
                return work.run(**arguments)

        return run

    return {OURS: by(TRITON), REFERENCE: by(FAST), **work.peers, **work.yardsticks}


def tensors(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors by name, including those of a prefix."""
    found: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, tuple):
            fields = zip(value._fields, value, strict=True)  # pyright: ignore[reportAttributeAccessIssue]
            found |= {f"{name}.{part}": tensor for part, tensor in fields if tensor is not None}
    return found


def trained(arguments: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors(arguments).items() if tensor.requires_grad}


def outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def computed(run: Run, arguments: dict[str, Any], douts: Sequence[Tensor]) -> Parts:
    """The outputs and every gradient, by name."""
    outs, wanted = outputs(run(**arguments)), trained(arguments)
    given = [dout.to(out.dtype) for dout, out in zip(douts, outs, strict=True)]
    gradients = torch.autograd.grad(outs, list(wanted.values()), given, allow_unused=True)
    # A yardstick does not use all inputs.
    found = {name: gradient for name, gradient in zip(wanted, gradients, strict=True) if gradient is not None}
    return {f"output {place}": out.detach() for place, out in enumerate(outs)} | found


def output_gradients(run: Run, arguments: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [torch.randn_like(out) for out in outputs(run(**arguments))]


def errors(found: Parts, expected: Parts) -> dict[str, float]:
    """The relative error of each part."""
    return {
        name: ((found[name].to(right.dtype) - right).abs().max() / right.abs().max()).item()
        for name, right in expected.items()
    }


def widened(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    def wide(value: Any) -> Any:
        if isinstance(value, tuple):
            return type(value)(*map(wide, value))  # pyright: ignore[reportCallIssue]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.detach().to(dtype).requires_grad_(value.requires_grad)

    return {name: wide(value) for name, value in arguments.items()}


def checked(work: Work, arguments: dict[str, Any], missing: dict[str, str]) -> dict[str, dict[str, float]]:
    """Each side's errors at this size, against torch in the next wider precision on the same device.

    Raises InputError if that of our kernel exceeds twice torch's and 4 ulp. A side that fails goes to `missing`.
    """
    sides = sides_of(work)
    douts = output_gradients(sides[REFERENCE], arguments)
    dtype = torch.float64 if work.dtype == torch.float32 else torch.float32
    expected = computed(sides[REFERENCE], widened(arguments, dtype), douts)
    found: dict[str, dict[str, float]] = {}
    for name, run in sides.items():
        try:
            parts = computed(run, arguments, douts)
        except Exception as problem:
            if name in (OURS, REFERENCE):
                raise
            missing[name] = f"{type(problem).__name__}: {problem}".splitlines()[0]
            continue
        if name not in work.yardsticks:
            found[name] = errors(parts, expected)
    allowed = 4 * torch.finfo(work.dtype).eps
    for part, error in found[OURS].items():
        _refuse(work.title, str(work.dtype), Measured(part, error, 2 * found[REFERENCE][part] + allowed))
    return found


def input_sets(work: Work, device: torch.device, cache_bytes: int, rounds: int) -> list[dict[str, Any]]:
    """Enough inputs that none is still in the GPU's cache when it is used again."""
    first = work.arguments(Draw(device, work.dtype))
    size = sum(tensor.nbytes for tensor in tensors(first).values())
    count = min(max(2, 1 + -(-2 * cache_bytes // size)), max(rounds, 2))
    return [first, *(work.arguments(Draw(device, work.dtype, seed)) for seed in range(1, count))]


def timed(work: Work, sizes: tuple[int, ...], clock: Any, rounds: int) -> Iterator[Timed]:
    """The forward pass of a work, then forward and backward."""
    sets, missing = input_sets(work, clock.device, clock.cache_bytes, rounds), {}
    found = checked(work, sets[0], missing)
    sides = {name: run for name, run in sides_of(work).items() if name not in missing}
    largest = {name: {"all": max(parts.values())} for name, parts in found.items()}
    for which, calls_of, cost in zip(PASSES, (forward_calls, both_calls), (work.cost[0], sum(work.cost)), strict=True):
        seconds = clock.in_turns({name: calls_of(run, sets) for name, run in sides.items()}, rounds)
        results = [Rounds(name, amounts=[cost] * rounds, seconds=seconds[name]) for name in sides]
        comparison = Comparison(f"{work.title}: {which}", work.unit, REFERENCE, results, largest)
        yield Timed(work, which, sizes, comparison, list(work.yardsticks), missing)


def forward_calls(run: Run, sets: Sequence[dict[str, Any]]) -> list[Call]:
    """Forward passes without gradients."""

    def call(arguments: dict[str, Any]) -> Callable[[], Any]:
        @torch.no_grad()
        def forward() -> None:
            run(**arguments)

        return forward

    return [call(arguments) for arguments in sets]


def both_calls(run: Run, sets: Sequence[dict[str, Any]]) -> list[Call]:
    def call(arguments: dict[str, Any]) -> Callable[[], Any]:
        douts, wanted = output_gradients(run, arguments), list(trained(arguments).values())

        def both() -> None:
            torch.autograd.grad(outputs(run(**arguments)), wanted, douts, allow_unused=True)

        return both

    return [call(arguments) for arguments in sets]
