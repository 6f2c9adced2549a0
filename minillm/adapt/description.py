"""The format of an adapter: a directory with adapter.safetensors, its tensors, and adapter.json, their description.

adapter.json names the adapter's base by the sha256 of each of its weights, and each of the adapter's own tensors too. A
tensor that is a trained copy of one of the base's weights is stored as their exact difference (`runtime/delta.py`).
adapter.json ends with the sha256 of all the rest, so that a flipped bit or an edit of an option is detected too.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.config import DecoderConfig
from minillm.errors import InputError

DESCRIPTION, TENSORS = "adapter.json", "adapter.safetensors"
FORMAT = 1
LICENSE = "only the difference to its base is in this directory; with the base, the base's license holds"
LONGEST = 32 * 2**20
# What a decoder computes with its weights. Its sizes show in them; dropout and the context's length may differ.
COMPUTES = ("norm", "norm_first", "positions", "feed_forward", "heads", "kv_heads", "rope_theta", "norm_eps")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
}
"""The dtypes of an adapter's tensors: numbers, and the integers of labels."""


@dataclass(frozen=True)
class Description:
    """The content of adapter.json.

    `base` and `tensors` map the names of the base's weights and of the adapter's tensors to their sha256; `computes`
    holds the base's choices besides its weights. `differences` maps the tensors that are stored as a difference to the
    base's weight to the dtypes of that weight and of the tensor.
    """

    method: str
    options: dict[str, Any]
    computes: dict[str, Any]
    base: dict[str, Any]
    tensors: dict[str, Any]
    differences: dict[str, Any]
    tokenizer: str | None
    minillm: str
    license: str = LICENSE
    format: int = FORMAT

    def seal(self) -> str:
        """A sha256 over all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        return json.dumps({**asdict(self), "sha256": self.seal()}, indent=1) + "\n"


def computes(config: DecoderConfig) -> dict[str, Any]:
    """A base's choices besides its weights."""
    return {name: getattr(config, name) for name in COMPUTES}


def check_finite(state: Mapping[str, Tensor], whose: str) -> None:
    """Raises InputError for NaN and infinite numbers, naming the tensor."""
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise InputError(f"{whose} has numbers in {name} that are not finite: nothing was learnt"[:500])


def describe(directory: str | Path) -> Description:
    """The description in a directory's adapter.json, which needs no base.

    Raises InputError where it is missing, damaged, edited, of another format, or no strict JSON of modest size.
    """
    path = Path(directory) / DESCRIPTION
    try:
        if path.stat().st_size > LONGEST:
            raise InputError(f"{path} has {path.stat().st_size} bytes; up to {LONGEST} are read")
        text = path.read_text("utf-8")
    except OSError as problem:
        raise InputError(f"{directory} is no adapter: {DESCRIPTION} cannot be read ({problem.strerror})") from None
    except ValueError:
        raise InputError(f"{path} is not UTF-8") from None
    try:
        return _description(path, text)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise InputError(f"{path} does not describe an adapter: {type(problem).__name__}: {problem}"[:500]) from None


def _description(path: Path, text: str) -> Description:
    found = json.loads(
        text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_number, parse_constant=_refused
    )
    if type(found["format"]) is not int or found["format"] != FORMAT:
        raise InputError(f"{path} has the format {found['format']!r}; this minillm reads {FORMAT}"[:500])
    seal = found.pop("sha256")
    description = Description(**found)
    if description.seal() != seal:
        raise InputError(f"{path} was damaged or edited after it was written: its sha256 says so")
    kinds = {"format": int, "method": str, "minillm": str, "license": str, "tokenizer": (str, type(None))}
    for field in fields(Description):
        if not isinstance(found[field.name], kinds.get(field.name, dict)):
            raise InputError(f"{path} has {field.name} = {found[field.name]!r}, which is of the wrong type"[:500])
    for name, casts in description.differences.items():
        if not isinstance(casts, list) or len(casts) != 2 or not all(isinstance(c, str) and c in DTYPES for c in casts):
            raise InputError(f"{path} has the difference {name} in {casts!r}; a pair of dtypes is needed"[:500])
    return description


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _integer(digits: str) -> int:
    # Python needs quadratic time for long ones.
    if len(digits) > 20:
        raise ValueError(f"it has an integer of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError("it has a number beyond the largest")
    return number


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
