"""LoRAs on one base form a vector space, exactly: adding is concatenation, and no cross terms appear."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.adapt import LoRA
from minillm.adapt.low_rank import adapted_matrices
from minillm.adapters.algebra import add, average, negate, scale, subtract
from minillm.adapters.merge import merge, updates
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close, relative_error

IDS = torch.tensor([[3, 1, 4, 1, 5]])
BASE = random_decoder(STYLES["GPT-2"])
TARGETS = ["query", "all-linear", "head", "embed", "blocks.1.*", "positions"]


CASES = st.fixed_dictionaries(
    {
        "r": st.integers(1, 3),
        "alpha": st.sampled_from([1, 2.5, 16]),
        "targets": st.lists(st.sampled_from(TARGETS), min_size=1, max_size=2),
        "rank_stabilised": st.booleans(),
        "train_bias": st.booleans(),
        "seed": st.integers(0, 99),
    }
)


def lora_of(case):
    """Of different ranks, scales and targets, with biases or without."""
    biased = case["train_bias"] and not {"head", "embed", "positions"} >= set(case["targets"])
    options = {name: case[name] for name in ("r", "alpha", "targets", "rank_stabilised")}
    return moved(LoRA(BASE, **options, train_bias=biased), case["seed"])


def for_all_loras(law):
    """Hypothesis draws what they are made of; they are made here."""
    names = list(inspect.signature(law).parameters)
    draws = {name: st.floats(-3, 3) if name == "factor" else CASES for name in names}

    @given(st.fixed_dictionaries(draws))
    def test(drawn):
        law(**{name: value if name == "factor" else lora_of(value) for name, value in drawn.items()})

    return test


def changes(lora):
    """Everything that a LoRA changes in its base, by the parameter's name."""
    found = {name: torch.zeros_like(weight) for name, weight in BASE.named_parameters(remove_duplicate=False)}
    for path, matrix in adapted_matrices(lora.decoder).items():
        found[f"{path}.weight"] = matrix.change().detach()
        if matrix.trains_bias:
            found[f"{path}.bias"] = (matrix.bias - BASE.get_submodule(path).bias).detach()
    return found


def assert_changes(lora, expected):
    found = changes(lora)
    size = max(float(change.abs().max()) for change in expected.values())
    for name, change in expected.items():
        assert (found[name] - change).abs().max() <= 1e-12 * max(size, 1), name


@for_all_loras
def test_a_sum_changes_the_base_by_the_sum_of_the_changes(one, two):
    first, second = changes(one), changes(two)
    assert_changes(add(one, two), {name: first[name] + second[name] for name in first})


@for_all_loras
def test_the_sums_logits_are_those_of_the_base_with_both_dws_added(one, two):
    by_hand = merge(one)
    theirs = changes(two)
    with torch.no_grad():
        for name, parameter in by_hand.named_parameters(remove_duplicate=False):
            if not (by_hand.config.tie_embeddings and name == "head.weight"):
                parameter += theirs[name]
    if by_hand.config.tie_embeddings:
        by_hand.head.weight = torch.nn.Parameter(BASE.head.weight + theirs["head.weight"])
    assert_close(add(one, two)(IDS), by_hand(IDS), "law")


@for_all_loras
def test_sums_commute_and_associate(one, two, three):
    expected = changes(add(one, two, three))
    assert_changes(add(three, one, two), expected)
    assert_changes(add(add(one, two), three), expected)
    assert_changes(add(one, add(two, three)), expected)


@for_all_loras
def test_scaling_scales_every_change(lora, factor):
    assert_changes(scale(lora, factor), {name: factor * change for name, change in changes(lora).items()})


@for_all_loras
def test_a_difference_is_the_sum_with_the_negative(one, two):
    assert_changes(subtract(one, two), changes(add(one, negate(two))))


@for_all_loras
def test_a_lora_and_its_negative_leave_the_base(lora):
    assert_close(add(lora, negate(lora))(IDS), BASE(IDS), "law")


@for_all_loras
def test_an_average_is_a_share_of_the_sum(one, two, three):
    assert_changes(average(one, two, three), changes(scale(add(one, two, three), 1 / 3)))


@for_all_loras
def test_the_average_of_a_lora_with_itself_is_it(lora):
    assert_changes(average(lora, lora), changes(lora))


@for_all_loras
def test_ranks_add_and_rank_dw_is_at_most_that(one, two):
    both, singles = add(one, two), [updates(one), updates(two)]
    state = both.state()
    for path, dw in updates(both).items():
        ranks = [len(lora.state()[f"{path}.a"]) for lora, dws in zip((one, two), singles, strict=True) if path in dws]
        assert state[f"{path}.a"].shape[0] == sum(ranks)
        assert torch.linalg.matrix_rank(dw) <= sum(ranks)


def test_adding_a_to_a_and_b_to_b_would_have_been_wrong():
    one, two = (moved(LoRA(BASE, r=2), seed) for seed in (0, 1))
    crossed = {name: tensor + two.state()[name] for name, tensor in one.state().items()}
    wrong = LoRA.from_state(BASE, one.options(), crossed)
    assert relative_error(wrong(IDS), add(one, two)(IDS)) > 1e-2


def test_a_scale_that_is_a_power_of_two_is_folded_without_rounding():
    one, two = (moved(LoRA(BASE, r=2, alpha=4), seed) for seed in (0, 1))
    both = add(one, two)
    assert torch.equal(both.state()["blocks.0.attention.query.a"][:2], one.state()["blocks.0.attention.query.a"])
    assert torch.equal(both.state()["blocks.0.attention.query.b"][:, 2:], 2 * two.state()["blocks.0.attention.query.b"])


def test_the_operands_and_the_base_stay_as_they_are():
    one, two = (moved(LoRA(BASE, r=2, train_bias=True), seed) for seed in (0, 1))
    kept = [{name: tensor.clone() for name, tensor in thing.state_dict().items()} for thing in (BASE, one, two)]
    both = moved(add(one, two), seed=3)
    for thing, before in zip((BASE, one, two), kept, strict=True):
        assert all(torch.equal(tensor, before[name]) for name, tensor in thing.state_dict().items())
    assert all(parameter.requires_grad for parameter in both.trainable().values()), "and can be trained on"


def test_a_sum_is_a_lora_that_can_be_kept():
    one, two = moved(LoRA(BASE, r=2)), moved(LoRA(BASE, r=3, targets=("query", "up"), train_bias=True), 1)
    both = add(one, two)
    again = LoRA.from_state(BASE, both.options(), both.state())
    assert torch.equal(again(IDS), both(IDS))


def test_a_sum_may_have_a_rank_beyond_its_matrix():
    one = moved(LoRA(random_decoder(STYLES["Llama"]), r=10, targets="value"))
    both = add(one, one, one)
    assert both.state()["blocks.0.attention.value.a"].shape == (30, 30)
    assert_close(both(IDS), scale(one, 3)(IDS), "law")


def test_loras_of_different_bases_are_refused_by_the_first_weight_that_differs():
    one, two = (LoRA(random_decoder(STYLES["Llama"], seed), r=2) for seed in (0, 1))
    with pytest.raises(InputError, match=r"different bases: their embed\.weight differ"):
        add(one, two)
    same = LoRA(random_decoder(STYLES["Llama"]), r=2)
    assert add(one, same).r == 4, "equal weights are the same base, wherever they lie"
    with pytest.raises(InputError, match="needs one of them at least"):
        add()
