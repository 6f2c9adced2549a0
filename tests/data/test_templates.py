"""Templates: the prompts of the four techniques, as text, as chat and as tokens."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from minillm import InputError, Tokenizer
from minillm.data.tasks import LabelledText
from minillm.data.templates import Shot, Template, task_template
from tests.prompting.asked import TASK, TOKENIZER, TRAIN
from tests.training.tokenizer_training import smollm, trained

SUM = Template("Q: {text}\nA:", cue=" The answer is", end=".", conclusion=" So the answer is")
SHOT = Shot("1 + 2 + 3?", " 6", "1 + 2 = 3, and 3 + 3 = 6.")
CHAINED = "Q: 2 + 2?\nA: Let's think step by step."
WAYS = {
    "zero-shot": (SUM, "Q: 2 + 2?\nA: The answer is"),
    "zero-shot chain of thought": (replace(SUM, chain=True), CHAINED),
    "few-shot": (replace(SUM, shots=(SHOT,)), "Q: 1 + 2 + 3?\nA: The answer is 6.\n\nQ: 2 + 2?\nA: The answer is"),
    "few-shot chain of thought": (
        replace(SUM, shots=(SHOT,), chain=True),
        f"Q: 1 + 2 + 3?\nA: Let's think step by step. {SHOT.chain} So the answer is 6.\n\n{CHAINED}",
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_four_techniques_are_one_template_with_examples_or_chains(name):
    template, prompt = WAYS[name]
    assert template.name == name
    assert template.render("2 + 2?") == template.preview("2 + 2?") == prompt
    assert TOKENIZER.decode(template.encode(TOKENIZER, "2 + 2?")) == prompt


def test_a_template_is_hashable_and_its_preview_has_a_placeholder():
    again = Template("Q: {text}\nA:", " The answer is", ".", " So the answer is")
    assert len({SUM, again, replace(SUM, chain=True)}) == 2
    assert SUM.preview() == "Q: {text}\nA: The answer is"
    assert replace(SUM, instruction="Add.", shots=(SHOT,)).render("2?").startswith("Add.\n\nQ: 1 + 2 + 3?")


def test_in_a_chat_the_examples_are_turns_and_the_prompt_begins_the_answer():
    chat = replace(SUM, chat=True, shots=(SHOT,), instruction="Add.")
    expected = (
        "<|im_start|>system\nAdd.<|im_end|>\n"
        "<|im_start|>user\nQ: 1 + 2 + 3?\nA:<|im_end|>\n<|im_start|>assistant\nThe answer is 6.<|im_end|>\n"
        "<|im_start|>user\nQ: 2 + 2?\nA:<|im_end|>\n<|im_start|>assistant\nThe answer is"
    )
    assert TOKENIZER.decode(chat.encode(TOKENIZER, "2 + 2?")) == expected == chat.preview("2 + 2?", TOKENIZER)
    assert chat.preview("2 + 2?") == chat.render("2 + 2?")


def test_an_answer_keeps_its_space_unless_it_begins_a_turn():
    positive = TOKENIZER.encode(" positive"), TOKENIZER.encode("positive")
    template = task_template(TASK)
    assert template.answers(TOKENIZER, ["a"], [" positive"]) == [positive[0]]
    assert replace(template, chat=True).answers(TOKENIZER, ["a"], [" positive"]) == [positive[1]]
    for begun in ({"cue": " The answer is"}, {"chain": True}):
        assert replace(template, chat=True, **begun).answers(TOKENIZER, ["a"], [" positive"]) == [positive[0]]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8), st.booleans())
def test_generated_text_is_appended_to_the_prompt_unchanged(text, chat):
    template = replace(SUM, chat=chat, chain=True)
    start = TOKENIZER.decode(template.encode(TOKENIZER, "2?"))
    assert TOKENIZER.decode(template.encode(TOKENIZER, "2?", " " + text)) == f"{start} {text}"


def test_a_chain_ends_with_the_conclusion_whether_or_not_the_model_generated_one():
    chain = replace(SUM, chain=True)
    begun = chain.answer_start
    assert chain.conclude(f"{begun} 1 + 1 = 2. So the answer is 2. Q: 3?") == " 1 + 1 = 2. So the answer is"
    assert chain.conclude(f"{begun} 1 + 1 = \n") == " 1 + 1 = So the answer is"


def test_bos_is_prepended_if_the_tokenizer_adds_it():
    pipeline = trained(smollm())
    pipeline.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer = Tokenizer(pipeline, {"bos": "<|im_start|>"})
    assert tokenizer.starts_with_bos
    assert SUM.encode(tokenizer, "x") == [1, *SUM.encode(TOKENIZER, "x")]


def test_rows_of_a_task_become_examples_with_its_answers():
    assert task_template(TASK, TRAIN[:2]).render("a {text} b") == (
        "Review: film 0\nSentiment: negative\n\nReview: film 1\nSentiment: positive\n\nReview: a {text} b\nSentiment:"
    )


def test_a_chain_precedes_the_cue_of_a_task():
    rows = [LabelledText("1 + 1?", 0, "One more than 1."), LabelledText("1 + 2?", 1, "Two more than 1.")]
    task = replace(
        TASK, prompt="{text} The answer is", cue=" The answer is", end=".", answers=(" 2", " 3"), train=rows, test=rows
    )
    assert task_template(task, rows[:1]).render("2?") == "1 + 1? The answer is 2.\n\n2? The answer is"
    assert task_template(task, rows[:1], chain=True).render("2?") == (
        "1 + 1? Let's think step by step. One more than 1. The answer is 2.\n\n2? Let's think step by step."
    )


def test_invalid_templates_are_refused():
    with pytest.raises(InputError, match="the placeholder of the text"):
        Template("Well?")
    with pytest.raises(InputError, match="these examples have no chains"):
        task_template(TASK, TRAIN[:2], chain=True)
    assert task_template(TASK, chain=True).answer_start == " Let's think step by step."
