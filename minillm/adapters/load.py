"""Adapter files: a directory with `adapter.safetensors`, the tensors, and `adapter.json`, what they are and whose.

An adapter belongs to one base, which is named by the sha256 of each of its weights; onto another it is not loaded. The
sha256 of every tensor of its own is kept too, so that no damage passes for an adapter. A tensor that is a trained copy
of one of the base's is stored as their exact difference (`delta.py`). adapter.json is written last: a directory
without it is no adapter.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import minillm
from minillm.adapt.description import DESCRIPTION, DTYPES, Description, describe
from minillm.adapt.method import Adaptation
from minillm.adapters.effect import effect, report
from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.runtime.delta import decode, encode
from minillm.runtime.files import replacing
from minillm.runtime.fingerprint import base_fingerprint, tensor_fingerprint
from minillm.tokenizer import Tokenizer

TENSORS = "adapter.safetensors"
# What a decoder computes with its weights. Its sizes show in them; dropout and the context's length may differ.
COMPUTES = ("norm", "norm_first", "positions", "feed_forward", "heads", "kv_heads", "rope_theta", "norm_eps")
# Bytes beyond those of the base that an adapter may have, and a whole number that an option may have in any case.
SLACK, MOST = 64 * 2**20, 4096
Failures = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError, MemoryError)
"""What Python and torch raise where options or tensors are not what a method expects."""


def save(method: Adaptation, directory: str | Path, *, tokenizer: Tokenizer | None = None) -> None:
    """Write the adapter's directory, each file whole or not at all. Raises InputError for numbers that are not finite.

    With the tokenizer that the adapter was trained with, `load` can refuse another one.
    """
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state().items()}
    _check_finite(state, "the method")
    packed, differences = {}, {}
    for name, tensor in state.items():
        packed[name], base = tensor, method.base.get(name)
        if base is not None and base.shape == tensor.shape:
            packed[name] = encode(tensor, base.detach().cpu().to(tensor.dtype))
            differences[name] = [_name(base.dtype), _name(tensor.dtype)]
    description = Description(
        method=type(method).__name__,
        options=method.options(),
        computes=_computes(method.config),
        base=base_fingerprint(_distinct(method.base), method.decoder.source),
        tensors={name: tensor_fingerprint(tensor) for name, tensor in state.items()},
        differences=differences,
        tokenizer=None if tokenizer is None else tokenizer.fingerprint,
        minillm=minillm.__version__,
    )
    # Both are on the disk under other names before either is renamed, the description last.
    with replacing(Path(directory) / DESCRIPTION) as described, replacing(Path(directory) / TENSORS) as tensors:
        described.write_text(description.text(), "utf-8")
        save_file(packed, tensors)


def load(
    decoder: Decoder, directory: str | Path, *, allow_noop: bool = False, tokenizer: Tokenizer | None = None
) -> Adaptation:
    """The saved method on its base, in evaluation mode; one line on standard error says what it does there.

    Raises InputError for another base (naming the first weight that differs), another tokenizer, anything damaged,
    missing or misshapen, and for an adapter that changes no logit of the probe, unless `allow_noop`.
    """
    directory = Path(directory)
    description = describe(directory)
    if tokenizer is not None and description.tokenizer not in (None, tokenizer.fingerprint):
        raise InputError(f"{directory} was trained with another tokenizer than this one")
    _check_base(directory, description, decoder)
    state = _state(directory, description, decoder)
    try:
        method = _rebuilt(description, decoder, state).eval()
        found = effect(method, decoder)
    except InputError as problem:
        raise InputError(f"{directory}: {problem}") from None
    except Failures as problem:
        raise InputError(f"{directory}: {description.method} cannot be made of this: {problem}"[:500]) from None
    if not math.isfinite(found.size):
        raise InputError(f"{directory} gives logits that are no finite numbers")
    if found.size == 0 and not allow_noop:
        raise InputError(f"{directory} does nothing: no logit of the probe changes; allow_noop=True loads it as it is")
    print(f"{directory}: {report(method, found)}", file=sys.stderr)
    return method


def _rebuilt(description: Description, decoder: Decoder, state: Mapping[str, Tensor]) -> Adaptation:
    from minillm.adapt import METHODS

    known = {method.__name__: method for method in METHODS}
    if description.method not in known:
        raise InputError(f"there is no method {description.method!r}; there are: {', '.join(known)}"[:500])
    axes = [axis for tensor in (*decoder.parameters(), *state.values()) for axis in tensor.shape]
    for name, value in description.options.items():
        if (largest := _largest(value)) > (most := max(MOST, *axes)):
            raise InputError(f"the option {name} has the number {largest}, and nothing here has more than {most}"[:500])
    return known[description.method].from_state(decoder, description.options, state)


def _largest(option: Any) -> int:
    """Whole numbers in options count what memory is taken for: the largest one, however deep it lies."""
    inner = option.values() if isinstance(option, dict) else option if isinstance(option, list) else ()
    return max((_largest(part) for part in inner), default=option if isinstance(option, int) else 0)


def _check_base(directory: Path, description: Description, decoder: Decoder) -> None:
    """Raises InputError that names the first thing in which this decoder is not the adapter's base."""
    for name, here in _computes(decoder.config).items():
        if (there := description.computes.get(name)) != here:
            raise InputError(f"{directory} belongs to another base: its {name} is {there!r}, and here it is {here!r}")
    here, there = base_fingerprint(dict(decoder.named_parameters()), decoder.source), description.base
    different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if different:
        first = different[0]
        how = "differs" if first in here and first in there else f"is only {'here' if first in here else 'there'}"
        raise InputError(
            f"{directory} belongs to another base: {first} {how} ({len(different)} of {len(here)} weights do not agree)"
        )


