"""`minillm prompt`: for a text, a task and the lecture's examples, and its one-line errors."""

import json
from io import UnsupportedOperation

import pytest

from minillm.lab.lecture import EXAMPLES
from minillm.prompting.measures import MEASURES
from tests.test_cli import place  # noqa: F401, a fixture

BASE = ("prompt", "--base", "base", "--threads", "1", "--device", "cpu")
TASK = (
    *BASE, "--data", "mine.csv", "--text-column", "words", "--label-column", "liked", "--prompt", "{text}:",
    "--labels", "bad,very good", "--train", "40", "--test", "12",
)  # fmt: skip


def test_a_task_is_measured_before_and_after_calibration(command, place):  # noqa: F811
    printed = command(*TASK, "--shots", "2", "--out", "measured")
    written = json.loads((place / "measured" / "prompt.json").read_text("utf-8"))
    asked = written["asked"][0]
    assert asked["way"] == "few-shot"
    assert list(asked["measures"]) == list(MEASURES)[:4]
    for name, figure in asked["measures"].items():
        row = next(line for line in printed.splitlines() if line.startswith(f"{name} "))
        for when in ("before", "after"):
            assert f"{figure[when]['accuracy']:.3f} ± {figure[when]['standard_error']:.3f}" in row
    labels = [int(row["text"].split()[-1] == "yes") for row in asked["rows"]]
    best = [max((0, 1), key=lambda label: row["scores"][label]) for row in asked["rows"]]
    right = [one == other for one, other in zip(best, labels, strict=True)]
    assert asked["measures"]["acc"]["before"]["accuracy"] == pytest.approx(sum(right) / 12)
    prompt = printed.split("-\n")[1].split("\n---")[0]
    assert prompt.count("\n\n") == 2
    assert prompt.endswith(f"{asked['rows'][0]['text']}:")
    assert all(sum(row["calibrated"]["acc"]) == pytest.approx(1) for row in asked["rows"])


def test_a_text_gives_label_probabilities_and_the_tokens_with_a_trailing_space(command):
    printed = command(*BASE, "--text", "gripping", "--prompt", "{text}:", "--labels", "yes,no", "--show-tokens")
    assert "gripping:\n---" in printed
    assert "9 tokens: [g][r][i][p][p][i][n][g][:]" in printed
    assert "  ...[g][:] [ ][y][es]: log P = " in printed
    assert "  ...[:][ ] [y][es]: log P = " in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith(("yes ", "no "))]
    for column in (1, 2):
        assert sum(float(row[column]) for row in rows) == pytest.approx(1, abs=0.002)


def test_orders_of_the_examples_are_compared(command, place):  # noqa: F811
    printed = command(*TASK, "--shots", "3", "--orders", "3", "--channel", "--out", "orders")
    written = json.loads((place / "orders" / "prompt.json").read_text("utf-8"))
    shown = [[shot[0] for shot in asked["template"]["shots"]] for asked in written["asked"]]
    assert len(set(map(tuple, shown))) == 3
    assert len({tuple(sorted(texts)) for texts in shown}) == 1
    accuracies = [asked["measures"]["acc"]["after"]["accuracy"] for asked in written["asked"]]
    spread = written["spread"]["acc"]["after"]
    assert spread["mean"] == pytest.approx(sum(accuracies) / 3)
    assert f"{spread['mean']:.3f} ± {spread['standard_deviation']:.3f}" in printed
    assert "acc, calibrated" in printed
    assert "channel: log P(text | answer)" in printed
    assert written["spread"].keys() == MEASURES.keys()


@pytest.mark.parametrize("choose", ["seed", "nearest", "ordered"])
def test_examples_are_chosen_by_every_strategy(command, choose):
    assert "few-shot" in command(*TASK, "--shots", "2", "--choose", choose)


def test_a_zero_shot_chain_of_thought_is_generated_and_samples_vote(command, place):  # noqa: F811
    printed = command(*TASK, "--chain", "--max-new-tokens", "5", "--samples", "2", "--out", "chain")
    asked = json.loads((place / "chain" / "prompt.json").read_text("utf-8"))["asked"][0]
    assert asked["way"] == "zero-shot chain of thought"
    for title, name in (("free answers", "free"), ("majority vote", "self_consistency")):
        assert f"{title}: accuracy with strict extraction {asked[name]['strict']:.3f}" in printed
    for row in asked["rows"]:
        assert row["said"].startswith(" Let's think step by step.")
        assert " Therefore, the answer is" in row["said"]


def test_examples_of_word_problems_have_chains_of_thought(command):
    printed = command(
        *BASE, "--task", "word_problems", "--shots", "1", "--chain", "--test", "3", "--max-new-tokens", "4"
    )
    assert printed.count("Let's think step by step.") >= 2
    assert ". The answer is " in printed


