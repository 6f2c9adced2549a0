"""Prompts that are too long are refused before anything runs, or their texts are cut so that they just fit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError, adapt
from minillm.data.templates import Question, Shot, Template
from minillm.prompting.lengths import Room, fit, fit_examples, room
from tests.prompting.asked import DECODER, TOKENIZER

TEMPLATE = Template("Review: {text}\nSentiment:")
CHAT = replace(TEMPLATE, chat=True, instruction="Judge.")
TWICE = Template("{text} Again: {text}:")
texts = st.text("the film is 12é\n", min_size=1, max_size=60)


def tokens(question):
    return len(question.encode(TOKENIZER))


def cut(text, most, truncate, template=TEMPLATE):
    return fit(TOKENIZER, [Question(template, text)], [Room(most, 0, 0)], truncate, ["a"])


@given(texts, st.sampled_from((TEMPLATE, CHAT, TWICE)), st.sampled_from(("left", "right")), st.integers(1, 12))
def test_a_cut_prompt_fits_with_as_much_of_the_text_as_there_is_room_for(text, template, truncate, room):
    most = tokens(Question(template, "")) + 3 + room
    found = cut(text, most, truncate, template)
    question, prompt = found[0][0], found[1][0]
    assert prompt == question.encode(TOKENIZER)
    assert len(prompt) <= most
    assert question.template is template
    if tokens(Question(template, text)) <= most:
        assert question.text == text
        return
    spans = TOKENIZER.pipeline.encode(text).offsets
    parts = [text[:end].rstrip() if truncate == "right" else text[start:].lstrip() for start, end in spans]
    parts = [*(parts if truncate == "right" else reversed(parts)), text]
    longest = len(parts) - 1 - parts[::-1].index(question.text)
    assert tokens(Question(template, parts[longest + 1])) > most, "the next token of the text would not fit"


def test_by_hand():
    text = "the film is the theme"
    assert len(TOKENIZER.encode(text)) == 5
    most = tokens(Question(TEMPLATE, text))
    for count, right, left in ((5, text, text), (4, "the film is the", "film is the theme"), (1, "the", "theme")):
        for side, expected in (("right", right), ("left", left)):
            assert cut(text, most - 5 + count, side)[0][0].text == expected


def test_the_first_long_row_is_named_with_the_number_of_long_rows_and_the_longest(capsys):
    questions = [Question(TEMPLATE, "the film" * count) for count in (1, 9, 2, 15)]
    rooms = [Room(64, 30, 4 + n) for n in range(4)]
    longest = tokens(questions[3])
    sentence = (
        rf"film.csv, line 3 \('{'the film' * 5}'\): its prompt has {tokens(questions[1])} tokens, and 29 fit \(a "
        rf"context of 64, 30 for the method's prefix, 5 for the answer\); 2 of 4 texts are too long, the longest "
        rf"prompt has {longest}: shorten them, or set truncate \(--truncate\) to left or right"
    )
    with pytest.raises(InputError, match=sentence):
        fit(TOKENIZER, questions, rooms, "error", [f"film.csv, line {n}" for n in (2, 3, 4, 5)])
    fit(TOKENIZER, questions, rooms, "right", [""] * 4)
    assert capsys.readouterr().err == f"truncated (right): 2 of 4 texts, the longest prompt has {longest} tokens\n"


def test_a_template_is_never_cut():
    for most in (-4, 3):
        with pytest.raises(InputError, match=rf"without its text has \d+ tokens, and {max(most, 0)} fit"):
            cut("the film", most, "right")
    with pytest.raises(InputError, match="show fewer or shorter examples"):
        cut("the film", 9, "left", replace(TEMPLATE, shots=(Shot("the", " good"),)))


def test_the_prefix_of_a_method_takes_room():
    context = DECODER.config.context_length
    assert room(DECODER, 2) == (context, 0, 2)
    for method in (adapt.PrefixTuning(DECODER, 3), adapt.SoftPrompt(DECODER, 3)):
        assert room(method, 2) == (context, 3, 2)
        assert room(method, 2).prompt == context - 5
    assert room(adapt.InContext(DECODER, torch.tensor([[1, 2]])), 0).prefix == 2


def test_long_examples_are_cut_to_equal_shares_where_they_leave_a_text_no_share(capsys):
    shots = (Shot("the film " * 20, " good"), Shot("the end", " bad"))
    template = replace(TEMPLATE, shots=shots)
    bare = tokens(Question(replace(TEMPLATE, shots=tuple(shot._replace(text="") for shot in shots)), ""))
    for free, expected in ((200, template.shots[0].text), (30, "the film the film the film the film the film")):
        found = fit_examples(TOKENIZER, template, Room(bare + free, 0, 0), "right")
        assert found.shots == (Shot(expected.rstrip() if free == 30 else expected, " good"), shots[1])
        assert bare + free - tokens(Question(found, "")) >= free // 3 - 1
    assert capsys.readouterr().err == "truncated (right): 1 of 2 examples, to 10 tokens\n"
    assert fit_examples(TOKENIZER, template, Room(bare + 30, 0, 0), "error") == template
