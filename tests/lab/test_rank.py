"""The experiments whose trials cross two settings: ranks and targets of LoRA, methods and changed tasks."""

import numpy as np
import pytest
import torch

from minillm import hub
from minillm.adapt import FineTune
from minillm.data.word_problems import word_problems_task
from minillm.errors import InputError
from minillm.lab import newtask, rank, study
from minillm.lab.crossed import Crossed
from minillm.lab.experiment import Experiment
from minillm.lab.forgetting import Forgetting
from minillm.lab.newtask import TASKS, WORD, NewTask, changed
from minillm.lab.rank import CUT, TARGETS, Rank, advice, decomposed, equal_parameters
from minillm.lab.study import Bench, Trial, run_study
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder

FEW = {"threads": 1, "train": 40, "test": 8, "minutes": 5.0}


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch):
    monkeypatch.setattr(study, "TINY", study.Rows(40, 8, 8, 40))


def _trial(predicted, labels=(0, 1), **settings):
    right = [one == label for one, label in zip(predicted, labels, strict=True)]
    measured = {"predicted": predicted, "accuracy": sum(right) / len(right), "majority_baseline": 0.5}
    return Trial(settings, measured, 1.0)


def test_accuracies_are_crossed_by_two_settings_over_seeds():
    found = [_trial([0, 0], seed=0, method="lora", n=16), _trial([0, 1], seed=0, method="full", n=2)]
    found += [_trial([0, 1], seed=1, method="lora", n=16), Trial({"method": "lora"}, {}, 1.0)]
    crossed = type("Of", (Crossed,), {"row": "n", "name": "of"})(base="tiny")
    (table,), _ = crossed.conclude(found)
    assert table.columns == ("n", "full", "lora")
    assert table.rows == [["2", "1.000 ± 0.000", "-"], ["16", "-", "0.750 ± 0.395"]]


def test_the_conclusions_name_the_methods_that_learned_and_those_that_forgot():
    rows = [0, 1] * 100
    found = [
        _trial(rows, rows, method="lora", changed=TASKS[1]),
        _trial([0] * 200, rows, method="prefix", changed=TASKS[1]),
    ]
    found += [_trial([0] * 200, rows, method="lora", changed=TASKS[2])]
    _, lines = NewTask().conclude(found)
    assert lines == [
        "labels permuted: lora above guessing by two standard errors",
        "labels invented: no method above guessing by two standard errors",
    ]
    lost, kept = [[1.0, 10], [1.2, 10], [1.1, 10]], [[1.0, 10], [-1.2, 10], [0.4, 10]]
    found = [
        Trial(
            {"method": m, "remedy": "-"},
            {"accuracy": 0.5, "on": {"own text": on}, "off": {"own text": [[0, 10]] * 3}},
            0,
        )
        for m, on in (("full", lost), ("lora", kept))
    ]
    (table,), (line,) = Forgetting().conclude(found)
    assert line == "loses more than two standard errors of its own text: full +0.110"
    assert [row[-1] for row in table.rows] == ["0", "0"]


def test_targets_get_the_rank_at_which_they_have_as_many_parameters():
    sizes = {"query, value": 10, "attention.*": 20, "feed_forward.*": 31, "all-linear": 51}
    cells = {(8, on): [Trial({}, {"trainable_parameters": 8 * size}, 0.0)] for on, size in sizes.items()}
    assert equal_parameters(cells) == [(32, TARGETS[0]), (16, TARGETS[1]), (10, TARGETS[2]), (6, TARGETS[3])]
    del cells[8, "query, value"]
    assert equal_parameters(cells) == []


def test_the_advice_is_the_first_that_is_not_distinguishable_from_the_last():
    rows = np.arange(400)
    right = {(1, "query"): rows % 2 == 0, (2, "query"): rows % 10 != 1, (64, "all"): rows % 10 != 0}
    sentence = advice({key: one[None] for key, one in right.items()})
    assert sentence.startswith("r 2 (query) would do: within the noise of r 64 (all), +0.0 points, 95 % interval -")
    del right[2, "query"]
    sentence = advice({key: one[None] for key, one in right.items()})
    assert sentence == "no smaller rank would do: those measured are less accurate than r 64 (all)"


