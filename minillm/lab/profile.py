"""`minillm profile`: where the time of a training step goes, next to the least time that this machine could need.

Every operation of torch is timed, and its FLOPs and bytes are counted. Its floor is the larger of FLOPs / the rate of
a matrix product and bytes / the rate of a copy, both measured here (the roofline of Williams et al. 2009). Each tensor
counts as read or written once, also if it is still in the cache: a small model can be faster than this floor.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillm.errors import InputError
from minillm.lab.adapt import Adapt
from minillm.lab.plan import flop_counter, measure, part
from minillm.lab.report import aligned
from minillm.operations import linear
from minillm.quantised import Quantised
from minillm.runtime.device import best_precision, keep_freed_memory, pick_device, use_threads
from minillm.runtime.options import Directory
from minillm.training.checkpoints import Checkpoints
from minillm.training.methods import METHODS

BATCHES, COPIED, PATIENCE = 3, 1 << 28, 0.25
"""The measured steps; the bytes of a copy, more than a cache holds; the seconds for each of the machine's rates."""
PRODUCTS, OTHER, ALL = "matrix products", "everything else", "all operations"
GROUPS = {
    PRODUCTS: "mm addmm bmm baddbmm mv addmv linear_pointwise lora",
    "attention": "attention scaled_dot_product flash_attention efficient_attention fused_sdp_choice",
    "norms": "norm native_layer_norm fused_rms_norm mean pow rsqrt",
    "softmax and loss": "softmax log_softmax safe_softmax exp nll_loss gather scatter_add linear_cross_entropy",
    "optimizer": "foreach fused_adamw linalg_vector_norm",
    "products of elements": """add sub mul div neg sum clamp where masked_fill sqrt reciprocal sin cos tanh silu gelu
        relu threshold bitwise ge gt le lt eq ne cumsum feed_forward rotary scaled bernoulli rand""",
    "copies and layout": """to_copy copy clone cat stack embedding index select slice constant_pad_nd roll arange view
        t transpose permute expand split squeeze unsqueeze unbind detach alias unsafe_view lift_fresh scalar_tensor eye
        tril ones zeros full empty new fill zero local_scalar_dense""",
}
"""How the names of torch's operations begin. Sums and all functions of elements count as products; so do those of a
norm, except for its mean, square and root."""
LOOKUPS = ("embedding", "index", "gather")
"""Operations that read only as much as they write."""
COLUMNS = {
    "calls": ("calls", 1), "seconds": ("seconds", 1), "%": ("share", 0.01), "GFLOP": ("flops", 1e9),
    "GB": ("bytes", 1e9), "GFLOP/s": ("flops_per_second", 1e9), "GB/s": ("bytes_per_second", 1e9),
    "floor": ("floor_seconds", 1), "gap": ("gap_seconds", 1),
}  # fmt: skip


@dataclass(kw_only=True)
class Profile(Adapt):
    """Find where the time of a training step goes, with the options of adapt; nothing is saved.

    Example: minillm profile --base tiny --task word_problems --method full
    """

    out: Directory = Path("profile")
    """The directory that adapt would write."""

    def run(self) -> None:
        keep_freed_memory()
        found = profile(self)
        self.show(table(found), found)


class Call(NamedTuple):
    """An operation that ran, and the shape of its output if that is a matrix product with a formula for its FLOPs."""

    name: str
    seconds: float
    flops: int
    bytes: int
    shape: Sequence[int]


