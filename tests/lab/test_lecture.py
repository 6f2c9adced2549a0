"""The lecture's examples are its own prompts, and their expected answers are right."""

import re

import pytest

from minillm.data.extraction import AnswerForm
from minillm.lab.lecture import EXAMPLES, FORM


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_has_an_expected_label_or_a_number(name):
    one = EXAMPLES[name]
    assert f" {one.expected}" in (one.labels or [f" {int(one.expected)}"])
    for template in one.templates:
        assert one.text in template.render(one.text)
        assert one.text not in [shot.text for shot in template.shots]


def test_the_few_shot_prompts_are_those_of_the_lecture():
    direct, chain = (template.render("How?") for template in EXAMPLES["cans"].templates)
    start = "Q: A juggler can juggle 16 balls, half of which are golf balls, half of them are green. How many green "
    assert direct.startswith(start)
    assert direct.endswith("\nA: 4+x, where x is the number of green balls that are not golf balls.\n\nQ: How?\nA:")
    assert chain.startswith(start)
    assert "\nA: Let's think step by step: There are 8 golf balls. 4 golf balls are green. She has 4" in chain


def test_the_expected_numbers_are_half_of_half():
    for name in ("juggler", "cans"):
        one = EXAMPLES[name]
        assert int(one.expected) == int(re.findall(r"\d+", one.text)[0]) // 2 // 2


def test_the_number_after_answer_is_comes_before_the_last_one():
    assert FORM.read("16/2 = 8 and 8/2 = 4, so the answer is 4 and not 8.") == ("4", "8")
    assert FORM.read("There are 8 golf balls and 4 green ones.") == (None, "4")


def test_not_funny_is_not_extracted_as_funny():
    labels = EXAMPLES["funny"].labels or ()
    assert AnswerForm.of(labels, "This text is").read("This text is not funny").strict == "not funny"
