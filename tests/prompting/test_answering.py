"""Free answers equal greedy decoding row by row; chains of thought get a conclusion; samples vote."""

from dataclasses import replace

import pytest
import torch

from minillm import InputError, generate
from minillm.data.extraction import NUMBER, AnswerForm
from minillm.data.templates import Question, Shot, Template, task_template
from minillm.prompting import answering
from minillm.prompting.answering import (
    GenerationSettings,
    complete,
    concluded_answers,
    generated_answers,
    self_consistent,
)
from minillm.prompting.prompt_cache import PromptCache
from tests.prompting.asked import DECODER, TASK, TOKENIZER, TRAIN, tokens_processed

LETTERS = GenerationSettings(max_new_tokens=6, stop=())
TEMPLATE = Template("Q: {text}\nA:", cue=" The answer is")
QUESTIONS = [Question(task_template(TASK, TRAIN[:4]), text) for text in ("a", "a longer text", "b", "the film is 12")]
SUM = AnswerForm(NUMBER, "answer is")


def alone(prompt):
    new = generate(DECODER, torch.tensor([prompt]), max_new_tokens=6, stop=TOKENIZER.stop)[0, len(prompt) :]
    return TOKENIZER.decode(new.tolist())


def test_answers_in_a_batch_equal_answers_alone():
    prompts = [question.encode(TOKENIZER) for question in QUESTIONS]
    expected = [alone(prompt) for prompt in prompts]
    assert complete(DECODER, TOKENIZER, prompts, LETTERS) == expected
    assert generated_answers(PromptCache(DECODER), TOKENIZER, QUESTIONS, LETTERS) == expected


def test_a_chat_is_answered_in_its_turn():
    chat = Question(replace(TEMPLATE, chat=True, shots=(Shot("x", " 1"),)), "y")
    expected = " The answer is" + alone(chat.encode(TOKENIZER))
    assert generated_answers(PromptCache(DECODER), TOKENIZER, [chat], LETTERS) == [expected]


def test_the_examples_are_processed_once_for_all_answers():
    questions = [Question(QUESTIONS[0].template, f"film {n}") for n in range(100, 164)]
    with tokens_processed() as processed:
        generated_answers(PromptCache(DECODER), TOKENIZER, questions, GenerationSettings(max_new_tokens=2, stop=()))
    prompts = [question.encode(TOKENIZER) for question in questions]
    shared = processed[0]
    assert shared > 60
    # Each query's own tokens, all of one length, and the first of the two new ones: the second is only output.
    assert sum(processed) == shared + sum(len(prompt) - shared + 1 for prompt in prompts)


def test_an_answer_ends_before_the_first_stop_text_or_at_a_stop_token(monkeypatch):
    text, tail = "one\ntwo.\n\nthree", []

    def output(model, ids, **options):
        return torch.cat((ids, torch.tensor([TOKENIZER.encode(text) + tail]).expand(len(ids), -1)), 1)

    monkeypatch.setattr(answering, "generate", output)
    for stop, expected in (((), text), (("\n\n",), "one\ntwo."), (("three", "\n"), "one")):
        assert complete(DECODER, TOKENIZER, [[5]], GenerationSettings(stop=stop)) == [expected]
    tail += [TOKENIZER.eos, *TOKENIZER.encode("more")]
    assert complete(DECODER, TOKENIZER, [[5], [6]], GenerationSettings(stop=())) == [text] * 2


def test_equal_seeds_give_equal_samples_and_different_seeds_different_ones():
    settings = (replace(LETTERS, temperature=1.5, seed=seed) for seed in (1, 1, 2))
    first, again, other = (generated_answers(PromptCache(DECODER), TOKENIZER, QUESTIONS, each) for each in settings)
    assert first == again != other


@pytest.fixture
def prompts(monkeypatch):
    """The prompts of each stage; the generated text follows from the question and the stage."""
    asked = []

    def generated(cache, tokenizer, questions, settings, name=""):
        asked.append([question.template.render(question.text) + question.generated for question in questions])
        return [q.template.answer_start + q.generated + TEXTS[q.text, bool(q.generated)] for q in questions]

    monkeypatch.setattr(answering, "generated_answers", generated)
    return asked


TEXTS = {("1+1", False): " It is 2. So the answer is 2.", ("2+2", False): " It is 4. Hm", ("2+2", True): " 4"}


def test_the_second_stage_is_for_chains_of_thought_without_a_conclusion(prompts):
    chain = Template("Q: {text}\nA:", chain=True, conclusion=" So the answer is")
    questions = [Question(chain, "1+1"), Question(chain, "2+2")]
    found = concluded_answers(PromptCache(DECODER), TOKENIZER, questions, LETTERS)
    cue = " Let's think step by step."
    assert found == [f"{cue} It is 2. So the answer is 2.", f"{cue} It is 4. Hm So the answer is 4"]
    assert prompts[1:] == [[f"Q: 2+2\nA:{cue} It is 4. Hm So the answer is"]]


def test_an_answer_without_a_chain_has_one_stage(prompts):
    found = concluded_answers(PromptCache(DECODER), TOKENIZER, [Question(TEMPLATE, "2+2")], LETTERS)
    assert found == [" The answer is It is 4. Hm"]
    assert len(prompts) == 1


def test_self_consistency_takes_the_majority_over_samples_of_different_seeds():
    seeds = []

    def answer(settings):
        seeds.append(settings.seed)
        sample = len(seeds) - 1
        return [f"answer is {[3, 4, 4][sample]}", f"answer is {[5, 5, 6][sample]}", "hm"]

    found = self_consistent(answer, GenerationSettings(temperature=0.7, seed=7), 3, SUM)
    assert found == ["answer is 4", "answer is 5", "hm"]
    assert len(set(seeds)) == 3


def test_self_consistency_needs_a_temperature():
    with pytest.raises(InputError, match="temperature above 0, got 3 and 0"):
        self_consistent(lambda settings: ["a"], GenerationSettings(), 3, SUM)
