"""From the command line to a command: the types and the groups of options, and the parser.

A command is a dataclass: its fields are the options, `run` uses them, and the JSON output holds them. Each base class
is a group of options in `--help`: `TrainingOptions` is shown as "Training options".
"""

import json
import re
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, fields, is_dataclass, make_dataclass
from inspect import getdoc
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_type_hints

import tyro
from tyro.conf import Positional
from tyro.constructors import PrimitiveConstructorSpec

from minillm.errors import InputError, check_seed, check_threads, unknown
from minillm.runtime.distributed import is_first
from minillm.runtime.files import commit
from minillm.runtime.option import Option, options_of
from minillm.runtime.progress import printing
from minillm.runtime.reading import read_json, reading

__all__ = [
    "Directories", "Directory", "DryRunOptions", "File", "Model", "Names", "Positional", "PrintOptions", "RunOptions",
    "Text",
]  # fmt: skip

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
RUN = "run.json"
"""The options of a run, in the directory of its results. Models have a config.json of Hugging Face's."""


@dataclass(kw_only=True)
class PrintOptions:
    """Options of what is printed."""

    json: bool = False
    """Print the results as one JSON object."""
    quiet: bool = False
    """Print results and errors only: no notes and no progress."""
    verbose: bool = False
    """Also print what is loaded, the precision and why, and the time of each phase."""

    def printing(self) -> AbstractContextManager[None]:
        """Within it, as much is printed as these options say. Raises InputError if they contradict each other."""
        if self.quiet and self.verbose:
            raise InputError("give either --quiet or --verbose, not both")
        return printing("quiet" if self.quiet or not is_first() else "verbose" if self.verbose else "normal")

    def show(self, text: str, results: Mapping[str, Any]) -> None:
        """Print results to stdout: as a text or, with --json, as JSON. Under torchrun the first process prints."""
        if is_first():
            print(json.dumps(results, indent=2, ensure_ascii=False, default=str) if self.json else text)


@dataclass(kw_only=True)
class DryRunOptions(PrintOptions):
    """Options of a dry run."""

    dry_run: bool = False
    """Check the options and the data, print what would run, and write and download nothing."""

    def show_plan(self, planned: Mapping[str, Any]) -> None:
        """Print what would run."""
        lines = []
        for name, value in planned.items():
            sizes = value.items() if isinstance(value, dict) else ()
            lines.append(f"{name}: {', '.join(f'{size} {of}' for of, size in sizes) or value}")
        self.show("\n".join([*lines, "dry run: nothing was trained or written"]), planned)


NO_SETTINGS = ("config", "dry_run", "format", "overwrite", *(option.name for option in fields(PrintOptions)))
"""The options that do not change the results of a run."""


@dataclass(kw_only=True)
class RunOptions(PrintOptions):
    """Options of every command that computes."""

    seed: int = 0
    """The random seed."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """The device; auto chooses a GPU if there is one."""
    threads: int | None = None
    """The number of CPU threads; one per core if not given."""
    config: File | None = None
    """A JSON file of options, such as the run.json of an earlier run; options of the command line take precedence."""

    @property
    def command_line(self) -> str | None:
        """The command line that these options were parsed from, if they were."""
        return vars(self).get("_command_line")

    def __post_init__(self):
        check_seed(self.seed)
        if self.threads is not None:
            check_threads(self.threads)

    def run_file(self) -> str:
        """The content of run.json: the command, and the options that a rerun needs, in JSON's types."""
        options = {
            one.key: getattr(self, name) for name, one in options_of(type(self)).items() if name not in NO_SETTINGS
        }
        return json.dumps({"command": _name(type(self)), **options}, indent=2, default=str) + "\n"

    def save(self, out: Path, name: str, results: str) -> None:
        """Write the results of a run to a file of a directory, together with run.json."""
        with commit(out) as new:
            new.text(name, results + "\n")
            new.text(RUN, self.run_file())


def _name(command: type) -> str:
    """The name of a command: that of its class, unless the class has a `name`."""
    return vars(command).get("name", command.__name__.lower())


