"""adapter.json: what an adapter is and whose, in JSON that is read as strictly as it is written.

It ends with the sha256 of all the rest, so that a flipped bit in an option is seen too. Whoever edits it by hand has
made another description, and `load` says so.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from minillm.errors import InputError

DESCRIPTION = "adapter.json"
FORMAT = 1
LICENSE = "only the difference to its base is in this directory; with the base, the base's license holds"
LONGEST = 32 * 2**20
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
}
"""What an adapter's tensors can be: numbers, and the integers that labels are."""


@dataclass(frozen=True)
class Description:
    """What adapter.json says.

    `base` and `tensors` map the names of the base's weights and of the adapter's tensors to their sha256, `computes`
    the base's choices beside its weights. `differences` names the tensors that are stored as a difference to the
    base's weight, and the dtypes of that weight and of the tensor.
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


def describe(directory: str | Path) -> Description:
    """What a directory's adapter.json says, without the base.

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
