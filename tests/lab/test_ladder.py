"""The process of a rung uses the backend of its parent; all rungs are checked before the first is run."""

import multiprocessing
import threading

import pytest

from minillm import Decoder, DecoderConfig, InputError, save
from minillm.lab import ladder
from minillm.lab.ladder import Ladder, measure_apart, run_ladder
from minillm.operations import backend, current_backend
from minillm.training.tokenizers import byte_pairs


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


def test_a_text_that_is_too_long_for_a_later_rung_is_refused_before_the_first(monkeypatch, tmp_path):
    monkeypatch.setattr(ladder, "measure_apart", lambda name, options: {"name": name})
    save(Decoder(DecoderConfig.tiny(vocabulary=257, layers=1)), byte_pairs([], 257), tmp_path / "base")
    path, rows = tmp_path / "rows.csv", [f"text {n},{'good' if n % 2 else 'bad'}" for n in range(40)]
    path.write_text("text,label\n" + "\n".join([*rows, f"{'a' * 55},bad"]) + "\n")
    options = {"base": str(tmp_path / "base"), "data": path, "prompt": "{text}:", "out": tmp_path, "device": "cpu"}
    sentence = r"rows.csv, line 42 \('a+'\): its prompt has 56 tokens, and 50 fit .* 10 for the method's prefix, 4 for"
    with pytest.raises(InputError, match=sentence):
        next(run_ladder(Ladder(**options, rungs=("zero-shot", "prefix"))))
    for more in ({"rungs": ("zero-shot",)}, {"rungs": ("zero-shot", "prefix"), "truncate": "left"}):
        assert next(run_ladder(Ladder(**options, **more)))[0] == {"name": "zero-shot"}