class Fitted:
    """A classifier of two classes by the last token's logits."""

    def __init__(self, method, texts):
        self.method_, self.ids = method, torch.tensor([[ord(letter) % 13 for letter in text] for text in texts])

    def scores(self, texts, name):
        return type("Scored", (), {"scores": self.method_(self.ids)[:, -1, :2].detach()})


def test_at_full_rank_the_approximation_of_dw_is_the_fine_tune(monkeypatch):
    base = random_decoder(STYLES["Llama"])
    tuned = moved(FineTune(base, layers=["blocks.*.attention.*.weight"]))
    task = word_problems_task(8, 31)
    texts = [row.text[:5] for row in task.test]
    monkeypatch.setattr(rank, "RANKS", (1, 30))
    expected = Fitted(tuned, texts).scores(texts, "").scores.argmax(-1).tolist()
    found = decomposed(Bench(Experiment(base, None, None, "float32", 0), task), Fitted(tuned, texts))
    assert found["cut"][30]["predicted"] == expected
    assert found["cut"][1]["predicted"] != expected
    change = tuned.decoder.blocks[1].attention.out.weight - base.blocks[1].attention.out.weight
    singular = torch.linalg.svdvals(change.detach()).tolist()
    assert found["spectra"]["blocks.1.attention.out"] == pytest.approx(singular, rel=1e-3)


@pytest.mark.slow
def test_rank_runs_end_to_end(tmp_path, monkeypatch):
    small = {"RANKS": (1,), "SEEDS": 1, "COMPARED": ((1, 0), (2, 0)), "DIRECTIONS": (1,), "TARGETS": TARGETS[::3]}
    for name, value in small.items():
        monkeypatch.setattr(rank, name, value)
    found = run_study(Rank(out=tmp_path / "rank", **FEW))
    assert len(found["trials"]) == 1 + 2 + 2 + 1
    first, equal, ranks, similar = found["tables"]
    assert first["columns"] == ("r", TARGETS[0], TARGETS[3], CUT, "full")
    assert [row[0] for row in first["rows"]] == ["1", "7", "32", "all"]
    assert [row[2] for row in equal["rows"]] == [65536, 68320]
    assert len(ranks["rows"]) == 7
    assert similar["rows"][0] == ["by chance", 1 / 128]
    assert ["would do" in line for line in found["conclusions"]] == [True, True]


def test_a_changed_task_has_other_labels_or_another_language():
    tokenizer, task = hub.load("tiny")[1], word_problems_task(40, 40)
    original, permuted, invented, language = (changed(task, how, tokenizer) for how in TASKS)
    assert original is task
    assert permuted.answers == (" 18", " 24", " 30", " 12")
    assert invented.answers == (" lemon", " golf", " rubber", " iced"), "tiny does not know wug"
    before, after = ([WORD.findall(row.text) for row in one.test] for one in (task, language))
    pairs = {pair for rows in zip(before, after, strict=True) for pair in zip(*rows, strict=True)}
    changes = dict(pairs)
    assert len(pairs) == len(changes) == len(set(changes.values())), "each word has one meaning"
    known = {word for word in changes if tokenizer.unk not in tokenizer.encode(f" {word}")}
    assert all((changes[word] == word) == (word not in known) for word in changes)
    assert {"quarter", "of"} <= known
    digits = [[letter for letter in row.text if letter.isdigit()] for row in (*task.test, *language.test)]
    assert digits[: len(digits) // 2] == digits[len(digits) // 2 :]
    assert [row.label for row in language.train] == [row.label for row in task.train]


def test_too_many_labels_are_refused():
    task = word_problems_task(40, 40)
    many = type(task)(**{**vars(task), "answers": tuple(f" {n}" for n in range(30))})
    with pytest.raises(InputError, match="newtask has 8 invented labels for this base, the task 30"):
        changed(many, "labels invented", hub.load("tiny")[1])


@pytest.mark.slow
def test_newtask_runs_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(newtask, "SEEDS", 1)
    found = run_study(NewTask(out=tmp_path / "newtask", methods=("few-shot", "lora"), **FEW))
    assert found["tables"][0]["columns"] == ("changed", "few-shot", "lora")
    assert [row[0] for row in found["tables"][0]["rows"]] == list(TASKS)
