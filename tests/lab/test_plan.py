"""`minillm plan`: the sizes are those of the run, the FLOPs those that are counted in it, and nothing is written."""

import json

import pytest

from minillm.data.tasks import LabelledText, Task
from minillm.lab.adapt import Adapt, adapt
from minillm.lab.plan import Plan, flop_counter, part, plan

GIVEN = {"base": "tiny", "task": "word_problems", "train": 40, "test": 8, "threads": 1}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "features"])
def test_a_plan_has_the_sizes_and_flops_of_the_run(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = plan(Plan(method=method, **GIVEN))
    assert not list(tmp_path.iterdir())
    with flop_counter() as counter:
        measured = adapt(Adapt(method=method, out=tmp_path / "a", **GIVEN))
    assert (found["train_rows"], found["test_rows"]) == (40, 8)
    assert found["trainable_parameters"] == measured["trainable_parameters"]
    assert found["adapter_bytes"] == measured["stored_bytes"]
    assert min(found[f"{part}_seconds"] for part in ("train", "validation", "test")) > 0
    if method == "lora":
        assert found["epochs"] == 2
        assert found["gradient_and_optimizer_bytes"] == 12 * found["trainable_parameters"]
        # The run also scores the validation rows after each epoch, with a third of the FLOPs of a training row.
        rows = 2 * 40 * 3 + 2 * found["validation_rows"] + 8
        assert found["training_flops"] == pytest.approx(counter.get_total_flops() * 2 * 40 * 3 / rows, rel=0.3)


@pytest.mark.slow
def test_conversations_are_planned_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [[{"role": "user", "content": f"add {n}"}, {"role": "assistant", "content": str(n)}] for n in range(30)]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": messages}) for messages in rows))
    found = plan(Plan(base="tiny", data=tmp_path / "chat.jsonl", epochs=1, batch_size=4, threads=1))
    assert (found["train_rows"], found["epochs"]) == (24, 1)
    assert found["train_seconds"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["chat.jsonl"]


def test_a_part_has_the_longest_rows_or_rows_of_all_lengths():
    rows = [LabelledText("a" * n, n % 2) for n in range(1, 41)]
    task = Task("t", "{text}", (" a", " b"), rows, rows, rows)
    longest, usual = (part(task, 8, longest) for longest in (True, False))
    assert {len(row.text) for row in longest.train} >= set(range(35, 41))
    assert {len(row.text) for row in usual.train} >= {5, 10, 15, 20, 25, 30}
    assert all({row.label for row in one.test} == {0, 1} for one in (longest, usual))
