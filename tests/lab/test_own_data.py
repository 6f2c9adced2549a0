"""The report on a user's own data, and the warnings about an accuracy."""

import pytest
import torch

from minillm.data.conversations import Conversations, exchange
from minillm.data.table_tasks import TableTask
from minillm.data.tasks import LabelledText
from minillm.lab.experiment import doubts, judged
from minillm.lab.own_data import overview


def rows(*labels, start=0):
    return [LabelledText(f"text {n}", label) for n, label in enumerate(labels, start)]


def test_the_overview_has_the_mapping_the_counts_the_baseline_and_warnings():
    task = TableTask(
        "mine", "{text}:", (" bad", " good"), rows(*[0] * 6, *[1] * 3), rows(0, start=20), rows(1, 0, 1, start=8),
        values=("1", "5"), note="mine.csv: recognised delimiter ';'",
    )  # fmt: skip
    lines = overview(task)
    assert lines[:2] == [task.note, "mine: 9 rows for training, 1 for validation, 3 for test"]
    table = [line.split() for line in lines[2].splitlines()]
    assert table[2:] == [["'1'", "'bad'", "6", "1", "1"], ["'5'", "'good'", "3", "0", "2"]]
    assert lines[3:] == [
        "majority baseline: accuracy 0.667 by always '5'",
        "warning: fewer than 5 training rows: '5' (3)",
        "warning: 1 of the 3 test texts are also among the training texts",
    ]


def test_labels_that_differ_in_case_only_are_reported():
    task = TableTask("t", "{text}:", (" a", " b", " c"), rows(0, 1, 2), [], rows(0, 1, 2), values=("Pos", "neg", "pos"))
    assert "warning: labels that differ in case only: 'Pos', 'pos'" in overview(task)


def test_the_overview_of_free_answers_counts_repeated_prompts():
    one, two = exchange("a", "b"), exchange("c", "d")
    lines = overview(Conversations("mine", [one], [two], [two, exchange("a", "other")]))
    assert lines == [
        "mine: 1 rows for training, 1 for validation, 2 for test",
        "warning: 1 of the 2 test texts are also among the training texts",
    ]


@pytest.mark.parametrize(
    ("predicted", "warnings"),
    [
        ([0, 0, 0, 1, 1, 1, 1, 1], []),
        ([0, 0, 0, 1, 1, 1, 1, 0], []),
        ([0, 1, 0, 1, 1, 1, 1, 0], ["accuracy 0.750 ± 0.153"]),
        (
            [1] * 8,
            ["all predictions are of one class", "accuracy 0.625 ± 0.171 is not above the majority baseline, 0.625"],
        ),
        ([1, 1, 1, 1, 1, 1, 1, 0], ["accuracy 0.500 ± 0.177"]),
    ],
)
def test_predictions_of_one_class_and_an_accuracy_within_the_error_of_the_baseline_are_doubtful(predicted, warnings):
    scores = torch.nn.functional.one_hot(torch.tensor(predicted), 2).float()
    measured = judged(scores, torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]))
    assert measured["majority_baseline"] == 0.625
    found = doubts(measured)
    assert len(found) == len(warnings)
    assert all(line.startswith(f"warning: {start}") for start, line in zip(warnings, found, strict=True))
