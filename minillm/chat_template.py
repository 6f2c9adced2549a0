"""Chat templates, which are untrusted code, run in one worker process (`chat_worker.py`) within limits.

Linux limits time, memory and output; macOS not memory; Windows output and, by the clock, time. A worker that exceeds a
limit is ended, and the next conversation gets a new one; it also ends with this process.
"""

import atexit
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import Lock, Timer
from typing import Any

from minillm.errors import InputError

# Limits of one rendering: seconds of CPU time and of clock time, megabytes of the worker, characters of a template.
SECONDS, CLOCK_SECONDS, MEGABYTES, LONGEST_TEMPLATE = 1.0, 10.0, 256, 200_000
LONGEST_ADDED, MOST_COPIES = 200_000, 4
"""The output may have this many characters and this many copies of the conversation."""


def render(template: str, given: Mapping[str, Any]) -> str:
    """The output of the template with these variables. Raises InputError if it fails or exceeds a limit."""
    if len(template) > LONGEST_TEMPLATE:
        raise InputError(f"a chat template may have {LONGEST_TEMPLATE} characters, got {len(template)}")
    variables = json.dumps(given)
    longest = LONGEST_ADDED + MOST_COPIES * len(variables)
    request = f"[{json.dumps(template)}, {variables}, {longest}]\n".encode()
    reply = _workers.setdefault(os.getpid(), _Worker()).answer(request, 12 * longest + LONGEST_TEMPLATE)
    if not reply.endswith(b"\n"):
        raise InputError(
            f"the chat template exceeds {SECONDS:g} s or {MEGABYTES} MB on this conversation; use another template, or "
            "plain text, in commands without --chat"
        )
    found = json.loads(reply)
    if "problem" in found:
        raise InputError(f"the chat template {found['problem']}")
    return found["text"]


class _Worker:
    """A worker process, started at its first request. Threads take turns; a forked process has its own."""

    def __init__(self):
        self.lock, self.process = Lock(), None

    def answer(self, request: bytes, most: int) -> bytes:
        """The line for this line, with up to this many bytes; anything else if the worker ended."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.stop()
                self.process = _started()
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            reply, timer = b"", Timer(CLOCK_SECONDS, self.process.kill)
            timer.start()
            try:
                with suppress(OSError):  # a broken pipe
                    self.process.stdin.write(request)
                    self.process.stdin.flush()
                    reply = self.process.stdout.readline(most)
            finally:
                timer.cancel()
                if not reply.endswith(b"\n"):  # also after Ctrl-C
                    self.stop()
            return reply

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()  # waits, and closes the pipes


def _started() -> Popen[bytes]:
    limits = json.dumps([SECONDS, MEGABYTES])
    worker = str(Path(__file__).with_name("chat_worker.py"))
    # Isolated from the current directory and from settings of the user; jinja2 is where this process finds it.
    command = [sys.executable, "-I", "-S", worker, limits, *sys.path]
    try:
        # In a session of its own, Ctrl-C in a terminal does not reach it.
        return Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True)
    except OSError as problem:
        raise InputError(f"chat templates need a process of their own, which cannot be started: {problem}") from None


_workers: dict[int, _Worker] = {}
"""By process: a forked one must not use its parent's."""


@atexit.register
def stop() -> None:
    """End the worker of this process."""
    if os.getpid() in _workers:
        _workers[os.getpid()].stop()
