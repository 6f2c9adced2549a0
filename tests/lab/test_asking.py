"""Accuracies are correct, and the examples of a prompt are processed once for all questions."""

from dataclasses import replace

import pytest
import torch

from minillm import InputError
from minillm.adapt import InContext
from minillm.data.templates import Question, Shot, task_template
from minillm.lab.asking import AnswerOptions, Answers, accuracies, ask
from minillm.lab.experiment import Experiment
from minillm.prompting import prompt_cache
from minillm.prompting.labelling import LabelScores, content_free_questions
from tests.prompting.asked import DECODER, TASK, TOKENIZER, TRAIN

EXPERIMENT = Experiment(DECODER, TOKENIZER, torch.device("cpu"), "float32", 0)
TEMPLATE = task_template(TASK, TRAIN[:6])
CHAINED = replace(TEMPLATE, chain=True, shots=tuple(Shot(*shot[:2], "It is a film.") for shot in TEMPLATE.shots))


def test_the_examples_are_processed_once_for_chains_samples_and_scores(monkeypatch):
    starts = []

    def counted(decoder, ids):
        starts.append(ids.shape[1])
        return InContext(decoder, ids)

    monkeypatch.setattr(prompt_cache, "InContext", counted)
    questions = [Question(CHAINED, f"film {n}") for n in range(30, 34)]
    asked = ask(EXPERIMENT, questions, TASK.answers, AnswerOptions(samples=2, max_new_tokens=3))
    prompts = [question.encode(TOKENIZER) for question in [*questions, *content_free_questions(questions)]]
    assert starts == [prompt_cache.common_start(prompts)]
    assert starts[0] > 200
    assert len(asked.generated) == len(asked.majority) == 4
    assert all(question.generated.endswith(CHAINED.conclusion) for question in asked.questions)


def test_answers_are_scored_after_the_generated_chain():
    asked = ask(EXPERIMENT, [Question(CHAINED, "film 30")], TASK.answers, AnswerOptions(max_new_tokens=3))
    written = asked.generated[0].removeprefix(CHAINED.answer_start).split(CHAINED.conclusion)[0].rstrip()
    assert asked.questions[0].generated == written + CHAINED.conclusion


def test_free_answers_are_optional():
    questions = [Question(TEMPLATE, "film 30")]
    assert ask(EXPERIMENT, questions, TASK.answers, AnswerOptions()).generated is None
    assert len(ask(EXPERIMENT, questions, TASK.answers, AnswerOptions(free=True)).generated) == 1


def test_accuracies_computed_by_hand():
    scores = torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.5]])
    # The content-free texts prefer the first label by more than the last row does.
    scored = LabelScores(TASK.answers, scores, torch.tensor([[[-1.0, -1.7]] * 3]), torch.zeros(2), 0)
    texts = [" negative", " positive, or negative", " hm", " positive"]
    found = accuracies(Answers([Question(TEMPLATE, "x")] * 4, scored, texts, None), torch.tensor([0, 1, 1, 1]))
    assert found["measures"]["acc"]["before"] == {
        "accuracy": 0.5, "standard_error": 0.25, "majority_baseline": 0.75, "predicted_classes": 2,
        "predicted": [0, 0, 1, 0],
    }  # fmt: skip
    assert found["measures"]["acc"]["after"]["accuracy"] == 0.75
    assert found["free"] == {"strict": 0.75, "flexible": 0.5, "unparsed": 0.25, "standard_error": (3 / 64) ** 0.5}
    assert "self_consistency" not in found


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"max_new_tokens": 0}, {"samples": 2, "temperature": 0.0}, {"temperature": float("nan")}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(InputError):
        AnswerOptions(**wrong)
