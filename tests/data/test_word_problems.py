"""Word problems: every generated chain is right, and every change of a number, share or kind is detected."""

import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.data.word_problems import (
    FORMS,
    HELD_OUT_FORMS,
    HELD_OUT_STEPS,
    LARGEST,
    PARTS,
    PRETRAINED_FORMS,
    PRETRAINED_STEPS,
    SHARES,
    STEPS,
    Problem,
    _counts,
    _divides,
    exchanges,
    faults,
    part_of,
    problems,
    read_answer,
    word_problems_task,
)

seeds = st.integers(0, 2**63 - 1)
JUGGLER = Problem("juggler", "Ada", 48, ("half", "two thirds"), ("golf", "blue"))


def test_a_problem_and_its_two_answers_in_words():
    assert JUGGLER.text == (
        "A juggler can juggle 48 balls. Half of the balls are golf. Two thirds of the golf balls are blue. "
        "How many blue balls are there?"
    )
    assert JUGGLER.direct == " The answer is 16."
    assert JUGGLER.chain == (
        " Let's think step by step. Half of 48 are golf: 24. Two thirds of 24 are blue: 16. The answer is 16."
    )


@given(seeds, st.sampled_from(STEPS))
def test_every_generated_chain_and_answer_is_right(seed, steps):
    problem = next(problems(seed, steps=(steps,)))
    assert faults(problem, problem.chain) == []
    assert read_answer(problem.chain) == read_answer(problem.direct) == problem.answer
    left = problem.count
    for share in problem.shares:
        if share.startswith("all but "):
            left -= int(share.split()[-1])
        else:
            numerator, denominator = SHARES[share]
            assert left % denominator == 0
            left = left // denominator * numerator
        assert left >= 1
    assert left == problem.answer >= 1
    assert problem.count <= LARGEST


@pytest.mark.parametrize(
    ("count", "share", "part"),
    [(12, "two thirds", 8), (13, "two thirds", None), (0, "half", None), (12, "all but 5", 7), (5, "all but 5", None)],
)
def test_a_part_is_a_positive_integer_or_none(count, share, part):
    assert part_of(count, share) == part


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map(tuple))
def test_the_possible_start_numbers_are_those_that_every_step_divides(shares):
    assert list(_counts(shares)) == [count for count in range(1, LARGEST + 1) if _divides(count, shares)]


@given(seeds, st.sampled_from(STEPS), st.data())
def test_a_changed_number_in_a_chain_is_detected(seed, steps, data):
    problem = next(problems(seed, steps=(steps,)))
    numbers = list(re.finditer(r"\d+", problem.chain))
    place = data.draw(st.sampled_from(numbers))
    other = data.draw(st.integers(0, 2 * LARGEST).filter(lambda number: number != int(place[0])))
    assert faults(problem, problem.chain[: place.start()] + str(other) + problem.chain[place.end() :])


@given(seeds, st.sampled_from(STEPS), st.data())
def test_a_changed_share_or_kind_and_a_missing_or_repeated_step_are_detected(seed, steps, data):
    problem = next(problems(seed, steps=(steps,)))
    sentences = problem.chain.split(". ")
    which = data.draw(st.integers(1, len(problem.shares)))
    assert faults(problem, ". ".join(sentences[:which] + sentences[which + 1 :]))
    assert faults(problem, ". ".join([*sentences[: which + 1], *sentences[which:]])), "a step that is taken twice"
    share, rest = sentences[which].split(" of ")
    other = data.draw(st.sampled_from(sorted(PARTS)).map(str.capitalize).filter(lambda one: one != share))
    assert faults(problem, ". ".join([*sentences[:which], f"{other} of {rest}", *sentences[which + 1 :]]))
    kind = data.draw(st.sampled_from(FORMS[problem.form].kinds).filter(lambda one: one != problem.kinds[which - 1]))
    other = sentences[which].replace(problem.kinds[which - 1], kind)
    assert faults(problem, ". ".join([*sentences[:which], other, *sentences[which + 1 :]]))


