"""Waiting for other processes, and for what they do."""

import os
import sys
import time


def wait(condition):
    """Raises AssertionError if the condition does not hold within a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:  # without a parent that waits for it, it may stay as a zombie
        with open(f"/proc/{process}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return sys.platform != "linux"
