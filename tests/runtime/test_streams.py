"""A closed standard error loses messages and no result."""

import os
from io import TextIOWrapper

from minillm.runtime.streams import unbroken


def test_messages_to_a_closed_pipe_are_lost_without_an_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as pipe, unbroken(pipe):
        import sys

        for _ in range(3):
            print("progress", file=sys.stderr, flush=True)
        assert sys.stderr.fileno() == writer
        assert isinstance(pipe, TextIOWrapper)
