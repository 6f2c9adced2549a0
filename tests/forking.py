"""A process that has imported the libraries, and runs pytest in a fork of itself for each line of its input.

A line is a JSON list of pytest's arguments; the answer is the exit status on one line, with the output in `OUTPUT`.
"""

import gc
import json
import os
import signal
import sys

import beartype.claw  # noqa: F401
import hypothesis.strategies  # noqa: F401
import jaxtyping  # noqa: F401
import peft  # noqa: F401
import pytest
import torch.utils.checkpoint  # noqa: F401
import transformers  # noqa: F401

OUTPUT = "output.txt"
SECONDS = 300


PLUGINS = ["-p", "_hypothesis_pytestplugin"]


def _run(arguments):
    signal.alarm(SECONDS)
    with open(OUTPUT, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = pytest.main([*PLUGINS, *arguments])
    sys.stdout.flush()
    os._exit(code)


def main():
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # other plugins take longer to load than most tests to run
    gc.freeze()  # pytest collects garbage at its end, and then need not look at the libraries
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