class Operations(TorchDispatchMode):
    """Within it every operation of torch is timed and counted, also in the backward pass."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.calls: list[Call] = []
        self.formulas, self.synchronize = flop_counter().flop_registry, torch.get_device_module(device).synchronize

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.synchronize()
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        self.synchronize()
        seconds, packet = time.perf_counter() - start, func.overloadpacket
        flops = self.formulas[packet](*args, **(kwargs or {}), out_val=out) if packet in self.formulas else 0
        shape = out.shape if flops and group(packet.__name__) == PRODUCTS else ()
        self.calls.append(Call(packet.__name__, seconds, flops, moved(func, args, kwargs, out), shape))
        return out


def moved(func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> int:
    """The bytes that an operation reads and writes."""
    name, given = func.overloadpacket.__name__, zip(func._schema.arguments, args, strict=False)
    dequantised = isinstance(args[0], Quantised) and not isinstance(out, Quantised) if args else False
    if (func.is_view and not dequantised) or name == "_unsafe_view" or "empty" in name:
        return 0
    changed = [value for argument, value in given if argument.alias_info and argument.alias_info.is_write]
    read, written = _bytes((args, kwargs)), _bytes(changed or out)
    return 2 * written if name in LOOKUPS else read + written


def _bytes(values: Any) -> int:
    """The memory of all tensors; the repeated rows of an expanded one count once."""
    found = [value.parts if isinstance(value, Quantised) else value for value in tree_leaves(values)]
    tensors = [value for value in tree_leaves(found) if isinstance(value, Tensor)]
    return sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)


@cache
def group(name: str) -> str:
    """The group of an operation: that of the longest beginning of its name."""
    beginnings = {word: of for of, words in GROUPS.items() for word in words.split()}
    found = [word for word in beginnings if f"{name.lstrip('_')}_".startswith(f"{word}_")]
    return beginnings[max(found, key=len)] if found else OTHER


class Enough(Exception):
    """All batches are measured: the training ends."""


@dataclass
class Steps(Checkpoints):
    """In place of the checkpoints of a training. It steps on each batch three times: to warm up, timed as it is
    (`plain`, in seconds), and with all operations timed (`measured`, `calls`)."""

    plain: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def restore(self, loop: Any) -> None:
        self.learner, self.loop, loop.learner = loop.learner, loop, self

    def backward(self, batches: Sequence[Any]) -> float:
        operations = Operations(self.learner.device)
        for mode, seconds in ((nullcontext(), []), (nullcontext(), self.plain), (operations, self.measured)):
            start = time.perf_counter()
            with mode:
                self.learner.backward(batches)
                self.learner.optimizer_step(self.loop.settings.learning_rate)
            operations.synchronize()
            seconds.append(time.perf_counter() - start)
        self.calls += operations.calls
        if len(self.plain) == min(BATCHES, self.loop.steps):
            raise Enough
        return 0.0

    def optimizer_step(self, rate: float) -> None:
        """Taken already."""


def profile(options: Adapt) -> dict[str, Any]:
    """The measurements of a step. Raises InputError for data or options that adapt would refuse."""
    if options.method not in METHODS:
        raise InputError(f"profile measures training steps, which {options.method} does not have")
    threads, device, steps = use_threads(options.threads), pick_device(options.device), Steps(Path())
    with suppress(Enough):
        measure(options, part(options.load_data(), BATCHES * options.batch_size), 1, steps)
    calls, count, precision = steps.calls, len(steps.plain), best_precision(device)
    flops = Counter[Sequence[int]]()
    for call in calls:
        if call.shape:
            size = prod(call.shape)
            flops[size // call.shape[-1], call.shape[-1], call.flops // (2 * size)] += call.flops
    product = flops.most_common(1)[0][0]
    rates = machine(device, product, getattr(torch, precision))
    return {
        "method": options.method, "base": options.base, "batches": count, "device": device.type, "threads": threads,
        "precision": precision, "product": product, "flops_per_second": rates[0], "bytes_per_second": rates[1],
        "step_seconds": sum(steps.plain) / count, "measured_step_seconds": sum(steps.measured) / count,
        "groups": [*grouped(calls, rates, count)],
    }  # fmt: skip


def machine(device: torch.device, shape: Sequence[int], dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a matrix product with so many rows, columns and terms, and bytes/s of a copy of a large tensor."""
    rows, columns, terms = shape
    x, weight = (torch.randn(side, terms, device=device).to(dtype) for side in (rows, columns))
    here, there = torch.zeros(2, COPIED, dtype=torch.uint8, device=device)
    with torch.no_grad():
        product, copy = (fastest(run, device) for run in (lambda: linear(x, weight), lambda: there.copy_(here)))
    return 2 * prod(shape) / product, 2 * COPIED / copy


def fastest(run: Callable[[], Any], device: torch.device) -> float:
    """The seconds of the fastest run, after one that warms up."""
    synchronize, seconds = torch.get_device_module(device).synchronize, []
    while sum(seconds[1:]) < PATIENCE:
        start = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def grouped(calls: Sequence[Call], rates: Sequence[float], steps: int) -> Iterator[dict[str, Any]]:
    """The groups that occur, and all operations, for one step. The floor is the sum of those of the calls."""
    for name in (*GROUPS, OTHER, ALL):
        if within := [call for call in calls if name in (group(call.name), ALL)]:
            seconds, flops, size = (sum(getattr(call, what) for call in within) / steps for what in Call._fields[1:4])
            floor = sum(max(call.flops / rates[0], call.bytes / rates[1]) for call in within) / steps
            yield {
                "group": name, "calls": len(within) / steps, "seconds": seconds, "flops": flops, "bytes": size,
                "share": seconds * steps / sum(call.seconds for call in calls), "flops_per_second": flops / seconds,
                "bytes_per_second": size / seconds, "floor_seconds": floor, "gap_seconds": seconds - floor,
                "names": sorted({call.name for call in within}),
            }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """The rates of the machine, a line for each group and one for all, and where the largest gap is."""
    groups, (rows, columns, terms) = found["groups"], found["product"]
    cells = [[f"{each[key] / unit:.3g}" for key, unit in COLUMNS.values()] for each in groups]
    lines = [("operations", *COLUMNS), *((each["group"], *line) for each, line in zip(groups, cells, strict=True))]
    rest = [f"{OTHER}: {', '.join(each['names'])}" for each in groups if each["group"] == OTHER]
    most = max(groups[:-1], key=lambda each: each["gap_seconds"])
    fast, wide = (f"{found[what] / 1e9:.3g}" for what in ("flops_per_second", "bytes_per_second"))
    place = f"{found['device']}, {found['threads']} threads, {found['precision']}"
    shapes = f"{rows} x {terms} and {terms} x {columns}"
    above = f"{most['gap_seconds']:.3g} s above their floor of {most['floor_seconds']:.3g} s"
    return "\n".join([
        f"{place}: {wide} GB/s in a copy, {fast} GFLOP/s in a product of {shapes}\n",
        aligned(lines, least=("GB/s", "GFLOP/s")), *rest,
        f"\na step takes {found['step_seconds']:.3g} s; with the measurement {found['measured_step_seconds']:.3g} s",
        f"the largest gap is in {most['group']}: in a step, {above}",
    ])  # fmt: skip
