"""An answer's score is the sum of its tokens' log-probabilities after the prompt, for any set of answers."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.data.answers import encode_answers
from minillm.data.conversations import EncodedConversation, answered
from minillm.ops.softmax import log_softmax
from minillm.prompting.scoring import accuracy, answer_scores, log_likelihoods, score_all
from minillm.training.tokenizers import characters
from tests.decoders import STYLES, random_decoder
from tests.prompting.asked import tokens_processed
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]
DECODER = random_decoder(STYLES["Llama"])
CHARACTERS = characters(["ab"])
ANSWERS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=1, max_size=4)


def by_hand(prompt, answer):
    log_probabilities = log_softmax(DECODER(torch.tensor([[*prompt, *answer]])))[0]
    return sum(log_probabilities[len(prompt) - 1 + index, token] for index, token in enumerate(answer))


@cache
def value(prompt, answer):
    return by_hand(prompt, answer).item()


@given(ANSWERS)
@torch.no_grad()
def test_a_score_is_the_sum_of_the_tokens_log_probabilities(answers):
    expected = torch.tensor([[value(tuple(p), tuple(a)) for a in answers] for p in PROMPTS], dtype=torch.float64)
    assert_close(answer_scores(DECODER, PROMPTS, answers), expected, "law")


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=2, max_size=6, unique=True))
@torch.no_grad()
def test_the_probabilities_of_answers_sum_to_at_most_1(answers):
    ids = encode_answers(CHARACTERS, answers)
    assert (answer_scores(DECODER, PROMPTS, ids).exp().sum(-1) <= 1 + 1e-12).all()


@torch.no_grad()
def test_every_row_may_have_its_own_answer():
    answers = [[5, 1, 2], [7]]
    expected = torch.stack([by_hand(p, a) for p, a in zip(PROMPTS, answers, strict=True)])
    rows = list(map(answered, PROMPTS, answers))
    assert_close(log_likelihoods(DECODER, rows), expected, "law")
    twice = EncodedConversation(PROMPTS[0] + [5, 1, 2], [False] * len(PROMPTS[0]) + [True, False, True])
    assert_close(log_likelihoods(DECODER, [twice])[0], expected[0] - by_hand(PROMPTS[0] + [5], [1]), "law")


@pytest.mark.parametrize(
    ("answers", "inputs"),
    [
        ([[5], [7], [2]], [[]]),  # predicted at the prompt's last token
        ([[5, 1], [5, 2]], [[5]]),  # they differ in the last token, which is no input
        ([[5], [5, 1], [5, 1, 2]], [[5, 1]]),  # each is a prefix of the next
        ([[5, 1], [7, 1]], [[5], [7]]),
    ],
)
def test_a_prompt_is_processed_again_only_where_answers_diverge(answers, inputs):
    with tokens_processed() as processed, torch.no_grad():
        answer_scores(DECODER, [PROMPTS[0]], answers)
    rows = [len(PROMPTS[0]) + len(tokens) for tokens in inputs]
    assert sum(processed) == max(rows) * len(rows)


def test_gradients_are_those_of_the_sum():
    weight = DECODER.blocks[0].attention.query.weight
    answers = [[5, 1], [7], [5, 3]]
    together = torch.autograd.grad(answer_scores(DECODER, PROMPTS, answers).sum(), weight)[0]
    apart = torch.autograd.grad(sum(by_hand(p, a) for p in PROMPTS for a in answers), weight)[0]
    assert_close(together, apart, "law")


def test_scores_are_in_the_order_of_the_rows():
    prompts = [[row % 13] * length for row, length in enumerate([5, 1, 4, 2, 3] * 8)]
    alone = [answer_scores(DECODER, [prompt], [[5], [7]])[0] for prompt in prompts]
    assert_close(score_all(DECODER, prompts, [[5], [7]]), torch.stack(alone), "law")


def test_accuracy_is_the_share_of_rows_whose_highest_score_is_the_labels():
    assert accuracy(torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1, 1])) == pytest.approx(2 / 3)
