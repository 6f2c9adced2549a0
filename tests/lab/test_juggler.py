"""The juggler experiment: grading, majority votes, and the effect of chains of thought."""

import json
from itertools import islice

import pytest

from minillm import InputError
from minillm.data.extraction import Reading
from minillm.data.word_problems import PRETRAINED_STEPS, SIZES, Problem, problems
from minillm.lab.juggler import (
    DIRECT,
    STEP_BY_STEP,
    STRATEGIES,
    Graded,
    Juggler,
    ask,
    grade,
    guess,
    juggle,
    paired,
    shares,
    summary,
    table,
    template,
    unseen,
)

JUGGLER = Problem("juggler", "Ada", 48, ("half", "two thirds"), ("golf", "blue"))
START = " Let's think step by step."
RIGHT, WRONG = Graded(Reading("16", "16"), "16", True), Graded(Reading("17", "17"), "16", True)


def prompt(strategy, shots):
    return template(strategy, shots).render(JUGGLER.text)


def test_strategies_differ_only_in_the_prompt():
    shot = Problem("baker", "Ben", 20, ("half",), ("round",))
    assert prompt(DIRECT, [shot]) == f"Question: {JUGGLER.text}\nAnswer: The answer is"
    assert prompt(STEP_BY_STEP, [shot]) == f"Question: {JUGGLER.text}\nAnswer:{START}"
    few, chained = (strategy for strategy in STRATEGIES if strategy.shots)
    assert prompt(few, [shot]) == (
        f"Question: {shot.text}\nAnswer: The answer is 10.\n\nQuestion: {JUGGLER.text}\nAnswer: The answer is"
    )
    assert f"Answer:{START} Half of 20 are round: 10. The answer is 10.\n\n" in prompt(chained, [shot])


def test_prompts_have_the_form_of_the_training_data():
    for strategy in STRATEGIES:
        shown = template(strategy, [JUGGLER])
        assert (JUGGLER.question + (JUGGLER.chain if strategy.chain else JUGGLER.direct)).startswith(
            prompt(strategy, [])
        )
        if strategy.shots:
            assert shown.solution(JUGGLER.shot) == (JUGGLER.chain if strategy.chain else JUGGLER.direct)


def test_an_answer_is_graded_strictly_and_flexibly_and_its_chain_is_checked():
    assert grade(JUGGLER, JUGGLER.direct, chain=False) == RIGHT
    assert grade(JUGGLER, JUGGLER.chain, chain=True) == RIGHT
    lucky = JUGGLER.chain.replace("48 are golf: 24", "48 are golf: 12")
    assert grade(JUGGLER, lucky, chain=True) == RIGHT._replace(sound=False)
    assert grade(JUGGLER, " The answer is 17.", chain=False) == WRONG
    unfinished = f"{START} Half of 48 are golf: 24. Two thirds of 24 are blue: 16"
    assert grade(JUGGLER, unfinished, chain=True) == Graded(Reading(None, "16"), "16", False)
    assert grade(JUGGLER, " The answer is many.", chain=False) == Graded(Reading(None, None), "16", True)


def test_accuracies_are_shares_of_all_answers_and_unsound_is_a_share_of_right_ones():
    lucky, silent = RIGHT._replace(sound=False), Graded(Reading(None, "16"), "16", False)
    found = shares([RIGHT, RIGHT, RIGHT, lucky, silent, WRONG, WRONG, WRONG])
    assert found["strict"] == 4 / 8
    assert found["flexible"] == 5 / 8
    assert found["unparsed"] == 1 / 8
    assert found["right_for_wrong_reason"] == 1 / 4
    assert shares([WRONG])["right_for_wrong_reason"] == 0


