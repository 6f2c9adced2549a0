"""Strict and flexible answer extraction, accuracy, and majority vote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.data.extraction import NUMBER, AnswerForm, Reading, answer_shares, majority, same_answer

SUM = AnswerForm(NUMBER, "The answer is", end=".")
MOOD = AnswerForm.of((" funny", " not funny", " slightly funny"), " This is")
PREFIXES = AnswerForm.of([" good", " good enough"], "It is")
NO_CUE = AnswerForm.of((" yes", " no"), "")
NUMBERS = AnswerForm.of((" 12", " 18"), "The answer is")


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
def test_numbers_are_extracted(text, strict, flexible):
    assert SUM.read(text) == Reading(strict, flexible)


@pytest.mark.parametrize(
    ("form", "text", "strict", "flexible"),
    [
        (MOOD, "This is not funny, though others are funny.", "not funny", "funny"),
        (MOOD, "This is Slightly Funny", "Slightly Funny", "Slightly Funny"),
        (MOOD, "It is not\nfunny", None, "funny"),
        (MOOD, "This is funnyish", None, None),
        (PREFIXES, "It is good enough.", "good enough", "good enough"),
        (PREFIXES, "It is good.", "good", "good"),
        (PREFIXES, "It is good  enough", "good enough", "good enough"),
        (PREFIXES, "It is good-ish", None, "good"),
        (PREFIXES, "It is good enoughly", None, "good"),
        (PREFIXES, "It is good\nIt is bad", "good", "good"),
        (NO_CUE, " no, not yes", "no", "yes"),
        (NO_CUE, "I say no", None, "no"),
        (NUMBERS, "The answer is 25", "25", "25"),
        (NUMBERS, "The answer is 120", "120", "120"),
    ],
)
def test_labels_are_extracted_the_longest_first(form, text, strict, flexible):
    assert form.read(text) == Reading(strict, flexible)


@given(st.integers(-(10**9), 10**9))
def test_every_integer_is_extracted_with_and_without_commas(number):
    for written in (str(number), f"{number:,}"):
        assert SUM.read(f"So: {written}, yes. The answer is {written}.") == Reading(str(number), str(number))


def test_the_shares_count_all_texts():
    readings = [Reading("7", "7"), Reading("8", "7"), Reading(None, "7"), Reading(None, None)]
    assert answer_shares(readings, ["7"] * 4) == {"strict": 0.25, "flexible": 0.75, "unparsed": 0.5}


def test_answers_are_compared_without_case_and_whitespace():
    assert same_answer("Not funny ", " not funny")
    assert not same_answer("funny", "not funny")
    assert not same_answer(None, "None")


def test_the_majority_wins_and_texts_without_an_answer_do_not_vote():
    texts = ["The answer is 3.", "hm", "hm", "hm", "So! The answer is 4.", "The answer is 4. "]
    assert majority(texts, SUM) == texts[4]
    assert majority(["hm", "well"], SUM) == "hm"
    assert majority(["The answer is 3.", "The answer is 4."], SUM) == "The answer is 3."


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_no_answer_is_more_frequent_than_the_majority(votes):
    texts = [f"The answer is {vote}." for vote in votes]
    winner = int(SUM.read(majority(texts, SUM)).strict)
    assert votes.count(winner) == max(map(votes.count, votes))