def _state(directory: Path, description: Description, decoder: Decoder) -> dict[str, Tensor]:
    """The tensors as they were saved, each proved by its sha256; sizes are looked at before anything is read."""
    from safetensors import SafetensorError, safe_open

    path, base = directory / TENSORS, _Base(decoder)
    try:
        size, most = path.stat().st_size, SLACK + 8 * sum(weight.numel() for weight in decoder.parameters())
        if size > most:
            raise InputError(f"{path} has {size} bytes, and no adapter of this base needs more than {most}")
        with safe_open(str(path), framework="pt") as file:
            if odd := sorted(set(file.keys()) ^ description.tensors.keys()):
                raise InputError(f"{path} and {DESCRIPTION} disagree: the tensor {odd[0]} is only in one of them"[:500])
            state = {
                name: _proved(path, name, file.get_tensor(name), description, base) for name in description.tensors
            }
    except (SafetensorError, OSError) as problem:
        raise InputError(f"{path} cannot be read as safetensors ({problem})"[:500]) from None
    _check_finite(state, str(path))
    return state


class _Base:
    """A base's weights: what they are and, for that may be a cast, what they are in their file, if there is one."""

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
    """The tensor itself, out of the difference to the base if that is what was stored."""
    expected = description.tensors[name]
    if name not in description.differences:
        if stored.dtype not in DTYPES.values():
            raise InputError(f"{path} has {name} as {stored.dtype}; an adapter's tensors are {', '.join(DTYPES)}"[:500])
        if tensor_fingerprint(stored) != expected:
            raise InputError(f"{path} is damaged: {name} is not what its sha256 says"[:500])
        return stored
    if stored.dtype != torch.uint8 or stored.dim() != 1:
        raise InputError(f"{path} has the difference {name} as {stored.dtype}; it is bytes in one axis"[:500])
    base_dtype, dtype = (DTYPES[cast] for cast in description.differences[name])
    for weight in base.values(name):
        restored = decode(stored, weight.to(base_dtype).to(dtype))
        if tensor_fingerprint(restored) == expected:
            return restored
    raise InputError(
        f"{path} is damaged, or this base is a cast that has forgotten too much to restore {name} from its difference: "
        f"adapt the base in {base_dtype}, as it was loaded, and cast the method"
    )


def _check_finite(state: Mapping[str, Tensor], whose: str) -> None:
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise InputError(f"{whose} has numbers in {name} that are not finite: nothing was learnt"[:500])


def _computes(config: DecoderConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in COMPUTES}


def _distinct(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each weight under its first name alone: a tied head is the embedding."""
    names = {}
    for name, weight in weights.items():
        names.setdefault(id(weight), name)
    return {name: weights[name] for name in names.values()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
