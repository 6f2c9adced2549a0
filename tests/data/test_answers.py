"""No answer's ids begin another's: where they would, all answers of the set carry the same end."""

from dataclasses import replace

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError, Tokenizer
from minillm.data.answers import encode_answers
from minillm.data.templates import Shot, Template
from minillm.training.tokenizers import byte_pairs
from tests.prompting.asked import TOKENIZER

BYTES = byte_pairs([], 257)
ENDLESS = Tokenizer(tokenizers.Tokenizer.from_str(BYTES.pipeline.to_str()), {})
QUESTION, SURE = Template("Text: {text}\nLabel:"), (" not", " not sure")
distinct_texts = st.lists(st.text("ab ", min_size=1, max_size=3), min_size=2, max_size=5, unique=True)


def begins(ids):
    return any(one != other and other[: len(one)] == one for one in ids for other in ids)


@given(distinct_texts)
def test_no_answer_begins_another_and_all_carry_the_same_end_if_any_has_one(answers):
    plain, ids = [BYTES.encode(answer) for answer in answers], encode_answers(BYTES, answers)
    assert not begins(ids)
    assert ids == ([[*one, BYTES.eos] for one in plain] if begins(plain) else plain)


@pytest.mark.parametrize(
    ("template", "answers", "end"),
    [
        (QUESTION, SURE, TOKENIZER.eos),
        (replace(QUESTION, shots=(Shot("x", " not"),)), SURE, TOKENIZER.encode("\n")[0]),
        (replace(QUESTION, end=".\n"), SURE, TOKENIZER.encode(".")[0]),
        (replace(QUESTION, end=".", chat=True), SURE, TOKENIZER.encode(".")[0]),
        (replace(QUESTION, chat=True), SURE, TOKENIZER.eos),
        (replace(QUESTION, end=" sure"), SURE, TOKENIZER.eos),  # " not" with this end begins " not sure" with it
        (replace(QUESTION, end="e film"), (" th", " th th"), TOKENIZER.eos),  # merges with the answer: " the"
    ],
    ids=str,
)
def test_the_end_is_the_token_after_an_answer_in_the_prompt_else_eos(template, answers, end):
    ids = template.answers(TOKENIZER, ["a"], answers)
    words = [answer.lstrip() if template.chat else answer for answer in answers]
    assert ids == [[*TOKENIZER.encode(word), end] for word in words]
    assert not begins(ids)


def test_without_any_end_answers_that_begin_alike_are_refused_but_others_are_not():
    assert encode_answers(ENDLESS, [" a", " b"]) == [BYTES.encode(" a"), BYTES.encode(" b")]
    with pytest.raises(InputError, match=r"' 1' begins the answer ' 10'.* no end of text \(eos\)"):
        encode_answers(ENDLESS, [" 10", " 2", " 1"])
    assert encode_answers(ENDLESS, [" 1", " 10"], after="\n") == [BYTES.encode(" 1\n"), BYTES.encode(" 10\n")]
