"""`minillm chat`: lines in and answers out, JSON, the commands, adapters, and a terminal with Ctrl-C."""

import copy
import io
import json
import os
import select
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest

from minillm import InputError, adapt, load, save
from minillm.adapt import FineTune, LoRA, SoftPrompt
from minillm.adapt.description import Usage
from minillm.generation import GenerationOptions
from minillm.prompting.chat import Chat, Terminal
from minillm.prompting.chat_session import ChatSession
from tests.adapt.low_rank import moved
from tests.prompting.asked import DECODER, TOKENIZER, answering, tokens_processed

RUN = ("chat", "--device", "cpu", "--threads", "1", "--max-new-tokens", "4")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`film` answers "the film"; `endless` repeats it without an end; `base` is random, and the others are of it."""
    place, film = tmp_path_factory.mktemp("place"), TOKENIZER.encode("the film")
    save(answering(*film, TOKENIZER.eos).float(), TOKENIZER, place / "film")
    save(answering(*film, film[0], context=100_000).float(), TOKENIZER, place / "endless")
    save(copy.deepcopy(DECODER).float(), TOKENIZER, place / "base")
    base = load(place / "base")[0]
    methods = {"lora.1": LoRA(base, r=2), "other/lora.1": LoRA(base, r=3), "soft": SoftPrompt(base, 3)}
    methods |= {"labels": LoRA(base, r=2), "classes": FineTune(base, "output", classes=[3, 4])}
    methods["labels"].usage = Usage(prompt="{text}:", labels=["bad", "good"])
    for name, method in methods.items():
        moved(method).save(place / name, tokenizer=TOKENIZER)
    return place


@pytest.fixture
def chat(command, monkeypatch):
    """The output of `minillm chat` for these lines."""

    def run(lines, *words):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return command(*RUN, *words)

    return run


def test_lines_are_answered_on_stdout_and_commands_on_stderr(chat, capsys):
    lines = ["a word", "", "/system be brief", " more ", "/undo", "/exit", "not answered"]
    assert chat(lines, "--base", "film") == "the film\nthe film\n"


def test_json_lines_are_answered_by_json_lines_and_a_wrong_one_by_an_error(chat, place, capsys):
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    lines = ['"a word"', '{"content": "more"}', json.dumps({"messages": turn}), '{"content": "é"}']
    answers = [json.loads(line) for line in chat(lines, "--base", "film", "--json").splitlines()]
    assert [(answer["content"], answer["finish_reason"]) for answer in answers] == [("the film", "stop")] * 4
    assert answers[1]["prompt_tokens"] > answers[1]["cached_tokens"] > answers[0]["prompt_tokens"]
    assert answers[2]["prompt_tokens"] == len(TOKENIZER.chat(turn))
    wrong = ["nonsense", "[1]", '{"content": 1}', '{"messages": []}', '{"messages": [{"role": "user"}]}', "{}"]
    wrong += ['{"content": "x", "system": "y"}', '"\\ud800"']
    with pytest.raises(SystemExit) as ended:
        chat([*wrong, '"a word"'], "--base", "film", "--json")
    assert ended.value.code == 2
    *errors, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [list(error) for error in errors] == [["error"]] * len(wrong)
    assert (last["content"], last["cached_tokens"]) == ("the film", 0)


def test_a_saved_conversation_is_a_json_line(chat, place, capsys):
    chat(["/system be brief", "a word", "/save new.jsonl", "/reset", "more", "/save new.jsonl"], "--base", "film")
    system = {"role": "system", "content": "be brief"}
    conversations = [json.loads(line)["messages"] for line in (place / "new.jsonl").read_text("utf-8").splitlines()]
    answer = {"role": "assistant", "content": "the film"}
    assert conversations == [[system, {"role": "user", "content": text}, answer] for text in ("a word", "more")]
    for lines, reason in (["/save x.jsonl"], "no answer to save"), (["a", "/save x.txt"], "needs a .jsonl file"):
        with pytest.raises(SystemExit):
            chat(lines, "--base", "film")
        assert reason in capsys.readouterr().err
    assert not list(place.glob("x.*"))


def test_the_first_adapter_answers_and_then_each_by_its_name(chat, place, capsys):
    base, tokenizer = load(place / "base")
    members = {"lora.1": adapt.load(base, place / "lora.1"), "base": base, "soft": adapt.load(base, place / "soft")}
    sessions = [ChatSession(member, tokenizer, GenerationOptions(max_new_tokens=4)) for member in members.values()]
    expected = ["".join(session.answer("a word")) + "\n" for session in sessions]
    assert len(set(expected)) == 3
    lines = [line for name in members for line in (f"/adapter {name}", "a word", "/undo")][1:]
    assert chat(lines, "--base", "base", "--adapter", "lora.1", "--adapter", "soft") == "".join(expected)


def test_switching_to_an_adapter_processes_no_token(place):
    options = Chat(base=str(place / "base"), device="cpu", adapter=(place / "lora.1", place / "soft"))
    terminal = Terminal(*options._load(), options)
    list(terminal.session.answer("a word"))
    with tokens_processed() as processed:
        terminal.command("/adapter", "soft")
    assert (processed, terminal.session.cache) == ([], None)


def test_adapters_in_directories_of_one_name_have_the_names_of_their_paths(place):
    options = Chat(base=str(place / "base"), device="cpu", adapter=(place / "lora.1", place / "other" / "lora.1"))
    assert list(options._load()[0].methods) == [str(place / "lora.1"), str(place / "other" / "lora.1")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--adapter", "labels"), "labels was trained to give labels; use `minillm predict labels`"),
        (("--adapter", "classes"), "a classifier, not a language model"),
        (("--adapter", "nowhere"), "nowhere is not an adapter"),
        (("--adapter", "lora.1", "--adapter"), "--adapter needs a value"),
        (("--top-p", "2"), "top_p must be in"),
    ],
)
def test_what_cannot_talk_is_refused(chat, words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        chat(["a word"], "--base", "base", *words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokenizer", "missing"),
    [(None, "tokenizer"), (Mock(stop=()), "end token"), (Mock(stop=(1,), chat_template=None), "chat template")],
)
def test_a_base_without_a_tokenizer_an_end_or_a_template_is_refused(tokenizer, missing, monkeypatch):
    monkeypatch.setattr(Chat, "load_base", lambda self: (DECODER, tokenizer))
    with pytest.raises(InputError, match=f"x has no {missing}"):
        Chat(base="x", device="cpu")._load()


TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from minillm.cli import main
main()
"""


