"""The command line: which commands there are, and what becomes of errors. Wrong input is one sentence, exit code 2."""

import os
import sys

import tyro

from minillm.commands.adapt import adapt
from minillm.commands.adapter import ADAPTER_COMMANDS
from minillm.commands.export import export
from minillm.commands.generate import generate
from minillm.commands.lab import LAB_COMMANDS
from minillm.commands.ladder import ladder
from minillm.commands.pretrain import pretrain
from minillm.commands.prompt import prompt
from minillm.commands.pull import pull
from minillm.errors import InputError
from minillm.lab.check import Check

INTERRUPTED = 130
DESCRIPTION = "Read, check and do the adaptation of language models. `minillm COMMAND --help` says more of each."


def adapter() -> None:
    """What one does with adapter files: inspect, diff, verify, merge, extract, resize, export-peft, import-peft."""


def lab() -> None:
    """Experiments from nothing, without a download: juggler."""


COMMANDS = {
    "pull": pull, "generate": generate, "prompt": prompt, "adapt": adapt, "adapter": adapter, "ladder": ladder,
    "check": Check, "pretrain": pretrain, "export": export, "lab": lab,
}  # fmt: skip
GROUPS = {"adapter": (ADAPTER_COMMANDS, adapter.__doc__), "lab": (LAB_COMMANDS, lab.__doc__)}
"""Commands that have commands of their own."""


def main() -> None:
    """The entry point: exit code 0, 2 for wrong use or bad input, 130 for an interrupt."""
    words = sys.argv[1:]
    try:
        if words and words[0] in GROUPS:
            commands, described = GROUPS[words[0]]
            tyro.extras.subcommand_cli_from_dict(
                commands, prog=f"minillm {words[0]}", description=described, args=words[1:]
            )
        else:
            command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="minillm", description=DESCRIPTION)
            if command is not None:
                command.run()
    except InputError as error:
        print(f"minillm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nminillm: interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left; there is no one to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # A full disk, a directory that may not be written to: the system's own words for what no check foresaw.
        print(f"minillm: {error}", file=sys.stderr)
        sys.exit(2)
