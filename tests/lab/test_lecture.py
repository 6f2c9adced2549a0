"""The lecture's examples: their shots are solved correctly, and their expected answers are right."""

import re

import pytest

from minillm.data.extraction import AnswerForm
from minillm.lab.lecture import EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_has_two_templates_and_an_expected_label(name):
    one = EXAMPLES[name]
    assert len({template.name for template in one.templates}) == 2
    assert one.labels is None or f" {one.expected}" in one.labels
    for template in one.templates:
        answers = {shot.answer for shot in template.shots}
        assert answers <= set(one.labels or answers)
        assert one.text not in [shot.text for shot in template.shots]


def test_every_sum_in_a_chain_is_right_and_leads_to_the_answer():
    shots = {shot for one in EXAMPLES.values() for way in one.templates for shot in way.shots if shot.chain}
    assert shots
    for shot in shots:
        sums = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", shot.chain)
        assert sums[-1][-1] == shot.answer.strip()
        for left, sign, right, result in sums:
            left, right = int(left), int(right)
            assert {"+": left + right, "-": left - right, "*": left * right}[sign] == int(result)


def test_the_expected_numbers_are_right():
    juggler, cans = EXAMPLES["juggler"], EXAMPLES["cans"]
    balls = int(re.findall(r"\d+", juggler.text)[0])
    assert int(juggler.expected) == balls // 2 // 2
    has, boxes, each, gives = map(int, re.findall(r"\d+", cans.text))
    assert int(cans.expected) == has + boxes * each - gives


def test_not_funny_is_not_extracted_as_funny():
    labels = EXAMPLES["funny"].labels
    assert AnswerForm.of(labels, "This text is").read("This text is not funny").strict == "not funny"
