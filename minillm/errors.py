"""The exception that minillm raises for wrong input."""

import difflib
import math
import os
import re
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

OTHER_NAMES = {
    "rank": "r", "lora_r": "r", "lora_alpha": "alpha", "target_modules": "targets", "modules": "targets",
    "lora_dropout": "dropout", "use_rslora": "rank_stabilised", "rank_pattern": "ranks", "alpha_pattern": "alphas",
    "bias": "train_bias", "num_virtual_tokens": "length", "virtual_tokens": "length", "length": "virtual_tokens",
    "encoder_hidden_size": "hidden", "num_labels": "classes", "lr": "learning_rate", "bs": "batch_size",
    "per_device_train_batch_size": "batch_size", "num_train_epochs": "epochs", "model": "base",
    "model_name_or_path": "base", "output": "out", "output_dir": "out", "max_tokens": "max_new_tokens", "gpu": "cuda",
}  # fmt: skip
"""Names of arguments and options in other libraries, and the names here."""
THREADS_PER_CPU = 8
"""Far more threads than CPUs exhaust the system's memory and end the process."""


class InputError(ValueError):
    """Wrong input. The message names the wrong value, what is allowed and what to do; a command prints it and exits
    with code 2."""


def check_at_least(least: int, **numbers: int | None) -> None:
    """Raises InputError for a number below the least one; None is not checked."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise InputError(f"{name} must be at least {least}, got {number}")


def one_sentence(problem: BaseException) -> str | None:
    """What to tell a user about wrong input, a lost process, and files, memory or operations that are refused."""
    if isinstance(problem, InputError | ConnectionAbortedError):
        return str(problem)
    if isinstance(problem, OSError) and problem.filename:
        return f"{problem.filename}: {problem.strerror}"
    if isinstance(problem, MemoryError) or re.search("out of memory|can't allocate memory", str(problem)):
        size = re.search(r"allocate ([\d.]+ \w+)", str(problem))
        return f"not enough memory{f' for {size[1]}' if size else ''}; use a smaller model, batch or text"
    return _failed_operation(problem) if isinstance(problem, (RuntimeError, TypeError)) else None


def _failed_operation(error: RuntimeError | TypeError) -> str | None:
    """What an accelerator cannot do, and where it was asked to; None for an error that is not an accelerator's."""
    reason = str(error).strip().partition("\n")[0]
    if not re.search(r"\b(CUDA|MPS|Metal|cuBLAS|cuDNN|HIP)\b", reason):
        return None
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "minillm" in Path(frame.filename).parts]
    place = f" in {own[-1].name} ({Path(own[-1].filename).name})" if own else ""
    return f"the accelerator failed{place}: {reason}; --device cpu computes without it"


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that torch does not accept, or that it treats like another seed."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be an integer in [0, 2^63 - 1], got {seed}")


def check_threads(count: int) -> None:
    """Raises InputError for a number of CPU threads below 1 or far above the number of CPUs."""
    most = THREADS_PER_CPU * (os.cpu_count() or 1)
    if not 1 <= count <= most:
        raise InputError(f"threads must be at least 1 and at most {most}, got {count}")


def check_temperature(temperature: float, *, vote: bool = False) -> None:
    """Raises InputError for NaN, for infinity and below 0; for a majority vote, which needs samples, also for 0."""
    if not 0 <= temperature < math.inf or (vote and temperature == 0):
        least = "above 0 for a majority vote" if vote else "of at least 0 (0: greedy)"
        raise InputError(f"temperature must be a finite number {least}, got {temperature}")


def similar(name: str, known: Sequence[str]) -> list[str]:
    """The known names that may be meant: what another library calls so, else those with this word, else the nearest."""
    word = name.strip("-")
    other = OTHER_NAMES.get(word.replace("-", "_"))
    near = [one for one in known if one.strip("-").replace("-", "_") == other]
    near = near or [one for one in known if word in one.strip("-").replace("_", "-").split("-")]
    return near or difflib.get_close_matches(name, known, 1)


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the most similar one if there is one, else with all that exist."""
    known = list(known)
    near = similar(name, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known) or 'none'}"
    return InputError(f"unknown {what}: {name!r}; {hint}")
