"""Free answers are what greedy decoding says, row by row; a chain comes to its conclusion; samples vote."""

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
from tests.prompting.asked import DECODER, TASK, TOKENIZER, TRAIN, tokens_read

LETTERS = GenerationSettings(max_new_tokens=6, stop=())
TEMPLATE = Template("Q: {text}\nA:", cue=" The answer is")
QUESTIONS = [Question(task_template(TASK, TRAIN[:4]), text) for text in ("a", "a longer text", "b", "the film is 12")]
SUM = AnswerForm(NUMBER, "answer is")


def alone(prompt, **how):
    return TOKENIZER.decode(
        generate(DECODER, torch.tensor([prompt]), max_new_tokens=6, **how)[0, len(prompt) :].tolist()
    )


def test_each_prompt_is_answered_as_it_would_be_alone():
    prompts = [question.encode(TOKENIZER) for question in QUESTIONS]
    expected = [alone(prompt, stop=TOKENIZER.stop) for prompt in prompts]
    assert complete(DECODER, TOKENIZER, prompts, LETTERS) == expected
    assert generated_answers(PromptCache(DECODER), TOKENIZER, QUESTIONS, LETTERS) == expected


def test_the_examples_are_read_once_for_all_answers():
    questions = [Question(QUESTIONS[0].template, f"film {n}") for n in range(100, 164)]
    with tokens_read() as read:
        generated_answers(PromptCache(DECODER), TOKENIZER, questions, GenerationSettings(max_new_tokens=2, stop=()))
    prompts = [question.encode(TOKENIZER) for question in questions]
    shared = read[0]
    assert shared > 60
    # Each query's own tokens, all of one length, and the first of the two new ones: the second is not read.
    assert sum(read) == shared + sum(len(prompt) - shared + 1 for prompt in prompts)


def test_an_answer_ends_before_the_first_text_to_stop_at_or_at_the_models_end(monkeypatch):
    output = {"text": "one\ntwo.\n\nthree", "end": False}

    def spoke(model, ids, **how):
        end = [TOKENIZER.eos, *TOKENIZER.encode("more")] if output["end"] else []
        new = TOKENIZER.encode(output["text"]) + end
        return torch.cat((ids, torch.tensor([new]).expand(len(ids), -1)), 1)

    monkeypatch.setattr(answering, "generate", spoke)
    for stop, expected in (((), output["text"]), (("\n\n",), "one\ntwo."), (("three", "\n"), "one")):
        assert complete(DECODER, TOKENIZER, [[5]], GenerationSettings(stop=stop)) == [expected]
    output["end"] = True
    assert complete(DECODER, TOKENIZER, [[5], [6]], GenerationSettings(stop=())) == [output["text"]] * 2


def test_a_seed_repeats_what_is_sampled_and_another_does_not():
    freely = replace(LETTERS, temperature=1.5)
    first, again, other = (
        generated_answers(PromptCache(DECODER), TOKENIZER, QUESTIONS, replace(freely, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


class Oracle:
    """Says of each prompt what it is told to: by the prompt's last words."""

    def __init__(self, monkeypatch, texts):
        self.texts, self.asked = texts, []
        monkeypatch.setattr(answering, "generated_answers", self.speak)

    def speak(self, reader, tokenizer, questions, speech, name=""):
        self.asked.append([question.template.render(question.text) + question.generated for question in questions])
        return [q.template.answer_start + q.generated + self.texts[q.text, bool(q.generated)] for q in questions]


def test_kojimas_two_stages_are_for_chains_that_have_not_concluded(monkeypatch):
    chain = Template("Q: {text}\nA:", chain=True, conclusion=" So the answer is")
    oracle = Oracle(
        monkeypatch,
        {("1+1", False): " It is 2. So the answer is 2.", ("2+2", False): " It is 4. Hm", ("2+2", True): " 4"},
    )
    found = concluded_answers(
        PromptCache(DECODER), TOKENIZER, [Question(chain, "1+1"), Question(chain, "2+2")], LETTERS
    )
    begun = " Let's think step by step."
    assert found == [f"{begun} It is 2. So the answer is 2.", f"{begun} It is 4. Hm So the answer is 4"]
    assert oracle.asked[1] == [f"Q: 2+2\nA:{begun} It is 4. Hm So the answer is"]
    assert len(oracle.asked) == 2


def test_an_answer_at_once_has_one_stage(monkeypatch):
    oracle = Oracle(monkeypatch, {("1+1", False): " hm"})
    assert concluded_answers(PromptCache(DECODER), TOKENIZER, [Question(TEMPLATE, "1+1")], LETTERS) == [
        " The answer is hm"
    ]
    assert len(oracle.asked) == 1


def test_self_consistency_takes_each_questions_majority_over_samples_of_different_seeds():
    seeds = []

    def answer(speech):
        seeds.append(speech.seed)
        sample = len(seeds) - 1
        return [f"answer is {[3, 4, 4][sample]}", f"answer is {[5, 5, 6][sample]}", "hm"]

    found = self_consistent(answer, GenerationSettings(temperature=0.7, seed=7), 3, SUM)
    assert found == ["answer is 4", "answer is 5", "hm"]
    assert len(set(seeds)) == 3


def test_samples_that_would_all_be_the_same_are_no_vote():
    with pytest.raises(InputError, match="temperature of 0 are no vote"):
        self_consistent(lambda settings: ["a"], GenerationSettings(), 3, SUM)


def test_a_chat_is_answered_in_its_turn():
    chat = Question(replace(TEMPLATE, chat=True, shots=(Shot("x", " 1"),)), "y")
    assert generated_answers(PromptCache(DECODER), TOKENIZER, [chat], LETTERS) == [
        " The answer is" + alone(chat.encode(TOKENIZER), stop=TOKENIZER.stop)
    ]