def parse(command: type[Command], program: str, words: list[str]) -> Command:
    """The command with the options of the command line, and of the file that --config names.

    Raises InputError for an option that is unknown, wrong or missing.
    """
    options = options_of(command)
    found = _given(command, program, words)
    if RunOptions in command.__mro__ and "config" in found:
        found = _read(command, found["config"]) | found
    for option in fields(cast(Any, command)):
        if option.name not in found and option.default is option.default_factory is MISSING:
            raise InputError(f"{options[option.name].flag} is missing; `{program} --help` lists the options")
    made = command(**found)
    vars(made)["_command_line"] = shlex.join([*program.split(), *words])
    return made


def _read(command: type, path: Path) -> dict[str, Any]:
    """The options of a file by their fields. Raises InputError for one of another command, or with a wrong option."""
    options = {option.key: (name, option) for name, option in options_of(command).items() if name != "config"}
    with reading(path):
        found = read_json(path)
        if (of := found.pop("command", _name(command))) != _name(command):
            raise InputError(f"these are options of the command {of}, not of {_name(command)}")
        if wrong := [key for key in found if key not in options]:
            raise unknown("option", wrong[0], options)
        return {options[key][0]: options[key][1].from_json(value) for key, value in found.items()}


def _help(command: type, program: str) -> None:
    """Print the help, and exit."""
    named, shown = [], set[str]()
    for part in [part for part in command.__mro__ if is_dataclass(part)]:
        named.append((part.__name__.removesuffix("Options"), _group(part, shown)))
        shown.update(vars(part).get("__annotations__", {}))
    groups = make_dataclass(command.__name__, named)
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    tyro.cli(groups, prog=program, description=getdoc(command), args=["--help"], config=config)


def _group(part: type, shown: set[str]) -> type:
    """A dataclass of the fields that a class itself declares and that are not shown yet.

    By its module and name tyro finds their docstrings.
    """
    hints = get_type_hints(part, include_extras=True)
    names = [name for name in vars(part).get("__annotations__", {}) if name not in shown]
    copied = {*names, "__module__", "__qualname__", "__firstlineno__"}
    body = {name: value for name, value in vars(part).items() if name in copied}
    body["__annotations__"] = {name: _shown(name, hints[name], body.get(name, ...)) for name in names}
    return dataclass(kw_only=True)(type(part.__name__, (), body))


def _shown(name: str, hint: Any, default: Any) -> Any:
    """Help shows the names of positional arguments, and "(optional)" instead of the default None."""
    option = Option(name, hint)
    if option.positional:
        return Annotated[hint, tyro.conf.arg(metavar=option.flag)]
    if default is not None:
        return Annotated[str, tyro.conf.arg(metavar="TEXT")] if hint is str else hint
    inner = hint if hasattr(hint, "__metadata__") else next(part for part in get_args(hint) if part is not NoneType)
    choices = "{" + ",".join(option.choices) + "}" if option.choices else None
    metavar = choices or METAVARS.get(inner) or inner.__metadata__[0].metavar
    return Annotated[hint, tyro.conf.arg(metavar=metavar, help_behavior_hint="(optional)")]


def _given(command: type, program: str, words: list[str]) -> dict[str, Any]:
    """The values on the command line, by their fields. Raises InputError for an option or a value that is wrong."""
    options = options_of(command)
    positional = iter([name for name, option in options.items() if option.positional])
    names = {option.flag: name for name, option in options.items() if not option.positional}
    rest, ended, found = iter(words), False, {}
    for word in rest:
        start, given, value = word.partition("=")
        start = start.replace("_", "-")
        if word == "--" and not ended:
            ended = True
            continue
        if start in names and not ended:
            name = names[start]
            if (is_flag := options[name].kind is bool) and given:
                raise InputError(f"{start} takes no value, got {value!r}")
            value = value if given or is_flag else next(rest, None)
            if value is None or (value.startswith("--") and not given):
                raise InputError(f"{start} needs a value")
        elif ended or word == "-" or not word.startswith("-"):
            name, value = next(positional, None), word
            if name is None:
                raise InputError(f"unexpected argument: {word!r}; put a text with spaces in quotes")
        elif word in ("-h", "--help"):
            _help(command, program)
            continue
        else:
            raise unknown("option", start, names)
        value = options[name].from_word(value)
        found[name] = found.get(name, ()) + value if options[name].repeats else value
    return found
