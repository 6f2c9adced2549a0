"""After calibration a text that says nothing prefers nothing; a prompt without a preference is left as it was."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.ops.softmax import softmax
from minillm.prompting.calibration import calibrated
from tests.tolerances import assert_close

SCORES = st.lists(st.floats(-40, 0), min_size=3, max_size=3)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


@given(SCORES)
def test_a_content_free_text_has_equal_probabilities(neutral):
    found = calibrated(tensor([neutral]), tensor([[neutral]])).exp()
    assert_close(found, torch.full((1, 3), 1 / 3, dtype=torch.float64), "law")


@given(st.lists(SCORES, min_size=2, max_size=4))
def test_of_several_it_is_their_mean_probability_that_becomes_equal(neutral):
    mean = softmax(tensor(neutral)).mean(0)
    found = calibrated(mean.log()[None], tensor([neutral])).exp()
    assert_close(found, torch.full((1, 3), 1 / 3, dtype=torch.float64), "law")


@given(SCORES, st.floats(-9, 0))
def test_a_prompt_without_a_preference_changes_nothing(scores, level):
    assert_close(calibrated(tensor([scores]), tensor([[[level] * 3]])).exp(), softmax(tensor([scores])), "law")


def test_by_hand():
    # p = (0.6, 0.4) and p_cf = (0.8, 0.2): W p = (0.75, 2), and the answer is the second.
    found = calibrated(tensor([[0.6, 0.4]]).log(), tensor([[[0.8, 0.2]]]).log()).exp()
    assert_close(found, tensor([[0.75 / 2.75, 2 / 2.75]]), "law")


@given(SCORES, SCORES)
def test_its_order_is_that_of_the_papers_softmax_of_w_p(scores, neutral):
    p, expected = softmax(tensor(scores)), softmax(tensor(neutral))
    papers = torch.diag(1 / expected) @ p
    found = calibrated(tensor([scores]), tensor([[neutral]]))[0]
    assert_close(found.exp(), papers / papers.sum(), "law")


def test_each_row_may_have_content_free_texts_of_its_own():
    scores, neutral = tensor([[0.0, -1.0], [-1.0, 0.0]]), tensor([[[0.0, -2.0]], [[-3.0, 0.0]]])
    found = calibrated(scores, neutral)
    for row in range(2):
        assert_close(found[row : row + 1], calibrated(scores[row : row + 1], neutral[row : row + 1]), "law")
