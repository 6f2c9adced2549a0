"""`minillm check`: is everything computed correctly in this config, in this dtype, on this device?

For users who changed an operation, or have a new GPU. All operations and the decoder, with and without adapters, are
checked on the rungs of the ladder of trust (`trust.py`), for the architecture of the config in sizes that suit numpy
(`shrunk`). With `--kernels` the GPU kernels are the last rung: on the GPU, or in triton's interpreter.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from minillm import hub
from minillm.config import GPT2_SIZES, LLAMA_SIZES, DecoderConfig
from minillm.errors import InputError
from minillm.lab import measure_kernels
from minillm.lab.check_decoders import decoder_cases
from minillm.lab.check_operations import WINDOW, operation_cases
from minillm.lab.experiment import versions
from minillm.lab.report import aligned
from minillm.lab.trust import Case, Measured, against_numpy, by_ratio, differences, here, worst
from minillm.operations import FAST, KERNEL_DTYPES, TRITON, backend
from minillm.runtime.cache import kernel_speedups
from minillm.runtime.device import pick_device, use_threads
from minillm.runtime.files import check_unused
from minillm.runtime.options import NO_SETTINGS, Directory, Model, RunOptions
from minillm.runtime.progress import progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
LAYERS, WIDTH, VOCABULARY, CONTEXT = 2, 576, 509, 61
"""The largest sizes that are checked."""

FAILED = 1
KERNEL = "kernel"
COLUMNS = ("what", "rung", "largest error", "error", "limit", "verdict")
LEAST = ("largest error", "limit", "error")
Rung = Callable[[Case, np.random.Generator], Measured | None]


@dataclass(kw_only=True)
class Check(RunOptions):
    """Compare all operations and the decoder, with and without adapters, with the numpy reference. About a minute.

    The exit code is 1 if an error is larger than rounding explains.

    Example: minillm check --base tiny --dtype bfloat16
    """

    base: Model = "smollm2-135m"
    """tiny, vaswani, gpt2, gpt2-medium, smollm2-135m, llama-2-7b, ..., or a model that minillm can load."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """The dtype of the torch computation."""
    kernels: bool = False
    """Also check the GPU kernels; without a GPU they run in triton's interpreter."""
    measure: bool = False
    """Time each kernel next to torch, after --kernels has found all of them right, on this GPU, in this dtype and at
    the sizes of the base, in three minutes. From then on minillm uses the faster ones."""
    out: Directory | None = None
    """The directory of check.json; nothing is written if not given."""
    overwrite: bool = False
    """Replace an existing check.json."""

    def __post_init__(self):
        super().__post_init__()
        if self.kernels and DTYPES[self.dtype] not in KERNEL_DTYPES:
            raise InputError(f"the kernels do not support {self.dtype}; check them in float32 or bfloat16")
        if self.measure and not (self.kernels and pick_device(self.device).type == "cuda"):
            raise InputError("--measure times the kernels on a CUDA device, after --kernels has checked them")

    def run(self) -> None:
        """Print a table of all rungs. Exit code 1 if one of them failed."""
        if self.kernels and pick_device(self.device).type != "cuda":
            os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported
        if self.out is not None:
            check_unused(self.out / "check.json", self.overwrite)
        found = check(self)
        text = table(found)
        if "measured" in found:
            text += f"\n\n{measure_kernels.table(found['measured'])}\n\nsaved: {kernel_speedups()}"
        if self.out is not None:
            self.save(self.out, "check.json", json.dumps(found, indent=2))
            text += f"\n\nsaved: {self.out / 'check.json'}"
        self.show(text, found)
        wrong = [f"{row['what']} ({row['rung']}: {row['part']})" for row in failed(found)]
        if wrong:
            print(f"minillm: wrong results: {', '.join(wrong)}", file=sys.stderr)
            sys.exit(FAILED)


def _measured_kernels(config: DecoderConfig, dtype: torch.dtype) -> list[dict[str, Any]]:
    """The rows that the user's cache now has, timed by triton's benchmark, which empties the GPU's cache."""
    from triton.testing import do_bench

    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_properties(device).name

    def clock(call: Callable[[], Any]) -> float:
        milliseconds: Any = do_bench(call, return_mode="median")
        return milliseconds / 1e3

    rows = measure_kernels.measure(config, dtype, device, gpu, clock)
    measure_kernels.write(rows)
    return rows


def presets() -> dict[str, Callable[[], DecoderConfig]]:
    """All configs by name."""
    named = {"tiny": DecoderConfig.tiny, "vaswani": DecoderConfig.vaswani, "gpt2": DecoderConfig.gpt2}
    named |= {f"gpt2-{size}": lambda size=size: DecoderConfig.gpt2(size) for size in GPT2_SIZES if size != "small"}
    return named | {size: lambda size=size: DecoderConfig.llama(size) for size in LLAMA_SIZES}


def find_config(name: str) -> DecoderConfig:
    """The config of a preset, or of a model that `minillm.load` finds. Raises InputError for any other name."""
    if name in presets():
        return presets()[name]()
    try:
        return hub.load(name, allow_nonfinite=True)[0].config
    except InputError as problem:
        raise InputError(f"{problem}; or choose a preset: {', '.join(presets())}") from None


