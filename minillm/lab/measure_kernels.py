"""`minillm check --kernels --measure`: which kernels are faster than torch on this GPU, at the sizes of the config?

Each operation with a kernel is timed next to torch for few, more and many tokens, without and with its backward pass.
The lower of the two speedups is written to the user's cache, and from then on `operations` chooses by it.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minillm import operations
from minillm.config import DecoderConfig
from minillm.lab.report import aligned
from minillm.operations import FAST, TRITON, Prefix, asked, backend
from minillm.runtime.cache import SPEEDUPS_FORMAT, kernel_speedups
from minillm.runtime.files import write_text
from minillm.runtime.progress import progress
from minillm.runtime.reading import read_sealed, sealed

BATCHES = (1, 128), (4, 512), (8, 2048)
"""Rows, and tokens of a row."""
PROMPT, RANK, ADAPTERS = 16, 16, 4
SECONDS = 150.0
"""No work starts later."""
COLUMNS = "operation", "sizes", "kernel", "torch", "speedup", "chosen"
Clock = Callable[[Callable[[], Any]], float]


def measure(
    config: DecoderConfig, dtype: torch.dtype, device: torch.device, gpu: str, clock: Clock, seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """The speedup of each kernel over torch at each size, by the seconds that `clock` measures for a call."""
    rows, end = list[dict[str, Any]](), time.monotonic() + seconds
    for batch, tokens in BATCHES:
        sized = works(config, batch, min(tokens, config.context_length), dtype, device)
        with suppress(torch.OutOfMemoryError):  # fewer tokens decide
            for operation, arguments in progress(sized, desc=f"timing kernels, {batch * tokens} tokens", unit="work"):
                if time.monotonic() > end:
                    return rows
                found = _timed(partial(getattr(operations, operation), **arguments), arguments, clock)
                rows.append({"gpu": gpu, "operation": operation, "dtype": str(dtype).removeprefix("torch."), **found})
    return rows


def _timed(run: Callable[[], Tensor], arguments: Mapping[str, Any], clock: Clock) -> dict[str, Any]:
    """The sizes by which `operations` chooses, the lower speedup of both passes, and their seconds."""
    parts = [part for value in arguments.values() for part in (value if isinstance(value, tuple) else (value,))]
    trained = [part for part in parts if isinstance(part, Tensor) and part.requires_grad]
    with backend(TRITON), asked() as sizes:
        dout = torch.randn_like(run())

    def both() -> None:
        torch.autograd.grad(run(), trained, dout)

    seconds = dict[str, list[float]]()
    for name in (TRITON, FAST):
        with backend(name):
            seconds[name] = [clock(torch.no_grad()(run)), clock(both)]
    speedup = min(theirs / ours for ours, theirs in zip(seconds[TRITON], seconds[FAST], strict=True))
    return {"sizes": list(sizes[0]), "speedup": speedup, "seconds": seconds}


def works(
    config: DecoderConfig, batch: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each operation that has a kernel, with arguments from a normal distribution."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device).requires_grad_()

    def matrix(*shape: int) -> Tensor:
        """Its products with a normal input are normal too."""
        return (normal(*shape).detach() / math.sqrt(shape[-1])).requires_grad_()

    def integers(end: int, count: int) -> Tensor:
        return torch.randint(end, (count,), device=device)

    width, inner, vocabulary, head = config.width, config.feed_forward_width, config.vocabulary, config.head_width
    hidden, rows, prompt = (batch, tokens, width), batch * tokens, (1, config.kv_heads, PROMPT, head)
    keys = batch, config.kv_heads, tokens, head
    norm = {"weight": normal(width), "eps": config.norm_eps}
    yield "rms_norm", {"hidden": normal(*hidden), **norm}
    yield "layer_norm", {"hidden": normal(*hidden), "bias": normal(width), **norm}
    angles = torch.rand(tokens, (head + 1) // 2, dtype=dtype, device=device)
    vectors = normal(batch, config.heads, tokens, 2 * angles.shape[-1])
    yield "rotary", {"vectors": vectors, "cos": angles.cos(), "sin": angles.sin()}
    attention = {"query": normal(batch, config.heads, tokens, head), "key": normal(*keys), "value": normal(*keys)}
    yield "attention", attention
    yield "attention", attention | {"prefix": Prefix(normal(*prompt), normal(*prompt))}
    yield "gelu", {"up": normal(batch, tokens, inner)}
    yield "swiglu", {"gate": normal(batch, tokens, inner), "up": normal(batch, tokens, inner)}
    head_of = {"hidden": normal(rows, width), "weight": matrix(vocabulary, width)}
    yield "linear_cross_entropy", head_of | {"labels": integers(vocabulary, rows)}
    linear = {"x": normal(*hidden), "weight": matrix(width, width).detach(), "bias": None}
    yield "lora", linear | {"a": matrix(RANK, width), "b": matrix(width, RANK), "scale": 2.0}
    by_row = {"a": matrix(ADAPTERS, RANK, width), "b": matrix(ADAPTERS, width, RANK)}
    yield "lora_by_row", linear | by_row | {"adapter": integers(ADAPTERS, batch)}


def write(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows to the user's file."""
    path = kernel_speedups()
    before = read_sealed(path, SPEEDUPS_FORMAT)["rows"] if path.exists() else []
    write_text(path, sealed({"format": SPEEDUPS_FORMAT, "rows": replaced(before, rows)}))


def replaced(before: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows, after those of other GPUs, operations and dtypes."""
    again = {(row["gpu"], row["operation"], row["dtype"]) for row in rows}
    return [*(row for row in before if (row["gpu"], row["operation"], row["dtype"]) not in again), *rows]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds with the backward pass, the lower speedup of both passes, and what `operations` chooses."""
    return aligned([COLUMNS, *(_cells(row) for row in rows)], left=2, least=COLUMNS[2:4])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    times = (f"{1e3 * row['seconds'][name][1]:.3f} ms" for name in (TRITON, FAST))
    sizes = " x ".join(map(str, row["sizes"]))
    return row["operation"], sizes, *times, f"{row['speedup']:.2f}", "kernel" if row["speedup"] > 1 else "torch"
