"""A process that ends at a chosen step of its work on the disk: an audit hook refuses this step and all later ones."""

import sys
from contextlib import contextmanager

STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


class Crash(BaseException):
    """The process has ended."""


class _Disk:
    root, left = None, 0


def _hook(event, arguments):
    if _Disk.root is not None and event in STEPS and str(arguments[0]).startswith(_Disk.root):
        if event == "open" and arguments[1] in ("r", "rb"):
            return
        if _Disk.left == 0:
            raise Crash
        _Disk.left -= 1


sys.addaudithook(_hook)


@contextmanager
def crash_after(steps, root):
    """The process ends after so many steps below a directory. Yields a list, which is empty after a crash."""
    _Disk.root, _Disk.left = str(root), steps
    finished = [True]
    try:
        yield finished
    except Crash:
        finished.clear()
    finally:
        _Disk.root = None


def every_crash(work, root):
    """Do the work with a crash before each of its steps in turn; the body of the loop checks the result."""
    steps, finished = 0, []
    while not finished:
        with crash_after(steps, root) as finished:
            work()
        yield steps
        steps += 1