def shrunk(config: DecoderConfig) -> DecoderConfig:
    """The same architecture, head width and queries per key; fewer layers, heads and tokens. Dropout is off."""
    share = max(1, min(config.heads // config.kv_heads, WIDTH // config.head_width))
    kv_heads = max(1, min(config.kv_heads, WIDTH // (share * config.head_width)))
    if config.positions == "sinusoidal" and share * kv_heads * config.head_width % 2:
        kv_heads *= 2
    width = share * kv_heads * config.head_width
    return replace(
        config,
        layers=min(config.layers, LAYERS),
        heads=share * kv_heads,
        kv_heads=kv_heads,
        width=width,
        feed_forward_width=max(1, round(config.feed_forward_width * width / config.width)),
        vocabulary=min(config.vocabulary, VOCABULARY),
        context_length=min(config.context_length, CONTEXT),
        attention_width=None if config.attention_width is None else share * kv_heads * config.head_width,
        window=None if config.window is None else min(config.window, WINDOW),
        unrotated_layers=config.unrotated_layers and (0,),
        dropout=0.0,
    )


def rungs(settings: Check) -> dict[str, Rung]:
    """The rungs by name; the kernels only if they are to be checked."""
    dtype, device = DTYPES[settings.dtype], pick_device(settings.device)
    if device.type == "mps" and dtype == torch.float64:
        raise InputError("mps has no float64; choose float32 or bfloat16")
    found: dict[str, Rung] = {
        "differences": differences,
        "numpy": against_numpy,
        FAST: lambda case, random: against_numpy(case, random, FAST),
        f"{settings.dtype} on {device}": lambda case, random: here(case, random, dtype, device),
    }
    if settings.kernels:
        with backend(TRITON):  # raises InputError here, once, if triton is missing
            found[KERNEL] = lambda case, random: by_ratio(case, random, dtype, device)
    return found


def check(settings: Check) -> dict[str, Any]:
    """Run every rung of every case; the result in JSON's types."""
    start, all_rungs, threads = time.perf_counter(), rungs(settings), use_threads(settings.threads)
    config = find_config(settings.base)
    small = shrunk(config)
    measured: dict[tuple[str, str], list[Measured]] = {}
    # Each rung of each case has a generator of its own, so that the cases are independent.
    seeds = np.random.SeedSequence(settings.seed)
    cases = [*operation_cases(small, _random(seeds)), *decoder_cases(small, _random(seeds))]
    with progress(total=len(cases) * len(all_rungs), desc="checking", unit="rung") as bar:
        for case in cases:
            for name, rung in all_rungs.items():
                bar.set_postfix_str(f"{case.what}, {name}", refresh=False)
                found = _measured(rung, case, _random(seeds))
                if found is not None:
                    measured.setdefault((case.what, name), []).append(found)
                bar.update()
    described = {
        **{name: value for name, value in asdict(settings).items() if name not in ("out", "base", *NO_SETTINGS)},
        "config": settings.base,
        "threads": threads, "versions": versions(), "checked": asdict(small), "of": asdict(config),
        "rows": list(_rows(measured)), "seconds": time.perf_counter() - start,
    }  # fmt: skip
    if settings.measure and not failed(described):
        described["measured"] = _measured_kernels(config, DTYPES[settings.dtype])
    return described


def _measured(rung: Rung, case: Case, random: np.random.Generator) -> Measured | None:
    """An exception is reported as a failure, with infinite error."""
    try:
        return rung(case, random)
    except Exception as problem:
        return Measured(f"{type(problem).__name__}: {problem}".splitlines()[0][:60], np.inf, 0.0)


def _random(seeds: np.random.SeedSequence) -> np.random.Generator:
    return np.random.default_rng(seeds.spawn(1)[0])


def _rows(measured: dict[tuple[str, str], list[Measured]]) -> Iterator[dict[str, Any]]:
    for (what, rung), cases in measured.items():
        found = worst(cases)
        # JSON has no infinity and no NaN.
        error = found.error if np.isfinite(found.error) else None
        yield {
            "what": what, "rung": rung, "part": found.part, "error": error, "limit": found.limit, "good": found.good,
        }  # fmt: skip


def failed(described: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in described["rows"] if not row["good"]]


def table(described: dict[str, Any]) -> str:
    """A description of the config, and one line for each row."""
    rows = aligned([COLUMNS, *(_cells(row) for row in described["rows"])], left=len(COLUMNS), least=LEAST)
    good = len(described["rows"]) - len(failed(described))
    verdict = f"{good} of {len(described['rows'])} ok, in {described['seconds']:.0f} s"
    return f"{_checked(described)}\n\n{rows}\n\n{verdict}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    error = "not finite" if row["error"] is None else f"{row['error']:.1e}"
    return row["what"], row["rung"], row["part"], error, f"{row['limit']:.1e}", "ok" if row["good"] else "FAILED"


def _checked(described: dict[str, Any]) -> str:
    """The config in one line, with the sizes that are smaller here."""
    small, whole = described["checked"], described["of"]
    choices = f"{'pre' if small['norm_first'] else 'post'}-norm ({small['norm']}), {small['positions']} positions"
    sizes = ", ".join(
        f"{name.replace('_', ' ')} {small[name]}" + ("" if small[name] == whole[name] else f" of {whole[name]}")
        for name in ("layers", "width", "heads", "kv_heads", "feed_forward_width", "vocabulary", "context_length")
    )
    return f"{described['config']}: {choices}, {small['feed_forward']}; {sizes}"
