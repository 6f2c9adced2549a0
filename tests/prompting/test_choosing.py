"""The examples of a prompt and their order: which they are, and that a seed repeats them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.data.tasks import LabelledText
from minillm.prompting.choosing import balanced_shots, nearest_shots, ordered_shots, orders, seeded_shots
from tests.prompting.asked import DECODER, TASK, TOKENIZER, TRAIN


@pytest.mark.parametrize("choose", [balanced_shots, seeded_shots])
@given(count=st.integers(0, 20), seed=st.integers(0, 5))
def test_random_examples_are_different_rows_and_the_same_for_the_same_seed(choose, count, seed):
    shots = choose(TASK, count, seed)
    assert len(set(shots)) == count
    assert set(shots) <= set(TRAIN)
    assert shots == choose(TASK, count, seed)
    if choose is balanced_shots:
        assert abs(2 * sum(shot.label for shot in shots) - count) <= 1


def test_different_seeds_choose_different_examples_and_ordered_ones_are_the_first():
    assert len({tuple(seeded_shots(TASK, 4, seed)) for seed in range(6)}) > 3
    assert ordered_shots(TASK, 3, 0) == TRAIN[:3]


@pytest.mark.parametrize("choose", [balanced_shots, seeded_shots, ordered_shots])
def test_more_examples_than_rows_raise(choose):
    with pytest.raises(InputError, match="do not hold 22 shots"):
        choose(TASK, 22, 0)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_nearest_examples_have_the_highest_cosine_and_the_nearest_is_last(pooling):
    texts = ["film 3", "a film about the theme", "12"]
    found = nearest_shots(DECODER, TOKENIZER, TASK, texts, 4, pooling)

    def features(text):
        with torch.no_grad():
            hidden = DECODER.features(torch.tensor([TOKENIZER.encode(text)]))[0]
        return hidden.mean(0) if pooling == "mean" else hidden[-1]

    known = {row: features(row.text) for row in TRAIN}
    for text, shots in zip(texts, found, strict=True):
        own = features(text)
        nearness = {row: F.cosine_similarity(own, known[row], dim=0) for row in TRAIN if row.text != text}
        assert shots == sorted(nearness, key=nearness.__getitem__)[-4:]


def test_a_text_is_not_its_own_example():
    task = replace(TASK, train=[*TRAIN, LabelledText("film 3!", 1)])
    shots = nearest_shots(DECODER, TOKENIZER, task, ["film 3"], 3)[0]
    assert all(shot.text != "film 3" for shot in shots)
    with pytest.raises(InputError, match="do not hold"):
        nearest_shots(DECODER, TOKENIZER, TASK, ["film 3"], 20)


@given(st.integers(1, 6), st.integers(0, 5))
def test_orders_are_different_and_of_the_same_examples(count, seed):
    shots = TRAIN[:3]
    found = orders(shots, count, seed)
    assert found[0] == shots
    assert len(set(map(tuple, found))) == count
    assert all(sorted(order) == sorted(shots) for order in found)
    assert found == orders(shots, count, seed)


def test_more_orders_than_there_are_raise():
    with pytest.raises(InputError, match="3 examples have only 6 orders, got orders 7"):
        orders(TRAIN[:3], 7, 0)
