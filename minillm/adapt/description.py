"""The format of an adapter: a directory with adapter.safetensors, its tensors, adapter.json, their description, and
README.md, a model card (`card.py`).

adapter.json has the sha256 of each weight of the base, and of each tensor of the adapter. A tensor that is a trained
copy of one of the base's weights is stored as their exact difference (`runtime/delta.py`). The last entry is the sha256
of all others, which detects a flipped bit or an edited option. Format 1 has no `Usage`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.runtime.files import complete
from minillm.runtime.reading import read_sealed

DESCRIPTION, TENSORS = "adapter.json", "adapter.safetensors"
FORMAT, FORMATS = 2, (1, 2)
LICENSE = "this directory holds only the difference from a base; the base's license applies to the two together"
# The config fields that change the output of the same weights; dropout and context length may differ.
COMPUTES = ("norm", "norm_first", "positions", "feed_forward", "heads", "kv_heads", "rope_theta", "norm_eps")
# Later fields, which older files lack: stored where they are not None and not empty.
LATER = ("rope_scaling", "window", "unrotated_layers")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
"""The dtypes that an adapter's tensors may have."""
KINDS: dict[str, Any] = {
    **dict.fromkeys(("method", "minillm", "license", "end"), str), "format": int, "chat": bool,
    **dict.fromkeys(("tokenizer", "base_name", "prompt", "command"), (str, type(None))), "labels": (list, type(None)),
}  # fmt: skip
"""The types of the fields of adapter.json that are not objects."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How an adapter was trained, and so how it is used; each part is None or empty if it is not known.

    `base_name` is what the base was loaded by. `prompt` is the template of the prompts, with {text}, and `chat` is true
    if the base's chat template was applied to it. `labels` are the answers of a classifier, and `end` is the text at
    which an answer ends. `command` trained the adapter.
    """

    base_name: str | None = None
    prompt: str | None = None
    chat: bool = False
    labels: Sequence[str] | None = None
    end: str = ""
    command: str | None = None


@dataclass(frozen=True, kw_only=True)
class Description(Usage):
    """The content of adapter.json.

    `base` and `tensors` map the names of the base's weights and of the adapter's tensors to their sha256; `computes`
    has the choices of the base's config. `differences` maps each tensor that is stored as a difference to the dtypes of
    the base's weight and of the tensor.
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


def computes(config: DecoderConfig) -> dict[str, Any]:
    """The choices of a base's config that change its output."""
    ours = asdict(config) | {"unrotated_layers": list(config.unrotated_layers)}
    return {name: ours[name] for name in COMPUTES + LATER if name in COMPUTES or ours[name]}


def most_bytes(decoder: Decoder) -> int:
    """The largest size of an adapter's tensors: that of its base in float64, and 64 MiB."""
    return 64 * 2**20 + 8 * sum(weight.numel() for weight in decoder.parameters())


def describe(directory: str | Path) -> Description:
    """The description in a directory's adapter.json, read without the base.

    Raises InputError if it is missing, damaged, edited, of another format, too large or not strict JSON.
    """
    path = Path(directory) / DESCRIPTION
    complete(path.parent)
    if not Path(directory).is_dir():
        raise InputError(f"{directory} is not an adapter: there is no such directory")
    if not path.is_file():
        peft = "; convert it from PEFT's format with `minillm adapter import-peft`"
        hint = peft if (path.parent / "adapter_config.json").exists() else ""
        raise InputError(f"{directory} is not an adapter: it has no file {DESCRIPTION}{hint}")
    found = read_sealed(path, *FORMATS)
    if found["format"] == 1:
        found = asdict(Usage()) | found
    names = {field.name for field in fields(Description)}
    if odd := sorted(found.keys() ^ names):
        raise InputError(f"{path}: the field {odd[0]!r} is {'missing' if odd[0] in names else 'unknown'}"[:500])
    for name, value in found.items():
        if not isinstance(value, KINDS.get(name, dict)):
            raise InputError(f"{path}: the field {name!r} has the wrong type: {value!r}"[:500])
    if not all(isinstance(label, str) for label in found["labels"] or ()):
        raise InputError(f"{path}: the labels must be strings, got {found['labels']!r}"[:500])
    for name, casts in found["differences"].items():
        if not isinstance(casts, list) or len(casts) != 2 or not all(isinstance(c, str) and c in DTYPES for c in casts):
            raise InputError(f"{path}: the difference {name} must have a pair of dtypes, got {casts!r}"[:500])
    return Description(**found)
