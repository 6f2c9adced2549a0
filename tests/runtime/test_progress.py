"""What a command prints while it works: bars on a terminal, lines elsewhere, nothing with --quiet."""

import os
import re
import struct
import sys

import pytest

from minillm.runtime import progress as module
from minillm.runtime.progress import detail, duration, note, printing, progress


def work():
    with progress(total=4, desc="training", unit="step") as bar:
        for step in range(4):
            bar.set_postfix(loss=f"0.{step}", refresh=False)
            bar.update()
            list(progress(range(2), desc="validation", unit="batch"))
            if step == 2:
                note("a note")
    detail("a detail")


def test_without_a_terminal_there_is_a_line_at_the_start_and_every_ten_seconds(capsys, monkeypatch):
    with printing("normal"):
        work()
    assert capsys.readouterr().err == "training: 4 steps\na note\n"
    monkeypatch.setattr(module, "EVERY", 0.0)
    with printing("normal"), progress(total=4, desc="training", unit="step", initial=2) as bar:
        bar.update()
        bar.set_postfix(loss="0.1")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 4 steps"
    assert re.fullmatch(r"training: 3 of 4 steps, loss=0\.1, \S+ s left", lines[-1])


def test_quiet_prints_nothing_and_verbose_also_the_time_of_the_outer_work(capsys):
    with printing("quiet"):
        work()
    assert capsys.readouterr().err == ""
    with printing("verbose"):
        work()
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"training: 4 steps in \S+ s", lines[2])
    assert [*lines[:2], *lines[3:]] == ["training: 4 steps", "a note", "a detail"]


def test_a_call_of_the_library_has_no_lines(capsys):
    work()
    assert capsys.readouterr().err == "a note\n"


def test_on_a_terminal_a_note_stands_above_the_bar(monkeypatch):
    fcntl, termios = (
        pytest.importorskip(name) for name in ("fcntl", "termios")
    )  # Windows has no terminal of this kind
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(end, "w", encoding="utf-8") as stream, printing("normal"):
        monkeypatch.setattr(sys, "stderr", stream)
        work()
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "training: " in shown
    assert re.search(r"\r *\ra note\r\n", shown), "the bar is cleared before the note"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.034, "0.034 s"),
        (9.4, "9.4 s"),
        (12.3, "12 s"),
        (119, "119 s"),
        (150, "2.5 min"),
        (1800, "30 min"),
        (9000, "2.5 h"),
    ],
)
def test_a_time_has_a_suitable_unit(seconds, text):
    assert duration(seconds) == text