def test_a_right_answer_after_a_wrong_chain_is_detected():
    lucky = " Let's think step by step. Half of 48 are golf: 12. Two thirds of 12 are blue: 16. The answer is 16."
    assert read_answer(lucky) == JUGGLER.answer
    assert faults(JUGGLER, lucky) == [
        "step 1 is miscalculated: Half of 48 are golf: 12.",
        "step 2 is miscalculated: Two thirds of 12 are blue: 16.",
    ]
    missing = "there are 0 steps, expected 2"
    assert faults(JUGGLER, JUGGLER.direct) == [missing, "the answer is 16, expected 48 from the last step"]
    assert faults(JUGGLER, "") == [missing, "the answer is None, expected 48 from the last step"]
    assert read_answer(" Let's think step by step. Half of 48 are golf: 24.") is None


@given(seeds, st.sets(st.sampled_from(sorted(FORMS)), min_size=1), st.sets(st.sampled_from(STEPS), min_size=1))
def test_only_the_given_forms_and_numbers_of_steps_occur(seed, forms, steps):
    found = list(islice(problems(seed, forms=sorted(forms), steps=sorted(steps)), 20))
    assert {problem.form for problem in found} <= forms
    assert {len(problem.shares) for problem in found} <= steps
    assert found == list(islice(problems(seed, forms=sorted(forms), steps=sorted(steps)), 20)), "a seed repeats them"


def test_all_forms_and_numbers_of_steps_occur_half_of_the_shares_are_all_but_and_seeds_differ():
    found = list(islice(problems(0), 500))
    assert {problem.form for problem in found} == set(FORMS)
    assert {len(problem.shares) for problem in found} == set(STEPS)
    assert found[:20] != list(islice(problems(1), 20))
    shares = [share for problem in found for share in problem.shares]
    assert 0.4 < sum(share.startswith("all but") for share in shares) / len(shares) < 0.7


def test_an_exchange_is_a_question_with_one_of_its_two_answers():
    found = list(islice(problems(3), 50))
    answered = list(zip(found, exchanges(found, seed=4), strict=True))
    chained = [exchange == (problem.question, f"{problem.chain}\n\n") for problem, exchange in answered]
    direct = [exchange == (problem.question, f"{problem.direct}\n\n") for problem, exchange in answered]
    assert all(one != other for one, other in zip(chained, direct, strict=True))
    assert 10 < sum(chained) < 40


def test_unknown_forms_and_numbers_of_steps_are_refused():
    with pytest.raises(InputError, match=r"must be among juggler, baker, .* got .'jugler'"):
        problems(0, forms=("jugler",))
    with pytest.raises(InputError, match=r"must be among .1, 2, 3, 4., got .7"):
        problems(0, steps=(7,))


def test_the_kinds_of_a_form_are_different_words():
    for form in FORMS.values():
        assert len(set(form.kinds)) == len(form.kinds) > max(STEPS)
        assert all(kind.isalpha() for kind in form.kinds)


def test_the_labelled_task_has_right_answers_and_forms_that_no_decoder_is_pretrained_on():
    task = word_problems_task(200, 100)
    for row in (*task.train, *task.validation, *task.test):
        count, answer = int(re.search(r"\d+", row.text)[0]), int(task.answers[row.label])
        (share,) = (words for words in sorted(SHARES, key=len, reverse=True) if f" {words} " in f" {row.text} ")
        numerator, denominator = SHARES[share]
        assert count * numerator == answer * denominator
        assert count <= LARGEST
        assert ("has collected" in row.text) != ("orchard" in row.text), "the forms that are held out"
    assert not set(PRETRAINED_FORMS) & set(HELD_OUT_FORMS)
    assert not set(PRETRAINED_STEPS) & set(HELD_OUT_STEPS)
    texts = [row.text for row in (*task.train, *task.validation, *task.test)]
    assert len(set(texts)) == len(texts)
    for rows in (task.train, task.test):
        assert {row.label for row in rows} == {0, 1, 2, 3}
