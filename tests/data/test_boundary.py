"""The space between prompt and answer belongs to the answer: a prompt that ends with one has other tokens."""

from dataclasses import replace

import pytest

from minillm import InputError
from minillm.data.boundary import refuse_merging, refuse_trailing_space, spelled
from minillm.data.templates import Template
from tests.prompting.asked import TASK, TOKENIZER


def test_a_trailing_space_changes_the_tokens_of_the_same_text():
    right = TOKENIZER.encode("is") + TOKENIZER.encode(" the")
    wrong = TOKENIZER.encode("is ") + TOKENIZER.encode("the")
    assert TOKENIZER.decode(right) == TOKENIZER.decode(wrong)
    assert right == TOKENIZER.encode("is the") != wrong


@pytest.mark.parametrize("prompt", ["Review: {text}\nSentiment: ", "{text} "])
def test_a_prompt_that_ends_with_a_space_is_refused_everywhere(prompt):
    for make in (refuse_trailing_space, Template, lambda prompt: replace(TASK, prompt=prompt)):
        with pytest.raises(InputError, match="ends with a space"):
            make(prompt)


def test_a_space_before_a_cue_is_allowed():
    assert Template("{text} ", cue="I say").render("x") == "x I say"
    with pytest.raises(InputError, match="ends with a space"):
        Template("{text}", cue=" I say ")


def test_an_answer_that_shares_a_token_with_the_prompt_is_refused():
    refuse_merging(TOKENIZER, "this is", [" the", " theme"])
    assert len(TOKENIZER.encode("the")) == 1
    with pytest.raises(InputError, match="share a token"):
        refuse_merging(TOKENIZER, "this is t", ["he"])
    with pytest.raises(InputError, match="'a text t', and the answer 'he'"):
        Template("{text}").answers(TOKENIZER, ["12", "a text t"], ["he"])


def test_tokens_are_shown_in_brackets_with_their_spaces_and_newlines():
    assert spelled(TOKENIZER, TOKENIZER.encode("the film\nis")) == "[the][ film][\\n][is]"
