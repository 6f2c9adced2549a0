"""Which examples are shown, and in which order, is a choice that can be repeated."""

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


@given(st.integers(0, 20), st.integers(0, 5))
def test_balanced_examples_show_every_class_equally_often(count, seed):
    shots = balanced_shots(TASK, count, seed)
    assert len(set(shots)) == count
    assert abs(2 * sum(shot.label for shot in shots) - count) <= 1
    assert shots == balanced_shots(TASK, count, seed)


@given(st.integers(0, 20), st.integers(0, 5))
def test_drawn_examples_are_different_rows_the_same_for_the_same_seed(count, seed):
    shots = seeded_shots(TASK, count, seed)
    assert len(set(shots)) == count
    assert set(shots) <= set(TRAIN)
    assert shots == seeded_shots(TASK, count, seed)


def test_seeds_draw_different_examples_and_ordered_ones_are_the_first():
    assert len({tuple(seeded_shots(TASK, 4, seed)) for seed in range(6)}) > 3
    assert ordered_shots(TASK, 3) == TRAIN[:3]


@pytest.mark.parametrize("choose", [balanced_shots, seeded_shots, lambda task, count, _: ordered_shots(task, count)])
def test_more_examples_than_rows_are_refused(choose):
    with pytest.raises(InputError, match="do not hold 22 shots"):
        choose(TASK, 22, 0)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_nearest_examples_are_those_with_the_highest_cosine_and_the_very_nearest_is_last(pooling):
    texts = ["film 3", "a film about the theme", "12"]
    found = nearest_shots(DECODER, TOKENIZER, TASK, texts, 4, pooling)

    def features(text):
        with torch.no_grad():
            hidden = DECODER.features(torch.tensor([TOKENIZER.encode(text)]))[0]
        return hidden.mean(0) if pooling == "mean" else hidden[-1]

    for text, shots in zip(texts, found, strict=True):
        others = [row for row in TRAIN if row.text != text]
        nearness = {row: F.cosine_similarity(features(text), features(row.text), dim=0).item() for row in others}
        assert shots == sorted(others, key=lambda row: nearness[row])[-4:]


def test_a_text_is_not_an_example_for_itself_and_its_twin_is_the_nearest():
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


def test_more_orders_than_there_are_are_refused():
    with pytest.raises(InputError, match="3 examples have 6 orders, and 7 are asked for"):
        orders(TRAIN[:3], 7, 0)