def test_the_difference_is_paired():
    found = paired([1, 0, 0, 0] * 100, [1, 1, 1, 0] * 100)
    assert found["mean"] == 0.5
    # The differences are 0, 1, 1, 0: their standard deviation is 1/2.
    assert found["high"] - found["mean"] == pytest.approx(1.96 * 0.5 / 400**0.5, rel=0.1)
    assert found["mean"] - found["low"] == pytest.approx(1.96 * 0.5 / 400**0.5, rel=0.1)
    assert paired([1, 0], [1, 0]) == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_the_majority_baseline_is_low():
    asked = list(islice(problems(5, steps=(2,)), 200))
    assert 0 < guess(asked) < 0.2


def teacher(asked, strategy):
    """Always right with a chain of thought; the direct answer is always 1."""
    return [grade(p, p.chain if strategy.chain else " The answer is 1.", strategy.chain) for p in asked]


QUESTIONS = {steps: unseen(Juggler(problems=10), steps, ()) for steps in PRETRAINED_STEPS}


def test_all_strategies_get_the_same_problems_for_each_number_of_steps():
    *_, trials = ask(teacher, QUESTIONS)
    found = summary(trials)
    assert [(row["steps"], row["way"]) for row in found["ways"]] == [
        (steps, strategy.name) for steps in PRETRAINED_STEPS for strategy in STRATEGIES
    ]
    for row in found["ways"]:
        assert (row["strict"] == 1.0) == ("chain" in row["way"] or row["way"] == "self-consistency")
    assert all(row["mean"] > 0.5 for row in found["chain_less_direct"])
    assert len(found["conclusions"]) == 3
    assert {len(row) for row in found["tables"][0]["rows"]} == {len(found["tables"][0]["columns"])} == {4}


def test_an_experiment_continues_after_the_trials_of_an_interrupted_run():
    *_, whole = ask(teacher, QUESTIONS)
    asked = []

    def counted(problems, strategy):
        asked.append(strategy)
        return teacher(problems, strategy)

    *_, again = ask(counted, QUESTIONS, whole[:13])
    assert asked == list(STRATEGIES[-2:])
    assert summary(again) == summary(whole)


@pytest.mark.parametrize("steps", PRETRAINED_STEPS)
def test_problems_of_each_number_of_steps_have_numbers_of_equal_size(steps):
    for (starts, answers), problem in zip(2 * SIZES, QUESTIONS[steps], strict=True):
        assert problem.count in starts
        assert problem.answer in answers


@pytest.mark.slow
def test_a_model_is_trained_and_asked(tmp_path):
    options = Juggler(train=True, preset="nano", steps=3, problems=2, samples=2, device="cpu", out=tmp_path)
    found = juggle(options)
    assert json.loads((tmp_path / "juggler.json").read_text("utf-8")) == json.loads(json.dumps(found))
    assert found["training_steps"] == 3
    printed = table(found)
    assert all(strategy.name in printed for strategy in STRATEGIES)
    assert "3 steps: effect of the chain" in printed


@pytest.mark.slow
def test_tiny_is_asked_and_reasons_better_than_it_guesses(tmp_path, capsys):
    Juggler(problems=10, samples=1, device="cpu", out=tmp_path).run()
    found = json.loads((tmp_path / "juggler.json").read_text("utf-8"))
    assert found["chain_less_direct"][2]["mean"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "juggler.json",
        "juggler.png",
        "juggler.svg",
        "run.json",
    ]
    assert found["conclusions"][0] in capsys.readouterr().out


def test_wrong_options_are_refused():
    with pytest.raises(InputError, match="problems"):
        Juggler(problems=1)
    with pytest.raises(InputError, match="--train"):
        Juggler(preset="nano")


def test_test_problems_are_unseen_and_distinct():
    settings = Juggler(problems=30)
    first = unseen(settings, 3, ())
    known = {problem.numbers for problem in first[::2]}
    second = unseen(settings, 3, known)
    texts = [problem.text for problem in second]
    assert len(set(texts)) == len(texts) == 30
    assert not known & {problem.numbers for problem in second}, "the same numbers in another text are seen too"
    assert set(texts) >= {problem.text for problem in first[1::2] if problem.numbers not in known}
