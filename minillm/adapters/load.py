"""Loading an adapter (the format: `adapt/description.py`) onto its base, strictly.

The base must be the adapter's own: the sha256 of each weight is compared. So is that of each tensor of the adapter, to
detect damage. The adapter's effect on a probe is measured and printed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.adapt import METHODS
from minillm.adapt.description import DESCRIPTION, DTYPES, TENSORS, Description, Usage, computes, describe, most_bytes
from minillm.adapt.method import Adaptation
from minillm.adapters.effect import effect, report
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.runtime.delta import decode
from minillm.runtime.fingerprint import base_fingerprint, tensor_fingerprint
from minillm.runtime.finite import check_finite
from minillm.runtime.progress import note
from minillm.runtime.reading import open_tensors, reading
from minillm.tokenizer import Tokenizer

MOST = 4096
"""An integer option may always be up to this."""


def load(
    decoder: Decoder, directory: str | Path, *, allow_noop: bool = False, tokenizer: Tokenizer | None = None
) -> Adaptation:
    """The saved method on its base, in evaluation mode; one line on standard error reports its effect.

    Raises InputError for another base (naming the first weight that differs), another tokenizer, anything damaged,
    missing or misshapen, and for an adapter that changes no logit of the probe, unless `allow_noop`.
    """
    directory = Path(directory)
    description = describe(directory)
    if tokenizer is not None and description.tokenizer not in (None, tokenizer.fingerprint):
        raise InputError(f"{directory} was trained with another tokenizer than that of {_named(decoder)}")
    _check_base(directory, description, decoder)
    state = _state(directory, description, decoder)
    with reading(directory, description.method):
        method = _rebuilt(description, decoder, state).eval()
        found = effect(method, decoder)
    if not math.isfinite(found.size):
        raise InputError(f"{directory} gives NaN or infinite logits")
    if found.size == 0 and not allow_noop:
        raise InputError(f"{directory} has no effect: no logit of the probe changes; pass allow_noop=True to load it")
    method.usage = Usage(**{field.name: getattr(description, field.name) for field in fields(Usage)})
    note(f"{directory}: {report(method, found)}")
    return method


def load_named(decoder: Decoder, directories: Sequence[Path], tokenizer: Tokenizer) -> list[tuple[str, Adaptation]]:
    """Adapters with the names, or if two are equal the paths, of their directories. Raises InputError as `load`."""
    names = [directory.resolve().name for directory in directories]
    names = names if len(set(names)) == len(names) else map(str, directories)
    return [(name, load(decoder, one, tokenizer=tokenizer)) for name, one in zip(names, directories, strict=True)]


def _rebuilt(description: Description, decoder: Decoder, state: Mapping[str, Tensor]) -> Adaptation:
    known = {method.__name__: method for method in METHODS}
    if description.method not in known:
        raise InputError(f"method must be one of {', '.join(known)}, got {description.method!r}"[:500])
    axes = [axis for tensor in (*decoder.parameters(), *state.values()) for axis in tensor.shape]
    for name, value in description.options.items():
        if (largest := _largest(value)) > (most := max(MOST, *axes)):
            raise InputError(f"the option {name} must be at most {most} for this base, got {largest}"[:500])
    return known[description.method].from_state(decoder, description.options, state)


def _largest(option: Any) -> int:
    """The largest integer in an option, at any depth: it may be a size that is allocated."""
    inner = option.values() if isinstance(option, dict) else option if isinstance(option, list) else ()
    return max((_largest(part) for part in inner), default=option if isinstance(option, int) else 0)


def _check_base(directory: Path, description: Description, decoder: Decoder) -> None:
    """Raises InputError for another base, naming the first difference."""
    ours, theirs = computes(decoder.config), description.computes
    for name in {**ours, **theirs}:
        if (there := theirs.get(name)) != (here := ours.get(name)):
            raise InputError(f"{directory} belongs to another base: its {name} is {there!r}, this decoder's {here!r}")
    here, there = base_fingerprint(dict(decoder.named_parameters()), decoder.source), description.base
    different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if different:
        first = different[0]
        where = "this decoder" if first in here else "the adapter's base"
        how = "differs" if first in here and first in there else f"is only in {where}"
        raise InputError(
            f"{directory} belongs to another base: {first} {how} ({len(different)} of {len(here)} weights differ from "
            f"{_named(decoder)})"
        )


def _named(decoder: Decoder) -> str:
    return f"{decoder.source.path or 'this base'}; give the adapter's own base, in commands with --base"


def _state(directory: Path, description: Description, decoder: Decoder) -> dict[str, Tensor]:
    """The tensors as they were saved, each checked by its sha256; sizes are checked before anything is read."""
    path, base = directory / TENSORS, _Base(decoder)
    most = most_bytes(decoder)
    if path.is_file() and (size := path.stat().st_size) > most:
        raise InputError(f"{path} must have at most {most} bytes for this base, got {size}")
    with open_tensors(path) as file:
        if odd := sorted(set(file.keys()) ^ description.tensors.keys()):
            raise InputError(f"the tensor {odd[0]} is only in one of {path} and {DESCRIPTION}"[:500])
        state = {name: _proved(path, name, file.get_tensor(name), description, base) for name in description.tensors}
    check_finite(state, str(path))
    return state


class _Base:
    """A base's weights: the present values and, since these may be a cast, the values in the base's file, if any."""

    def __init__(self, decoder: Decoder):
        self.present, self.source = dict(decoder.named_parameters(remove_duplicate=False)), decoder.source

    @cached_property
    def loaded(self) -> Mapping[str, Tensor]:
        return {} if self.source.read is None else self.source.read()

    def values(self, name: str) -> Iterator[Tensor]:
        if name not in self.present:
            raise InputError(f"the adapter changes the weight {name}, which this base does not have"[:500])
        yield self.present[name].detach().cpu()
        stored = name if name in self.loaded else "embed.weight"
        if stored in self.loaded:
            yield self.loaded[stored]


def _proved(path: Path, name: str, stored: Tensor, description: Description, base: _Base) -> Tensor:
    """The tensor, checked by its sha256; restored from its difference to the base where that was stored."""
    expected = description.tensors[name]
    if name not in description.differences:
        if stored.dtype not in DTYPES.values():
            raise InputError(f"{path}: {name} must be one of {', '.join(DTYPES)}, got {stored.dtype}"[:500])
        if tensor_fingerprint(stored) != expected:
            raise InputError(f"{path} is damaged: the sha256 of {name} differs"[:500])
        return stored
    if stored.dtype != torch.uint8 or stored.dim() != 1:
        raise InputError(f"{path}: the difference {name} must be uint8 with one axis, got {stored.dtype}"[:500])
    base_dtype, dtype = (DTYPES[cast] for cast in description.differences[name])
    for weight in base.values(name):
        restored = decode(stored, weight.to(base_dtype).to(dtype))
        if tensor_fingerprint(restored) == expected:
            return restored
    raise InputError(
        f"{path} is damaged, or this base was cast to a dtype too narrow to restore {name} from its difference: "
        f"load the adapter onto the base in {base_dtype}, then cast the method"
    )
