"""The process of a rung uses the backend of its parent."""

import multiprocessing
import threading

from minillm.lab import ladder
from minillm.lab.ladder import Ladder, measure_apart
from minillm.operations import backend, current_backend


class Process(threading.Thread):
    """Instead of a process: a new thread has no forced backend either."""

    def start(self):
        super().start()
        self.join()


class Context:
    Pipe, Process = staticmethod(multiprocessing.Pipe), Process


def test_the_child_uses_the_forced_backend_of_its_parent(monkeypatch):
    monkeypatch.setattr(ladder.multiprocessing, "get_context", lambda method: Context)
    monkeypatch.setattr(ladder, "measure", lambda name, options: {"backend": current_backend()})
    for forced in ("plain", "fast"):
        with backend(forced):
            assert measure_apart("lora", Ladder()) == {"backend": forced}
    assert measure_apart("lora", Ladder()) == {"backend": None}
