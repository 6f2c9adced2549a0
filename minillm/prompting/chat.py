"""`minillm chat`: a conversation in the terminal, or one turn per line of the input."""

import json
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from minillm.adapters.family import BASE, Family
from minillm.adapters.load import load_named
from minillm.errors import InputError, one_sentence, unknown
from minillm.generation import GenerationOptions
from minillm.hub.options import BaseOptions
from minillm.prompting.chat_session import ChatSession
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.files import write_text
from minillm.runtime.interrupts import CtrlC, ctrl_c_repeated
from minillm.runtime.options import Directories, RunOptions
from minillm.runtime.progress import note
from minillm.runtime.reading import read_text, reading
from minillm.tokenizer import Tokenizer

HELP = """\
/reset          start a new conversation; the system message stays
/undo           remove the last message and its answer
/system TEXT    set the system message; without TEXT, remove it
/adapter NAME   let this adapter answer from now on; base is the model without one
/save FILE      append the conversation to a .jsonl file, for `minillm adapt --data FILE`
/help           list the commands and the adapters
/exit           end the program, as Ctrl-D does"""
STOPPED = "stopped; the message and its answer are not part of the conversation"


@dataclass(kw_only=True)
class Chat(RunOptions, GenerationOptions, BaseOptions):
    """Talk to a model, with or without adapters. A line is a message, or a command such as /help.

    Ctrl-C stops an answer; its turn is then not part of the conversation. Input from a file or a pipe is answered line
    by line. With --json, a line is a text, {"content": TEXT} or {"messages": [...]} in JSON.

    Example: minillm chat --temperature 0.7
    """

    adapter: Directories = ()
    """Adapters of this base, of which the first one answers. Repeat the option for each."""
    json: bool = False
    """Read and write one JSON object per line."""

    def run(self) -> None:
        self.check()
        keep_freed_memory()
        use_threads(self.threads)
        terminal = Terminal(*self._load(), self)
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # the tokenizer refuses bytes that are no text
        with suppress(EOFError):
            if self.json:
                terminal.answer_json()
            elif sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
                terminal.talk()
            else:
                for line in sys.stdin or ():
                    terminal.take(line.strip())

    def _load(self) -> tuple[Family, Tokenizer]:
        """The base with its adapters, by the names of their directories, and the tokenizer."""
        decoder, tokenizer = self.load_base()
        if tokenizer is None or not tokenizer.stop:
            raise InputError(f"{self.base} has no {'end token' if tokenizer else 'tokenizer'}, which a chat needs")
        decoder.to(pick_device(self.device))
        members = load_named(decoder, self.adapter, tokenizer)
        for directory, (_, member) in zip(self.adapter, members, strict=True):
            if (usage := member.usage).labels is not None:
                raise InputError(f"{directory} was trained to give labels; use `minillm predict {directory}`")
            if usage.prompt not in (None, "{text}"):
                note(f"{directory} was trained with the prompt {usage.prompt!r}, which `minillm generate` applies")
        if tokenizer.chat_template is None and not any(member.usage.chat for _, member in members):
            raise InputError(f"{self.base} has no chat template: use `minillm generate`, or an adapter of chats")
        return Family(decoder, dict(members)), tokenizer


class Terminal:
    """The input and output of a conversation with a family of models, one of which, `name`, answers."""

    def __init__(self, family: Family, tokenizer: Tokenizer, options: Chat):
        self.family, self.name = family, next(iter(family.methods), BASE)
        self.session = ChatSession(family[self.name], tokenizer, options, options.seed)

    def talk(self) -> None:
        """A conversation in a terminal."""
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401, gives `input` line editing and history
        note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the program")
        with ctrl_c_repeated():
            while True:
                line = ""
                try:
                    line = input(f"{self.name}> ").strip()
                    self.take(line)
                except EOFError:
                    print()
                    return
                except CtrlC:
                    note(f"\n{STOPPED if line else '/exit or Ctrl-D ends the program'}")
                except (InputError, MemoryError, OSError, RuntimeError) as error:
                    if (sentence := one_sentence(error)) is None:
                        raise
                    print(sentence, file=sys.stderr)

    def take(self, line: str) -> None:
        """Answer a message, or carry out a command. Raises EOFError for /exit."""
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            self.command(name, rest.strip())
            note(f"{self.name} answers; {len(self.session.messages)} messages")
        elif line:
            for piece in self.session.answer(line):
                print(piece, end="", flush=True)
            print(flush=True)
            if self.session.last["finish_reason"] == "length":
                note("the answer was cut: --max-new-tokens, or the end of the context")

    def command(self, name: str, rest: str) -> None:
        match name:
            case "/reset":
                self.session.reset()
            case "/undo":
                self.session.undo()
            case "/system":
                self.session.system(rest)
            case "/adapter":
                self.session.use(self.family[rest])
                self.name = rest
            case "/save":
                save(self.session.messages, Path(rest).expanduser())
            case "/help":
                print(f"{HELP}\nadapters: {', '.join([BASE, *self.family.methods])}", file=sys.stderr)
            case "/exit":
                raise EOFError
            case _:
                raise unknown("command", name, re.findall("^/\\w+", HELP, re.M))

    def answer_json(self) -> None:
        """One object per line of the input: an answer, or {"error": ...}; then the exit code is 2."""
        failed = False
        for line in filter(str.strip, sys.stdin or ()):
            try:
                with reading(Path("the line"), "JSON"):
                    request = json.loads(line)
                reply = self._reply(request)
            except InputError as error:
                reply, failed = {"error": str(error)}, True
            print(json.dumps(reply), flush=True)
        if failed:
            sys.exit(2)

    def _reply(self, request: Any) -> dict[str, Any]:
        if isinstance(request, str):
            request = {"content": request}
        if not isinstance(request, dict) or request.keys() not in ({"content"}, {"messages"}):
            raise InputError('a line must be a text, {"content": TEXT} or {"messages": [...]}')
        new = {"role": "user", "content": request.get("content")}
        messages = request.get("messages", [*self.session.messages, new])
        if not messages or not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise InputError("messages must be objects, each with a text as its role and as its content")
        content = "".join(self.session.complete(messages))
        return {"role": "assistant", "content": content, **self.session.last}


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(part), str) for part in ("role", "content"))


def save(messages: list[dict[str, str]], path: Path) -> None:
    """Append the messages to a file of JSON lines. Raises InputError for another file, and without an answer."""
    if path.suffix != ".jsonl":
        raise InputError(f"/save needs a .jsonl file, got {str(path)!r}")
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError("there is no answer to save yet")
    before = read_text(path).rstrip("\n") + "\n" if path.exists() else ""
    write_text(path, before.lstrip("\n") + json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
