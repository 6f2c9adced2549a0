"""What Windows and macOS do not have, taken away on this machine: modules, functions, signals, characters, limits."""

import ast
import io
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import minillm
from minillm import Decoder, DecoderConfig
from minillm.chat_worker import serve
from minillm.cli import main
from minillm.runtime.device import peak_memory
from minillm.training.tokenizers import byte_pairs

HOME = Path(minillm.__file__).parent
MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "posix"}
FUNCTIONS = {
    "os": ("fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "setsid", "killpg", "sched_getaffinity",
           "uname", "mkfifo", "getloadavg"),
    "signal": ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGPIPE", "SIGQUIT", "SIGCHLD", "setitimer", "alarm"),
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(HOME.rglob("*.py")), ids=lambda path: str(path.relative_to(HOME)))
def test_no_module_imports_what_windows_does_not_have(path):
    """At its top level; in a function, behind a check of the platform, it may."""
    tops = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in tops for alias in node.names} | {getattr(node, "module", None) for node in tops}
    assert not names & MODULES


@pytest.fixture
def windows(monkeypatch, tmp_path):
    """Python as on Windows, as far as it can be had; pytest makes its folder before."""
    for name in MODULES - {"posix", "fcntl"}:  # this machine's locks need fcntl
        monkeypatch.setitem(sys.modules, name, None)
    for module, names in FUNCTIONS.items():
        for name in names:
            monkeypatch.delattr(sys.modules[module], name, raising=False)
    assert not hasattr(os, "fork")
    assert not hasattr(signal, "SIGKILL")


def run(monkeypatch, *words):
    """The output of a command on a console in cp1252."""
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), "cp1252", write_through=True))
    monkeypatch.setattr("sys.argv", ["minillm", *map(str, words)])
    main()
    return sys.stdout.buffer.getvalue().decode("cp1252")


def test_commands_train_save_and_generate_without_what_windows_does_not_have(windows, monkeypatch, tmp_path):
    base, adapter, data = tmp_path / "a base", tmp_path / "an adapter", tmp_path / "rows.csv"
    minillm.save(Decoder(DecoderConfig.tiny(vocabulary=257, context_length=128)), byte_pairs([], 257), base)
    rows = "".join(f"{n} × → {'even' if n % 2 == 0 else 'odd'},{n % 2}\n" for n in range(40))
    data.write_text("text,label\n" + rows, "utf-8")
    common = ("--base", base, "--device", "cpu")
    options = ("--method", "output", "--epochs", "1")
    assert "saved: " in run(monkeypatch, "adapt", *common, *options, "--data", data, "--out", adapter)
    assert "OK: FineTune" in run(monkeypatch, "adapter", "verify", adapter, "--base", base)
    assert "3 \xb7 4 \\u2192 \xd7" in run(monkeypatch, "generate", "3 · 4 → ×", *common, "--max-new-tokens", "2")


def test_a_chat_template_is_rendered_where_memory_cannot_be_limited(monkeypatch):
    """As on macOS, which refuses a limit below the addresses that a process has already."""

    def refuse(*limit):
        raise ValueError("current limit exceeds maximum limit")

    request = json.dumps(["{{ messages[0] }}!", {"messages": ["hi"]}, 100]).encode()
    for name, stream in (("stdin", io.TextIOWrapper(io.BytesIO(request))), ("stdout", io.StringIO())):
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr("resource.setrlimit", refuse)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    serve(seconds=0, megabytes=256)
    assert json.loads(sys.stdout.getvalue()) == {"text": "hi!"}


def test_peak_memory_is_unknown_on_windows(windows, monkeypatch):
    monkeypatch.setattr("minillm.runtime.device.Path.exists", lambda path: False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_memory(torch.device("cpu")) is None


def test_processes_are_started_as_windows_starts_them():
    """By spawn: what they get is pickled, and the module of the function is imported there."""
    text = "\n".join(path.read_text("utf-8") for path in HOME.rglob("*.py"))
    assert text.count("get_context(") == text.count('get_context("spawn")')
    assert "multiprocessing.Process" not in text
    assert "spawn" in multiprocessing.get_all_start_methods()
