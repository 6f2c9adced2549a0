"""Prompts are what they look like, and an answer's score is its tokens' log-probability."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.adapt import InContext
from minillm.ops.softmax import log_softmax
from minillm.prompting.choosing import balanced_shots
from minillm.prompting.kept import common_start
from minillm.prompting.scoring import accuracy, answer_scores, score_all
from minillm.prompting.template import task_template
from minillm.tasks import LabelledText, Task
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

TRAIN = [LabelledText(f"film {index}", index % 2) for index in range(20)]
TASK = Task("films", "Review: {text}\nSentiment:", (" negative", " positive"), TRAIN, TRAIN[:2], TRAIN[:2])
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]


def test_a_few_shot_prompt_shows_solved_examples_and_then_asks():
    assert task_template(TASK, TRAIN[:2]).render("a {text} b") == (
        "Review: film 0\nSentiment: negative\n\nReview: film 1\nSentiment: positive\n\nReview: a {text} b\nSentiment:"
    )


@given(st.integers(0, 20), st.integers(0, 5))
def test_shots_show_every_class_equally_often(count, seed):
    shots = balanced_shots(TASK, count, seed)
    assert len(set(shots)) == count
    assert abs(2 * sum(shot.label for shot in shots) - count) <= 1
    assert shots == balanced_shots(TASK, count, seed)


def test_more_shots_than_rows_are_refused():
    with pytest.raises(InputError, match="do not hold 22 shots"):
        balanced_shots(TASK, 22, 0)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=4))
def test_what_prompts_have_in_common_is_the_longest_start_that_leaves_each_a_token(rows):
    shared = common_start(rows)
    assert all(row[:shared] == rows[0][:shared] and len(row) > shared for row in rows)
    assert any(row[: shared + 1] != rows[0][: shared + 1] or len(row) == shared + 1 for row in rows)


def by_hand(decoder, prompt, answer):
    ids = torch.tensor([[*prompt, *answer]])
    log_probabilities = log_softmax(decoder(ids))[0]
    return sum(log_probabilities[len(prompt) - 1 + index, token] for index, token in enumerate(answer))


@pytest.mark.parametrize("answers", [[[5], [7], [2]], [[5, 1, 2], [7], [5, 3]]])
def test_an_answers_score_is_the_sum_of_its_tokens_log_probabilities(answers):
    decoder = random_decoder(STYLES["Llama"])
    expected = torch.stack([torch.stack([by_hand(decoder, p, a) for a in answers]) for p in PROMPTS])
    assert_close(answer_scores(decoder, PROMPTS, answers), expected, "law")


def test_scores_behind_a_shared_prompt_are_those_of_the_whole_prompts():
    decoder = random_decoder(STYLES["GPT-2"])
    whole = [[8, 8, 1, *prompt] for prompt in PROMPTS]
    shared = common_start(whole)
    method = InContext(decoder, torch.tensor([whole[0][:shared]]))
    answers = [[5, 1], [7]]
    assert shared == 3
    assert_close(answer_scores(method, PROMPTS, answers), answer_scores(decoder, whole, answers), "law")


def test_scores_come_back_in_the_order_of_the_rows():
    lengths = [5, 1, 4, 2, 3] * 20
    scores = score_all(lambda batch: torch.tensor([[float(index)] for index in batch]), lengths)
    assert scores[:, 0].tolist() == list(range(100))


def test_accuracy_is_the_share_of_best_scores_on_the_label():
    assert accuracy(torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1, 1])) == pytest.approx(2 / 3)
