"""Writers that are killed at random moments, one alone or two in one directory, leave a result that is whole."""

import os
import random
import signal
import sys
import time

import pytest

from minillm.runtime import files
from tests.runtime.test_writers import WRITERS, visible

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def forked(save, place):
    """The id of a process that saves again and again."""
    if child := os.fork():
        return child
    while True:
        save(place)


def killed(saves, place, seconds):
    children = [forked(save, place) for save in saves]
    time.sleep(seconds)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_a_killed_writer_leaves_the_first_result_or_the_second(writer, tmp_path):
    place, saves, seed = tmp_path / "place", [writer(version) for version in (1, 2)], random.Random(0)
    whole = []
    for save in saves:
        save(place)
        whole.append(visible(place))
    for number in range(60):
        killed(saves if number % 2 else saves[:1], place, seed.uniform(0.001, 0.05))
        files.complete(place)
        assert visible(place) in whole
        saves[1](place)
        assert {path.name for path in place.iterdir()} == set(whole[1])
