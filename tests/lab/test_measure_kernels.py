"""Which kernel is faster: every operation with one is timed, and the user's file decides what `operations` chooses."""

import json
from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")

from minillm import InputError, operations
from minillm.config import DecoderConfig
from minillm.kernels import _measured
from minillm.lab import check, measure_kernels
from minillm.lab.check import Check
from minillm.operations import FAST, TRITON, current_backend
from tests.strategies import implemented_in

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = DecoderConfig.tiny(
    layers=1, heads=2, kv_heads=2, width=8, feed_forward_width=9, context_length=4, vocabulary=11
)
SECONDS = {TRITON: [1.0, 3.0], FAST: [2.0, 3.0]}


def clock(taken, call):
    """Runs the call; the first of a backend is its forward pass, the second has its backward pass too."""
    call()
    taken.append(current_backend())
    return SECONDS[taken[-1]][taken.count(taken[-1]) % 2 - 1]


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_kernels, "BATCHES", ((2, 9),))
        return measure_kernels.measure(CONFIG, torch.float32, DEVICE, "this", partial(clock, []))


def test_every_operation_with_a_kernel_is_timed_at_the_sizes_by_which_it_is_chosen(rows):
    sizes = {}
    for row in rows:
        sizes.setdefault(row["operation"], []).append(row["sizes"])
    assert {*sizes} == {*implemented_in("kernels")}
    assert sizes["rms_norm"] == [[2 * 4, 8]], "no more tokens than the context has"
    assert sizes["attention"] == [[4, 4, 4, 4, 0, 0], [4, 4, 4, 4, measure_kernels.PROMPT, 0]]
    assert sizes["lora_by_row"] == [[2, 4, 8, 8, measure_kernels.RANK]]
    assert not operations._choice.asked


def test_the_lower_speedup_counts_and_both_passes_are_reported(rows):
    assert {row["speedup"] for row in rows} == {1.0}, "a kernel that is not faster in both passes is not chosen"
    line = next(line for line in measure_kernels.table(rows).splitlines() if line.startswith("rms_norm"))
    assert line.split() == ["rms_norm", "8", "x", "8", "3000.000", "ms", "3000.000", "ms", "1.00", "torch"]


def test_the_users_rows_replace_the_packaged_ones_of_the_same_gpu_operation_and_dtype(rows, monkeypatch, tmp_path):
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path))
    packaged = {"gpu": "this", "operation": "gelu", "dtype": "float32", "sizes": [1], "speedup": 9.0}
    others = [packaged | {"dtype": "bfloat16"}, packaged | {"gpu": "that"}]
    (tmp_path / "measured.json").write_text(json.dumps([packaged, *others]))
    monkeypatch.setattr(_measured, "files", lambda package: tmp_path)
    assert _measured._read()["this", "gelu", torch.float32] == [((1,), 9.0)]
    first = [row | {"speedup": 5.0} for row in rows]
    measure_kernels.write([*first, first[0] | {"gpu": "that"}])
    measure_kernels.write([row | {"speedup": 2.0} for row in rows])
    read = _measured._read()
    assert read["this", "gelu", torch.float32] == [((2 * 4 * CONFIG.feed_forward_width,), 2.0)]
    assert read["this", "gelu", torch.bfloat16] == read["that", "gelu", torch.float32] == [((1,), 9.0)]
    assert read["that", "rms_norm", torch.float32] == [((8, 8), 5.0)], "rows of another GPU are kept"
    path = tmp_path / "kernels.json"
    path.write_text(path.read_text().replace("2.0", "3.0"))
    with pytest.raises(InputError, match="was damaged or edited"):
        _measured._read()


def test_no_work_starts_after_the_time_and_one_without_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(measure_kernels, "BATCHES", ((2, 3),))
    assert measure_kernels.measure(CONFIG, torch.float32, DEVICE, "this", partial(clock, []), seconds=0) == []

    def full(call):
        raise torch.OutOfMemoryError

    assert measure_kernels.measure(CONFIG, torch.float32, DEVICE, "this", full) == []


def test_check_measures_only_on_a_gpu_and_only_right_kernels(monkeypatch, capsys):
    with pytest.raises(InputError, match="on a CUDA device, after --kernels"):
        Check(base="tiny", measure=True, device="cpu")
    settings = Check(base="tiny", quiet=True)
    settings.measure = True
    row = {"operation": "gelu", "sizes": [8], "speedup": 1.5, "seconds": SECONDS}
    monkeypatch.setattr(check, "_measured_kernels", lambda config, dtype: [row])
    monkeypatch.setattr(check, "rungs", lambda settings: {})
    monkeypatch.setattr(check, "table", lambda found: "the table")
    settings.run()
    assert "kernel" in capsys.readouterr().out.splitlines()[-3]
    monkeypatch.setattr(check, "failed", lambda found: [{"what": "gelu", "rung": "kernel", "part": "up"}])
    with pytest.raises(SystemExit):
        settings.run()
    assert "speedup" not in capsys.readouterr().out
