"""What is asked of a base is counted rightly, and its examples are read once for all that is asked."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minillm import InputError
from minillm.adapt import InContext
from minillm.data.templates import Question, Shot, task_template
from minillm.lab.asking import Asked, Manner, ask, figures
from minillm.lab.world import Bench
from minillm.prompting import prompt_cache as kept
from minillm.prompting.labelling import Preferences, neutral_questions
from tests.prompting.asked import DECODER, TASK, TOKENIZER, TRAIN

BENCH = Bench(DECODER, TOKENIZER, torch.device("cpu"), "float32", 0, Path())
TEMPLATE = task_template(TASK, TRAIN[:6])
CHAINED = replace(TEMPLATE, chain=True, shots=tuple(Shot(*shot[:2], "It is a film.") for shot in TEMPLATE.shots))


def test_the_examples_are_read_once_over_both_stages_all_samples_and_the_scores(monkeypatch):
    starts = []

    def reading(decoder, ids):
        starts.append(ids.shape[1])
        return InContext(decoder, ids)

    monkeypatch.setattr(kept, "InContext", reading)
    questions = [Question(CHAINED, f"film {n}") for n in range(30, 34)]
    asked = ask(BENCH, questions, TASK.answers, Manner(samples=2, max_new_tokens=3))
    prompts = [question.encode(TOKENIZER) for question in [*questions, *neutral_questions(questions)]]
    assert starts == [kept.common_start(prompts)]
    assert starts[0] > 200
    assert len(asked.said) == len(asked.voted) == 4
    assert all(question.said.endswith(CHAINED.conclusion) for question in asked.questions)


def test_scores_are_taken_behind_the_chain_that_the_model_wrote():
    asked = ask(BENCH, [Question(CHAINED, "film 30")], TASK.answers, Manner(max_new_tokens=3))
    written = asked.said[0].removeprefix(CHAINED.begun).split(CHAINED.conclusion)[0].rstrip()
    assert asked.questions[0].said == written + CHAINED.conclusion


def test_free_answers_are_given_only_if_they_are_wanted():
    questions = [Question(TEMPLATE, "film 30")]
    assert ask(BENCH, questions, TASK.answers, Manner()).said is None
    assert len(ask(BENCH, questions, TASK.answers, Manner(free=True)).said) == 1


def test_figures_by_hand():
    scores = torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.5]])
    # The content-free texts prefer the first label by more than the last row does.
    preferences = Preferences(TASK.answers, scores, torch.tensor([[[-1.0, -1.7]] * 3]), torch.zeros(2), 0)
    said = [" negative", " positive, or negative", " hm", " positive"]
    found = figures(Asked([Question(TEMPLATE, "x")] * 4, preferences, said, None), torch.tensor([0, 1, 1, 1]))
    assert found["measures"]["acc"]["before"] == {"accuracy": 0.5, "standard_error": 0.25}
    assert found["measures"]["acc"]["after"]["accuracy"] == 0.75
    assert found["free"] == {"strict": 0.75, "flexible": 0.5, "unparsed": 0.25, "standard_error": (3 / 64) ** 0.5}
    assert "self_consistency" not in found


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"max_new_tokens": 0}, {"samples": 2, "temperature": 0.0}])
def test_manners_that_cannot_be_had_are_refused(wrong):
    with pytest.raises(InputError):
        Manner(**wrong)
