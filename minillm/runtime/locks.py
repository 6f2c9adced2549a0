"""The lock of a file or directory that is being written: two processes never write it at the same time."""

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from minillm.errors import InputError

UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""The errors of file systems without locks, on which two writers are not noticed."""
_held = threading.local()


@contextmanager
def locked(directory: Path, wait: float = 0, file: Path | None = None) -> Iterator[None]:
    """Hold the lock of an output directory, which is created. Within it, the same thread may lock it again.

    The lock is on a file, which is removed at the end. The system releases it when the process ends, however it ends.
    Raises InputError if another thread or process still holds it after `wait` seconds.
    """
    path = file or directory / ".minillm.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    held, key, end = vars(_held), os.path.realpath(path), time.monotonic() + wait
    if key in held:
        yield
        return
    while (opened := _acquired(path)) is None:
        if time.monotonic() >= end:
            owner = path.read_text().strip() if path.exists() else ""
            raise InputError(
                f"{directory} is being written by another minillm (process {owner}); wait for it or give another --out"
            )
        time.sleep(0.02)
    held[key] = opened
    try:
        yield
    finally:
        del held[key]
        # Removed while it is locked, so that a process that waits for it starts over; Windows removes no open file.
        with opened, suppress(OSError):
            path.unlink()
        if sys.platform == "win32":
            with suppress(OSError):
                path.unlink()


def _acquired(path: Path) -> TextIO | None:
    """The locked file with the id of this process; None if another one holds it or has just removed it."""
    opened = open(path, "a+")  # noqa: SIM115
    with suppress(FileNotFoundError):
        if _lock(opened) and os.path.samestat(os.fstat(opened.fileno()), os.stat(path)):
            with suppress(OSError):  # a full disk
                opened.truncate(0)
                print(os.getpid(), file=opened, flush=True)
            return opened
    opened.close()
    return None


def _lock(opened: TextIO) -> bool:
    """Whether the lock of an open file was free; it is held from now on."""
    try:
        if sys.platform == "win32":
            import msvcrt

            opened.seek(1 << 30)  # the locked byte cannot be read, but the process id can
            msvcrt.locking(opened.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        return problem.errno in UNSUPPORTED
    return True