class Pseudoterminal:
    """A `minillm chat` in a terminal of its own, where Ctrl-C is a key."""

    def __init__(self, place):
        self.screen, (self.keyboard, terminal) = "", os.openpty()
        words = (*RUN[:-1], "90000", "--base", str(place / "endless"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", TERMINAL, *words], stdin=terminal, stdout=terminal, stderr=terminal,
            start_new_session=True, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(terminal)

    def type(self, keys):
        os.write(self.keyboard, keys.encode())

    def shows(self, text, again=""):
        """Waits for the text, which comes after those that were waited for before.

        `again` is typed every second: Python misses a Ctrl-C at the moment before it waits for a key.
        """
        end = time.monotonic() + 60
        while text not in self.screen:
            assert time.monotonic() < end, self.screen[-2000:]
            if select.select([self.keyboard], [], [], 1)[0]:
                self.screen += os.read(self.keyboard, 4096).decode()
            else:
                self.type(again)
        self.screen = self.screen.partition(text)[2]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_the_program(place):
    terminal = Pseudoterminal(place)
    try:
        for _ in range(2):
            terminal.shows("> ")
            terminal.type("a word\r")
            terminal.shows("filmthe film")
            terminal.type("\x03")
            terminal.shows("stopped; the message and its answer")
        terminal.shows("> ")
        terminal.type("/untwo\x7f\x7f\x7fdo\r")
        terminal.shows("there is no turn to remove")
        terminal.shows("> ")
        terminal.type("\x1b[A\r")  # the line before
        terminal.shows("there is no turn to remove")
        terminal.shows("> ")
        terminal.type("\x03")
        terminal.shows("> ", again="\x03")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.keyboard)
