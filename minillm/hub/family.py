"""A family of models as a table: which setting of config.json or GGUF metadata is which field of DecoderConfig."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, get_origin

from minillm.config import DecoderConfig
from minillm.errors import InputError

Settings = dict[str, Any]
KINDS = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string", list: "a list",
         dict: "an object"}  # fmt: skip


class Part(NamedTuple):
    """Fields that are not one setting under another name: how they are read, given the fields so far, and written.

    `names` are the settings that `read` looks at.
    """

    names: tuple[str, ...]
    read: Callable[[Settings, Mapping[str, Any]], dict[str, Any]]
    write: Callable[[DecoderConfig], Settings]


@dataclass(frozen=True)
class Family:
    """`names` maps settings (config.json, GGUF metadata) to fields of DecoderConfig.

    `choices` are the fields that the family fixes, `defaults` the values of missing settings (or functions of the
    fields so far), `fixed` the allowed values of other settings, of which the first is written, and `parts` the fields
    that need more than a name.
    """

    model_type: str
    architecture: str | None
    choices: Mapping[str, Any]
    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, tuple[Any, ...]]
    parts: tuple[Part, ...] = ()

    @property
    def known(self) -> list[str]:
        """The names of all settings that are read."""
        return [*self.names, *(name for part in self.parts for name in part.names)]


def fields_of(settings: Settings, family: Family) -> dict[str, Any]:
    """The fields of DecoderConfig in the settings. Raises InputError for a missing one and for one of another type."""
    kinds = {entry.name: entry.type for entry in fields(DecoderConfig)}
    found: dict[str, Any] = {}
    for theirs, mine in family.names.items():
        if settings.get(theirs) is None and mine not in family.defaults:
            raise InputError(f"the configuration lacks {theirs}")
        default = family.defaults.get(mine)
        kind = str if get_origin(kinds[mine]) is not None else kinds[mine]
        found[mine] = taken(settings, theirs, kind, default(found) if callable(default) else default)
    for part in family.parts:
        found |= part.read(settings, found)
    return {"kv_heads": found["heads"], **found, **family.choices}


def config_of(settings: Settings, family: Family) -> DecoderConfig:
    return DecoderConfig(**fields_of(settings, family))


def taken(settings: Settings, name: str, kind: Any, default: Any = None) -> Any:
    """A setting of this type, or the default if it is missing or null; an integer is accepted for a float."""
    value = settings.get(name)
    if value is None:
        return default
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise InputError(f"{name} must be {KINDS[kind]}, got {value!r}")
    return value


def as_written(config: DecoderConfig, family: Family) -> Settings | None:
    """The settings of a decoder of this family; None if they would describe another decoder."""
    fixed = {name: values[0] for name, values in family.fixed.items() if values[0] is not None}
    named = {theirs: getattr(config, mine) for theirs, mine in family.names.items()}
    architectures = {"architectures": [family.architecture]} if family.architecture else {}
    settings = {"model_type": family.model_type, **architectures, **fixed, **named}
    for part in family.parts:
        settings |= part.write(config)
    try:
        return settings if config_of(settings, family) == config else None
    except InputError:
        return None
