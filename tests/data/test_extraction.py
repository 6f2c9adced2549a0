"""An answer in a free text is read strictly, flexibly or not at all, and what cannot be read does not vote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.data.extraction import NUMBER, AnswerForm, Reading, answer_shares, majority, same_answer

SUM = AnswerForm(NUMBER, "The answer is", end=".")
MOOD = AnswerForm.of((" funny", " not funny", " slightly funny"), " This is")


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" 3 + 4 = 7. The answer is 7.", "7", "7"),
        (" The answer is 7. The answer is 8.", "7", "8"),
        (" 3 + 4 = 7", None, "7"),
        (" The answer is 7", None, "7"),
        (" the answer is: 1,234,567.", "1234567", "1234567"),
        (" The answer is -3.5.", "-3.5", "-3.5"),
        (" The answer is 7.5 or so.", None, "7.5"),
        (" The answer is 7th.", None, None),
        (" The answer is many.", None, None),
        ("", None, None),
    ],
)
def test_numbers(text, strict, flexible):
    assert SUM.read(text) == Reading(strict, flexible)


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("This is not funny, though others are funny.", "not funny", "funny"),
        ("This is Slightly Funny", "Slightly Funny", "Slightly Funny"),
        ("It is not\nfunny", None, "funny"),
        ("This is funnyish", None, None),
    ],
)
def test_labels_and_of_several_that_fit_the_longest(text, strict, flexible):
    assert MOOD.read(text) == Reading(strict, flexible)


def test_without_a_cue_the_answer_is_strict_where_it_comes_first():
    form = AnswerForm.of((" yes", " no"), "")
    assert form.read(" no, not yes") == Reading("no", "yes")
    assert form.read("I say no") == Reading(None, "no")


def test_where_all_answers_are_numbers_another_number_is_a_wrong_answer_and_not_none():
    form = AnswerForm.of((" 12", " 18"), "The answer is")
    assert form.read("The answer is 25") == Reading("25", "25")
    assert form.read("The answer is 120") == Reading("120", "120")


@given(st.integers(-(10**9), 10**9))
def test_every_whole_number_is_read_with_commas_and_without(number):
    for written in (str(number), f"{number:,}"):
        assert SUM.read(f"So: {written}, yes. The answer is {written}.") == Reading(str(number), str(number))


def test_the_shares_are_of_all_texts():
    readings = [Reading("7", "7"), Reading("8", "7"), Reading(None, "7"), Reading(None, None)]
    assert answer_shares(readings, ["7"] * 4) == {"strict": 0.25, "flexible": 0.75, "unparsed": 0.5}


def test_case_and_whitespace_make_no_other_answer():
    assert same_answer("Not funny ", " not funny")
    assert not same_answer("funny", "not funny")
    assert not same_answer(None, "None")


def test_the_majority_wins_and_what_cannot_be_read_does_not_vote():
    texts = ["The answer is 3.", "hm", "hm", "hm", "So! The answer is 4.", "The answer is 4. "]
    assert majority(texts, SUM) == texts[4]
    assert majority(["hm", "well"], SUM) == "hm"
    assert majority(["The answer is 3.", "The answer is 4."], SUM) == "The answer is 3."


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_no_answer_is_given_more_often_than_the_majoritys(votes):
    texts = [f"The answer is {vote}." for vote in votes]
    winner = int(SUM.read(majority(texts, SUM)).strict)
    assert votes.count(winner) == max(map(votes.count, votes))


def test_of_labels_that_begin_alike_the_longest_that_fits_is_read():
    form = AnswerForm.of([" good", " good enough"], "It is")
    assert form.read("It is good enough.") == Reading("good enough", "good enough")
    assert form.read("It is good.") == Reading("good", "good")
