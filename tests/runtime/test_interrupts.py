"""Signals: the first lets a command save, the second ends it at once; nothing that Windows does not have."""

import importlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from minillm.runtime import interrupts
from minillm.runtime.interrupts import SIGNALS, interrupt_deferred, interrupts_handled


@pytest.fixture(autouse=True)
def _handlers():
    """The handlers of the tests are restored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert before == {number: signal.getsignal(number) for number in SIGNALS}


@pytest.mark.parametrize("number", SIGNALS)
def test_in_a_command_every_signal_raises_what_ctrl_c_raises(number):
    with pytest.raises(KeyboardInterrupt), interrupts_handled():
        signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_in_a_command_a_signal_is_deferred_to_the_end_of_a_step(number):
    with interrupts_handled(), interrupt_deferred() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted()


def test_a_second_signal_of_the_same_kind_ends_the_process_and_one_of_another_kind_does_not(monkeypatch):
    ended = []
    monkeypatch.setattr(interrupts.os, "_exit", ended.append)
    with interrupts_handled():
        with interrupt_deferred() as interrupted:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert (interrupted(), ended) == (True, [])
        signal.raise_signal(signal.SIGINT)
    assert ended == [130]


def test_outside_of_a_command_ctrl_c_is_deferred_once_and_other_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    with interrupt_deferred() as interrupted:
        assert signal.getsignal(signal.SIGTERM) is before
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_ignored_signal_stays_ignored():
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupts_handled():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_handle_no_signals():
    found = []

    def use():
        with interrupts_handled(), interrupt_deferred() as interrupted:
            found.append(interrupted())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [False]


def test_windows_has_no_sighup(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    try:
        assert importlib.reload(interrupts).SIGNALS == [signal.SIGINT, signal.SIGTERM, 21]
    finally:
        monkeypatch.undo()
        importlib.reload(interrupts)


PROGRAM = """
import os, sys, time
from minillm import cli
def command(words):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        if sys.argv[1:] == ["twice"]:
            print("saving", flush=True)
            time.sleep(60)
cli._run = command
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("twice", [False, True])
def test_an_interrupted_command_prints_one_line_and_a_second_time_nothing(number, twice):
    words = ["twice"] if twice else []
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(1 + twice):
        process.stdout.readline()
        process.send_signal(number)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 130
    assert complaint == ("" if twice else "\nminillm: interrupted; finished results are saved\n")