@pytest.mark.parametrize("name", ["funny", "juggler", "colour"])
def test_each_example_of_the_lecture_is_run_with_its_templates(command, place, name):  # noqa: F811
    printed = command(*BASE, "--example", name, "--out", name)
    asked = json.loads((place / name / "prompt.json").read_text("utf-8"))["asked"]
    assert len(asked) == len(EXAMPLES[name].templates)
    assert EXAMPLES[name].about in printed
    for one in asked:
        assert one["prompt"] in printed
        assert one["right"] == (one["strict"] == EXAMPLES[name].expected or one["flexible"] == EXAMPLES[name].expected)
    assert printed.count(f"(expected: {EXAMPLES[name].expected})") == len(asked)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*TASK, "--choose", "nicest"), "unknown value for --choose: 'nicest'; did you mean nearest?"),
        ((*TASK, "--shots", "2", "--chain"), "these examples have no chains"),
        ((*TASK, "--prompt", "{text}: "), "ends with a space"),
        ((*TASK, "--shots", "41"), "do not hold 41 shots"),
        ((*TASK, "--shots", "-1"), "shots must be at least 0, got -1"),
        ((*TASK, "--labels", "bad,good,best"), "3 labels are given for the 2 classes"),
        ((*TASK, "--orders", "2"), "--orders needs at least two examples"),
        ((*TASK, "--shots", "2", "--orders", "3"), "2 examples have only 2 orders"),
        ((*TASK, "--chat"), "chat template"),
        ((*TASK, "--samples", "2", "--temperature", "0"), "temperature"),
        ((*TASK, "--shots", "38", "--choose", "seed"), "context of 512"),
        ((*BASE, "--example", "elephant"), "unknown value for --example: 'elephant'; there are: funny, juggler"),
        ((*BASE, "--example", "funny", "--text", "ha"), "--example has its own text"),
        (
            (*BASE, "--text", "ha", "--prompt", "{text}:", "--labels", "yes,yes"),
            "at least two different non-empty texts",
        ),
        ((*BASE, "--task", "poems"), "unknown value for --task: 'poems'"),
        ((*TASK, "--text", "ha", "--shots", "2", "--orders", "2"), "cannot be given with --text"),
        ((*TASK, "--channel", "--chain"), "--channel compares accuracies over test rows"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2_and_nothing_is_written(command, place, words, sentence, capsys):  # noqa: F811
    with pytest.raises(SystemExit) as end:
        command(*words, "--out", "untouched")
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert sentence in printed
    # Before it, the overview of the data may stand.
    assert printed.splitlines()[-1].startswith("minillm: ")
    assert printed.count("minillm: ") == 1, printed
    assert not (place / "untouched").exists()


def test_results_are_saved_before_they_are_printed(command, place, monkeypatch):  # noqa: F811
    def closed(*_, file=None, **options):
        if file is None:
            raise BrokenPipeError

    # The command ends in `main`, which would redirect the real output.
    monkeypatch.setattr("builtins.print", closed)
    monkeypatch.setattr("minillm.cli.os.dup2", lambda *_: None)
    for words, written in ((TASK, "prompt.json"), (("adapt", *TASK[1:], "--method", "features"), "adapt.json")):
        with pytest.raises((SystemExit, UnsupportedOperation)):
            command(*words, "--out", "unread")
        assert (place / "unread" / written).exists()


def test_an_interrupt_writes_no_partial_file(command, place, monkeypatch):  # noqa: F811
    from minillm.lab import prompt

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prompt, "accuracies", interrupted)
    with pytest.raises(SystemExit) as end:
        command(*TASK, "--out", "interrupted")
    assert end.value.code == 130
    assert not (place / "interrupted").exists()


def test_a_long_row_is_named_by_its_line_or_cut(command, place, capsys):  # noqa: F811
    lines = (place / "mine.csv").read_text().splitlines()
    lines[4] = "long " * 120 + ",1"
    (place / "long.csv").write_text("\n".join(lines))
    task = [word if word != "mine.csv" else "long.csv" for word in TASK]
    task[task.index("40")], task[task.index("12")] = "20", "69"
    with pytest.raises(SystemExit):
        command(*task, "--chain", "--max-new-tokens", "1")
    assert "long.csv, line 5 ('long long" in capsys.readouterr().err
    for choose in ("balanced", "nearest"):
        command(*task, "--shots", "1", "--choose", choose, "--truncate", "left", "--out", "cut", "--overwrite")
    rows = json.loads((place / "cut" / "prompt.json").read_text("utf-8"))["asked"][0]["rows"]
    assert 300 < max(len(row["text"]) for row in rows) < 512
