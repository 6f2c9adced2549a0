"""The process of a rung computes as its parent would."""

import multiprocessing
import threading

from minillm.lab import ladder
from minillm.lab.ladder import Ladder, measure_apart
from minillm.operations import backend, current_backend


class Finished(threading.Thread):
    """It shares the pipe's end with its parent, which closes it after `start`."""

    def start(self):
        super().start()
        self.join()


class Threads:
    """In place of processes: a new thread has no forced backend either."""

    Pipe, Process = staticmethod(multiprocessing.Pipe), Finished


def test_the_child_computes_with_the_backend_that_its_parent_has_forced(monkeypatch):
    monkeypatch.setattr(ladder.multiprocessing, "get_context", lambda method: Threads)
    monkeypatch.setattr(ladder, "measure", lambda name, options: {"backend": current_backend()})
    for forced in ("plain", "fast"):
        with backend(forced):
            assert measure_apart("lora", Ladder()) == {"backend": forced}
    assert measure_apart("lora", Ladder()) == {"backend": None}
