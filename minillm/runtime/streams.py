"""Standard error without a reader: `minillm adapt ... 2>&1 | head` still saves the adapter."""

import os
from contextlib import AbstractContextManager, redirect_stderr
from typing import Any, cast


class _Unbroken:
    """A stream whose reader may go away: what is written after that is lost, without an error."""

    def __init__(self, stream: Any):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            return len(text)


def unbroken(stream: Any) -> AbstractContextManager:
    """Within it, a closed pipe ends no command because of its messages and progress bars on standard error."""
    return redirect_stderr(cast(Any, _Unbroken(stream)))
