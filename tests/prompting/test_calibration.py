"""After calibration a content-free text prefers no answer; a prompt without a preference is unchanged."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.ops.softmax import softmax
from minillm.prompting.calibration import calibrated
from tests.tolerances import assert_close

SCORES = st.lists(st.floats(-40, 0), min_size=3, max_size=3)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


@given(st.lists(SCORES, min_size=1, max_size=4))
def test_the_mean_of_content_free_texts_has_equal_probabilities(neutral):
    mean = softmax(tensor(neutral)).mean(0)
    found = calibrated(mean.log()[None], tensor([neutral])).exp()
    assert_close(found, torch.full((1, 3), 1 / 3, dtype=torch.float64), "law")


@given(SCORES, st.floats(-9, 0))
def test_a_prompt_without_a_preference_is_unchanged(scores, level):
    assert_close(calibrated(tensor([scores]), tensor([[[level] * 3]])).exp(), softmax(tensor([scores])), "law")


def test_by_hand():
    # p = (0.6, 0.4) and p_cf = (0.8, 0.2): W p = (0.75, 2), and the answer is the second.
    found = calibrated(tensor([[0.6, 0.4]]).log(), tensor([[[0.8, 0.2]]]).log()).exp()
    assert_close(found, tensor([[0.75 / 2.75, 2 / 2.75]]), "law")


@given(SCORES, SCORES)
def test_it_is_the_papers_w_p_divided_by_its_sum(scores, neutral):
    p, expected = softmax(tensor(scores)), softmax(tensor(neutral))
    papers = torch.diag(1 / expected) @ p
    found = calibrated(tensor([scores]), tensor([[neutral]]))[0]
    assert_close(found.exp(), papers / papers.sum(), "law")


def test_each_row_may_have_its_own_content_free_texts():
    scores, neutral = tensor([[0.0, -1.0], [-1.0, 0.0]]), tensor([[[0.0, -2.0]], [[-3.0, 0.0]]])
    found = calibrated(scores, neutral)
    for row in range(2):
        assert_close(found[row : row + 1], calibrated(scores[row : row + 1], neutral[row : row + 1]), "law")
