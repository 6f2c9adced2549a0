"""Word problems: every chain that is generated can be checked, and every number in it that is changed is noticed."""

import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.data import word_problems
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
    exchanges,
    faults,
    part_of,
    problems,
    read_answer,
    word_problems_task,
)

seeds = st.integers(0, 2**63 - 1)
JUGGLER = Problem("juggler", "Ada", 48, ("half", "two thirds"), ("golf", "blue"))


def test_a_problem_reads_as_it_should():
    assert JUGGLER.text == (
        "A juggler can juggle 48 balls. Half of the balls are golf. Two thirds of the golf balls are blue. "
        "How many blue balls are there?"
    )
    assert JUGGLER.direct == " The answer is 16."
    assert JUGGLER.chain == (
        " Let's think step by step. Half of 48 are golf: 24. Two thirds of 24 are blue: 16. The answer is 16."
    )


@given(seeds, st.sampled_from(STEPS))
def test_every_generated_chain_is_right_and_its_answer_too(seed, steps):
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
def test_a_part_is_a_whole_number_of_things_and_never_none_of_them(count, share, part):
    assert part_of(count, share) == part


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map(tuple))
def test_a_problem_can_begin_with_just_those_numbers_that_every_step_divides(shares):
    def left(count):
        for share in shares:
            count = None if count is None else part_of(count, share)
        return count

    assert list(_counts(shares)) == [count for count in range(1, LARGEST + 1) if left(count) is not None]


def test_half_of_all_shares_take_some_away():
    found = [share for problem in islice(problems(0), 500) for share in problem.shares]
    taken = sum(share.startswith("all but") for share in found)
    assert 0.4 < taken / len(found) < 0.7


@given(seeds, st.sampled_from(STEPS), st.data())
def test_every_single_number_of_a_chain_that_is_changed_is_noticed(seed, steps, data):
    problem = next(problems(seed, steps=(steps,)))
    numbers = list(re.finditer(r"\d+", problem.chain))
    place = data.draw(st.sampled_from(numbers))
    other = data.draw(st.integers(0, 2 * LARGEST).filter(lambda number: number != int(place[0])))
    assert faults(problem, problem.chain[: place.start()] + str(other) + problem.chain[place.end() :])


@given(seeds, st.sampled_from(STEPS), st.data())
def test_every_share_that_is_exchanged_and_every_step_that_is_left_out_is_noticed(seed, steps, data):
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


def test_a_right_answer_for_a_wrong_reason_is_told_from_one_for_the_right_reason():
    lucky = " Let's think step by step. Half of 48 are golf: 12. Two thirds of 12 are blue: 16. The answer is 16."
    assert read_answer(lucky) == JUGGLER.answer
    assert faults(JUGGLER, lucky) == [
        "step 1 is miscalculated: Half of 48 are golf: 12.",
        "step 2 is miscalculated: Two thirds of 12 are blue: 16.",
    ]
    assert faults(JUGGLER, JUGGLER.direct) == ["there are 0 steps, and the problem has 2", *_unsupported(16, 48)]


def _unsupported(answer, left):
    return [f"the answer is {answer}, and the last step leaves {left}"]


def test_an_answer_that_is_none_is_none():
    assert read_answer(" Let's think step by step. Half of 48 are golf: 24.") is None
    assert faults(JUGGLER, "") == ["there are 0 steps, and the problem has 2", *_unsupported(None, 48)]


@given(seeds, st.sets(st.sampled_from(sorted(FORMS)), min_size=1), st.sets(st.sampled_from(STEPS), min_size=1))
def test_only_the_forms_and_step_counts_that_were_asked_for_occur(seed, forms, steps):
    found = list(islice(problems(seed, forms=sorted(forms), steps=sorted(steps)), 20))
    assert {problem.form for problem in found} <= forms
    assert {len(problem.shares) for problem in found} <= steps
    assert found == list(islice(problems(seed, forms=sorted(forms), steps=sorted(steps)), 20)), "a seed repeats them"


def test_every_form_and_every_step_count_occurs_and_another_seed_gives_other_problems():
    found = list(islice(problems(0), 500))
    assert {problem.form for problem in found} == set(FORMS)
    assert {len(problem.shares) for problem in found} == set(STEPS)
    assert found[:20] != list(islice(problems(1), 20))


def test_an_exchange_is_a_question_and_either_answer():
    found = list(islice(problems(3), 50))
    answered = exchanges(found, seed=4)
    assert [question for question, _ in answered] == [problem.question for problem in found]
    chained = [answer == f"{problem.chain}\n\n" for problem, (_, answer) in zip(found, answered, strict=True)]
    direct = [answer == f"{problem.direct}\n\n" for problem, (_, answer) in zip(found, answered, strict=True)]
    assert all(one != other for one, other in zip(chained, direct, strict=True))
    assert 10 < sum(chained) < 40


def test_what_there_is_not_is_refused_in_a_sentence():
    with pytest.raises(InputError, match="no form 'jugler' of word problem; there are: juggler, baker"):
        problems(0, forms=("jugler",))
    with pytest.raises(InputError, match="1, 2, 3, 4 steps"):
        problems(0, steps=(7,))


def test_every_kind_of_every_form_is_a_word_of_its_own():
    for form in word_problems.FORMS.values():
        assert len(set(form.kinds)) == len(form.kinds) > max(STEPS)
        assert all(kind.isalpha() for kind in form.kinds)


def test_the_labelled_task_is_new_to_every_decoder_that_was_pretrained_and_its_answers_are_right():
    task = word_problems_task(200, 100)
    seen = set(PRETRAINED_FORMS)
    for row in (*task.train, *task.validation, *task.test):
        count, answer = int(re.search(r"\d+", row.text)[0]), int(task.answers[row.label])
        (share,) = (words for words in sorted(SHARES, key=len, reverse=True) if f" {words} " in f" {row.text} ")
        numerator, denominator = SHARES[share]
        assert count * numerator == answer * denominator
        assert count <= LARGEST
        assert ("has collected" in row.text) != ("orchard" in row.text), "the forms that are held out"
    assert not seen & set(HELD_OUT_FORMS)
    assert not set(PRETRAINED_STEPS) & set(HELD_OUT_STEPS)
    texts = [row.text for row in (*task.train, *task.validation, *task.test)]
    assert len(set(texts)) == len(texts)
    for rows in (task.train, task.test):
        assert {row.label for row in rows} == {0, 1, 2, 3}
