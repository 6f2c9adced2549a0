"""From the command line to a command: the types and the groups of options, and the parser.

A command is a dataclass: its fields are the options, `run` uses them, and the JSON output holds them. Each base class
is a group of options in `--help`: `TrainingOptions` is shown as "Training options".
"""

import math
import re
import shlex
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from inspect import getdoc
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Positional
from tyro.constructors import PrimitiveConstructorSpec

from minillm.errors import InputError, check_seed, check_threads, unknown

__all__ = ["Directories", "Directory", "File", "Model", "Names", "Positional", "RunOptions", "Text", "flag", "parse"]

Command = TypeVar("Command")
Directory = Annotated[Path, tyro.conf.arg(metavar="DIR")]
Directories = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR"), tyro.conf.UseAppendAction]
File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Model = Annotated[str, tyro.conf.arg(metavar="MODEL")]

Names = Annotated[
    tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B",
        instance_from_str=lambda words: tuple(name.strip() for name in words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda names: [",".join(names)],
    ),
]
"""Names, separated by commas."""

Text = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="TEXT",
        instance_from_str=lambda words: re.sub(r"\\(\\?[nt])", lambda found: ESCAPES.get(found[1], found[1]), words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda text: [text.replace("\n", "\\n")],
    ),
]
r"""A text in which \n is a newline, \t a tab, and \\n a backslash and an n."""

ESCAPES = {"n": "\n", "t": "\t"}
METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
POSITIONAL = get_args(Positional[str])[1]


@dataclass(kw_only=True)
class RunOptions:
    """Options of every command that computes."""

    seed: int = 0
    """The random seed."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """The device; auto chooses a GPU if there is one."""
    threads: int | None = None
    """The number of CPU threads; one per core if not given."""

    @property
    def command_line(self) -> str | None:
        """The command line that these options were parsed from, if they were."""
        return vars(self).get("_command_line")

    def __post_init__(self):
        check_seed(self.seed)
        if self.threads is not None:
            check_threads(self.threads)


def parse(command: type[Command], program: str, words: list[str]) -> Command:
    """The command with the options of the command line. Raises InputError for an unknown option or value."""
    _check(command, words)
    parts = {part.__name__.removesuffix("Options"): _group(part) for part in command.__mro__ if is_dataclass(part)}
    groups = make_dataclass(command.__name__, parts.items())
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    parsed = tyro.cli(groups, prog=program, description=getdoc(command), args=words, config=config)
    found = command(
        **{option.name: getattr(part, option.name) for part in vars(parsed).values() for option in fields(part)}
    )
    vars(found)["_command_line"] = shlex.join([*program.split(), *words])
    return found


def _group(part: type) -> type:
    """A dataclass of the fields that a class itself declares. By its module and name tyro finds their docstrings."""
    names, hints = vars(part).get("__annotations__", {}), get_type_hints(part, include_extras=True)
    copied = {*names, "__module__", "__qualname__", "__firstlineno__"}
    body = {name: value for name, value in vars(part).items() if name in copied}
    body["__annotations__"] = {name: _shown(name, hints[name], body.get(name, ...)) for name in names}
    return dataclass(kw_only=True)(type(part.__name__, (), body))


def _shown(name: str, hint: Any, default: Any) -> Any:
    """Help shows the names of positional arguments, and "(optional)" instead of the default None."""
    if _is_positional(hint):
        return Annotated[hint, tyro.conf.arg(metavar=name.upper())]
    if default is not None:
        return Annotated[str, tyro.conf.arg(metavar="TEXT")] if hint is str else hint
    inner = hint if hasattr(hint, "__metadata__") else next(part for part in get_args(hint) if part is not NoneType)
    choices = "{" + ",".join(_choices(inner)) + "}" if _choices(inner) else None
    metavar = choices or METAVARS.get(inner) or inner.__metadata__[0].metavar
    return Annotated[hint, tyro.conf.arg(metavar=metavar, help_behavior_hint="(optional)")]


def _is_positional(hint: Any) -> bool:
    return POSITIONAL in getattr(hint, "__metadata__", ())


def _choices(hint: Any) -> tuple[str, ...]:
    """The values of a Literal, which may be optional or positional."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((found for part in get_args(hint) if (found := _choices(part))), ())


def _check(command: type, words: list[str]) -> None:
    """Raises InputError for an option or a value that does not exist, with the most similar one."""
    hints = get_type_hints(command, include_extras=True)
    positional = iter([name for name, hint in hints.items() if _is_positional(hint)])
    options = {flag(name, hint): name for name, hint in hints.items() if not _is_positional(hint)}
    rest, ended = iter(words), False
    for word in rest:
        start, given, value = word.partition("=")
        start = start.replace("_", "-")
        if word == "--" and not ended:
            ended = True
            continue
        if start in options and not ended:
            name = options[start]
            value = value if given or hints[name] is bool else next(rest, None)
            if value is None or (value.startswith("--") and not given):
                raise InputError(f"{start} needs a value")
        elif ended or not word.startswith("-"):
            name, value = next(positional, None), word
            if name is None:
                raise InputError(f"unexpected argument: {word!r}; put a text with spaces in quotes")
        elif word not in ("-h", "--help") and not word.startswith("--tyro-"):
            raise unknown("option", start, options)
        else:
            continue
        shown = flag(name, hints[name]) if name in options.values() else name.upper()
        if (choices := _choices(hints[name])) and value not in choices:
            raise unknown(f"value for {shown}", value, choices)
        for kind, allowed in ((int, "an integer"), (float, "a finite number")):
            if kind in _parts(hints[name]) and not _is_number(value, kind):
                raise InputError(f"{shown} must be {allowed}, got {value!r}")


def _parts(hint: Any) -> list[Any]:
    """A type, and the types in it at any depth."""
    return [hint, *(part for inner in get_args(hint) for part in _parts(inner))]


def _is_number(word: str, kind: type) -> bool:
    try:
        return math.isfinite(kind(word))
    except (ValueError, OverflowError):
        return False


def flag(name: str, hint: Any) -> str:
    """The option of a field on the command line."""
    given = [getattr(setting, "name", None) for setting in getattr(hint, "__metadata__", ())]
    return "--" + next(filter(None, given), name).replace("_", "-")
