"""One option of a command: its name on the command line and in a file, and its values there."""

import math
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from tyro.conf import Positional
from tyro.constructors import PrimitiveConstructorSpec

from minillm.errors import InputError, unknown

KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("an integer", (int,)),
    float: ("a finite number", (float, int)),
    tuple: ("a list of texts", (list,)),
    Path: ("a path", (str,)),
    str: ("a text", (str,)),
}
"""The types of options, and what JSON has for them."""
POSITIONAL = get_args(Positional[str])[1]


class Option:
    """A field of a command, by its name and its type."""

    def __init__(self, name: str, hint: Any):
        parts, metadata = _parts(hint), getattr(hint, "__metadata__", ())
        named = next(filter(None, (getattr(one, "name", None) for one in metadata)), name)
        self.positional = POSITIONAL in metadata
        self.flag = name.upper() if self.positional else f"--{named.replace('_', '-')}"
        self.key = named.replace("-", "_")
        self.choices = tuple(part for part in parts if isinstance(part, str))  # the values of a Literal
        self.optional = NoneType in parts
        self.kind: Any = next((kind for kind in KINDS if kind in parts), str)
        self.spec = next((part for part in parts if isinstance(part, PrimitiveConstructorSpec)), None)
        self.repeats = self.kind is tuple and self.spec is None
        self.item = Path if Path in parts else str

    def from_word(self, word: str) -> Any:
        """The value from the command line. Raises InputError for a wrong one."""
        self._check_choice(self.flag, word)
        if self.spec is not None:
            return self.spec.instance_from_str([word])
        if self.kind is bool or self.repeats:
            return True if self.kind is bool else (self.item(word),)
        try:
            value = self.kind(word)
            if self.kind in (int, float) and not math.isfinite(value):
                raise ValueError
        except (ValueError, OverflowError):
            raise InputError(f"{self.flag} must be {KINDS[self.kind][0]}, got {word!r}") from None
        return value

    def from_json(self, value: Any) -> Any:
        """The value from a file. Raises InputError for a wrong one."""
        if self.optional and isinstance(value, NoneType):
            return None
        allowed, types = KINDS[self.kind]
        if type(value) not in types or (self.kind is tuple and not all(isinstance(one, str) for one in value)):
            raise InputError(f"{self.key} must be {allowed}, got {value!r}"[:300])
        self._check_choice(self.key, value)
        return tuple(map(self.item, value)) if self.kind is tuple else self.kind(value)

    def _check_choice(self, name: str, value: Any) -> None:
        if self.choices and value not in self.choices:
            raise unknown(f"value for {name}", value, self.choices)


def options_of(command: type) -> dict[str, Option]:
    """The options of a command by the names of their fields."""
    return {name: Option(name, hint) for name, hint in get_type_hints(command, include_extras=True).items()}


def _parts(hint: Any) -> list[Any]:
    """A type, and the types and the values in it at any depth."""
    return [get_origin(hint) or hint, *(part for inner in get_args(hint) for part in _parts(inner))]
