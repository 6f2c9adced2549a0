"""Our GPU kernels next to torch and Liger: check first, then time, relative to the limits of the GPU.

Before anything is timed, every kernel is compared with numpy, and at the timed sizes with torch in a wider precision.
Then the sides take turns, timed by CUDA events. The share is that of the memory bandwidth or matrix-product rate
measured in the same run. Needs a CUDA device and triton; `minillm check --kernels` checks the kernels without a GPU.
With `--write` minillm chooses its implementations by the result.
"""

import json
import statistics
import time
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.sides import run
from minillm.errors import InputError
from minillm.runtime.progress import progress

if TYPE_CHECKING:
    from benchmarks.kernel_timing import Timed
    from benchmarks.kernel_works import Work

PACKAGES = ("minillm", "torch", "triton", "liger-kernel")
COLUMNS = ("side", "median", "achieved", "share", "times", "in single rounds", "off by")
UNITS = {"FLOP": ("TFLOP/s", 1e12), "B": ("GB/s", 1e9)}


def measure(works: "Sequence[Work]", clock: Any, rounds: int, minutes: float) -> "tuple[list[Timed], list[str]]":
    """Times every work whose operation has a kernel, until the time is up; also returns the works left out."""
    from benchmarks.kernel_timing import asked_sizes, timed

    found: list[Timed] = []
    late: list[str] = []
    end = time.monotonic() + 60 * minutes
    asked = [(work, sizes) for work in works if (sizes := asked_sizes(work)) is not None]
    for work, sizes in progress(asked, desc="timing", unit="work"):
        if time.monotonic() > end:
            late.append(work.title)
        else:
            found += timed(work, sizes, clock, rounds)
    return found, late


def ceiling(timed: "Timed", ceilings: dict[str, float]) -> float:
    """The limit of this work on this GPU: bytes/s of a copy, or FLOP/s of products in its precision."""
    return ceilings["copy" if timed.work.unit == "B" else str(timed.work.dtype).removeprefix("torch.")]


def table(timed: "Timed", ceilings: dict[str, float]) -> str:
    """A line for each side; `times` is its speedup over torch."""
    rows = [COLUMNS, *_cells(timed, ceilings)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    left_out = [f"{name} is left out: {why}" for name, why in timed.missing.items()]
    return "\n".join([timed.comparison.title, lines[0], "-" * len(lines[0]), *lines[1:], *_overheads(timed), *left_out])


def _overheads(timed: "Timed") -> Iterable[str]:
    """The times of minillm and torch relative to each yardstick."""
    medians = {rounds.side: statistics.median(rounds.seconds) for rounds in timed.comparison.rounds}
    for name in timed.yardsticks:
        if name in medians:
            ours, torchs = (medians[side] / medians[name] for side in ("minillm", "torch"))
            yield f"next to {name}: minillm takes {ours:.2f} times as long, torch {torchs:.2f}"


def _cells(timed: "Timed", ceilings: dict[str, float]) -> Iterable[tuple[str, ...]]:
    unit, size = UNITS[timed.work.unit]
    for rounds, ratio in zip(timed.comparison.rounds, timed.comparison.ratios(), strict=True):
        rate = statistics.median(rounds.rates)
        errors = timed.comparison.errors.get(rounds.side)
        yield (
            rounds.side,
            f"{statistics.median(rounds.seconds) * 1e6:,.1f} µs",
            # A yardstick does less than the whole work.
            "-" if rounds.side in timed.yardsticks else f"{rate / size:,.1f} {unit}",
            "-" if rounds.side in timed.yardsticks else f"{rate / ceiling(timed, ceilings):.0%}",
            f"{ratio.of_medians:.2f}",
            f"{ratio.lowest:.2f} to {ratio.highest:.2f}",
            f"{max(errors.values()):.0e}" if errors else "-",
        )


def described(found: "Sequence[Timed]", **about: Any) -> dict[str, Any]:
    """All measurements, for the JSON file."""
    works = [
        {
            "operation": timed.work.operation, "dtype": str(timed.work.dtype).removeprefix("torch."),
            "sizes": list(timed.sizes), "pass": timed.which, "left_out": timed.missing,
            **timed.comparison.as_json(),
        }
        for timed in found
    ]  # fmt: skip
    return {"date": date.today().isoformat(), "versions": _versions(), **about, "works": works}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def rows(found: "Sequence[Timed]", gpu: str) -> list[dict[str, Any]]:
    """The table by which `operations` chooses: our kernel's lowest speedup over torch by operation, dtype and sizes.

    The lowest of both passes and of all works with these sizes, so that a chosen kernel is slower in none.
    """
    least: dict[tuple, float] = {}
    for timed in found:
        key = timed.work.operation, str(timed.work.dtype).removeprefix("torch."), timed.sizes
        least[key] = min(timed.speedup, least.get(key, float("inf")))
    return [
        {"gpu": gpu, "operation": operation, "dtype": dtype, "sizes": list(sizes), "speedup": round(times, 3)}
        for (operation, dtype, sizes), times in least.items()
    ]


def write_rows(path: Path, measured: list[dict[str, Any]]) -> None:
    """Replaces the lines of these operations on this GPU in the file."""
    from minillm.lab.measure_kernels import replaced
    from minillm.runtime.files import write_text

    found = replaced(json.loads(path.read_text("utf-8")), measured)
    write_text(path, "[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")


def main(rounds: int = 30, minutes: float = 7.0, write: bool = False, json: Path | None = None) -> None:
    """Check and time every kernel.

    Args:
        rounds: Runs of each side per work.
        minutes: No work starts after this time.
        write: Write the speedups to minillm/kernels/measured.json.
        json: Write every round of every side here.
    """
    import torch

    from minillm.operations import TRITON, backend

    if rounds < 1:
        raise InputError(f"rounds must be at least 1, got {rounds}")
    if not torch.cuda.is_available():
        raise InputError(
            "timing kernels needs a CUDA device, none was found; `minillm check --kernels` checks them without one"
        )
    with backend(TRITON):  # raises where triton is not installed
        pass
    _measure_here(rounds, minutes, write, json)


def _measure_here(rounds: int, minutes: float, write: bool, path: Path | None) -> None:
    import torch

    from benchmarks.gpu_clock import CudaClock, ceilings
    from benchmarks.kernel_timing import check_against_numpy
    from benchmarks.kernel_works import works
    from minillm import kernels
    from minillm.runtime.files import write_text

    device = torch.device("cuda", torch.cuda.current_device())
    gpu, start = torch.cuda.get_device_properties(device).name, time.monotonic()
    errors, clock = check_against_numpy(device), CudaClock(device)
    best = ceilings(clock, rounds)
    found, late = measure(works(), clock, rounds, minutes - (time.monotonic() - start) / 60)
    for timed in found:
        print(table(timed, best), end="\n\n")
    print(f"{gpu}: a copy {best['copy'] / 1e9:,.0f} GB/s, products {best['bfloat16'] / 1e12:,.0f} TFLOP/s in bfloat16")
    for title in late:
        print(f"not timed, the time was up: {title}")
    if path is not None:
        whole = described(found, gpu=gpu, seconds=time.monotonic() - start, ceilings=best, errors=errors, late=late)
        write_text(path, json.dumps(whole, indent=2) + "\n")
    if write:
        write_rows(Path(kernels.__path__[0]) / "measured.json", rows(found, gpu))


if __name__ == "__main__":
    run(main, __doc__)
