"""LoRAs on one base form a vector space: adding is concatenation, without cross terms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import InputError
from minillm.adapt import LoRA
from minillm.adapt.low_rank import adapted_matrices
from minillm.adapters.algebra import add, average, negate, scale, subtract
from minillm.adapters.merge import updates
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder, snapshot, unchanged
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


def changes(lora):
    """Everything that a LoRA changes in its base, by the parameter's name."""
    found = {name: torch.zeros_like(weight) for name, weight in BASE.named_parameters(remove_duplicate=False)}
    for path, matrix in adapted_matrices(lora.decoder).items():
        found[f"{path}.weight"] = matrix.change().detach()
        if matrix.trains_bias:
            found[f"{path}.bias"] = (matrix.bias - BASE.get_submodule(path).bias).detach()
    return found


@pytest.mark.slow
@settings(max_examples=max(settings.default.max_examples // 3, 1))
@given(CASES, CASES, CASES, st.floats(-3, 3))
def test_loras_add_and_scale_as_their_changes_do(first, second, third, factor):
    one, two, three = (lora_of(case) for case in (first, second, third))
    terms = changes(one), changes(two), changes(three)
    for lora, factors in (
        (add(one, two), (1, 1, 0)),
        (add(three, one, two), (1, 1, 1)),
        (add(one, add(two, three)), (1, 1, 1)),
        (scale(one, factor), (factor, 0, 0)),
        (negate(two), (0, -1, 0)),
        (subtract(one, two), (1, -1, 0)),
        (average(one, two, three), (1 / 3, 1 / 3, 1 / 3)),
    ):
        found = changes(lora)
        expected = {name: sum(f * term[name] for f, term in zip(factors, terms, strict=True)) for name in found}
        size = max(float(change.abs().max()) for change in expected.values())
        for name, change in expected.items():
            assert (found[name] - change).abs().max() <= 1e-12 * max(size, 1), (name, factors)


@given(CASES, CASES)
def test_ranks_add_and_rank_dw_is_at_most_that(first, second):
    one, two = lora_of(first), lora_of(second)
    both, singles = add(one, two), [updates(one), updates(two)]
    state = both.state()
    for path, dw in updates(both).items():
        ranks = [len(lora.state()[f"{path}.a"]) for lora, dws in zip((one, two), singles, strict=True) if path in dws]
        assert state[f"{path}.a"].shape[0] == sum(ranks)
        assert torch.linalg.matrix_rank(dw) <= sum(ranks)


def test_adding_a_to_a_and_b_to_b_is_wrong():
    one, two = (moved(LoRA(BASE, r=2), seed) for seed in (0, 1))
    crossed = {name: tensor + two.state()[name] for name, tensor in one.state().items()}
    wrong = LoRA.from_state(BASE, one.options(), crossed)
    assert relative_error(wrong(IDS), add(one, two)(IDS)) > 1e-2


def test_a_scale_that_is_a_power_of_two_is_folded_without_rounding():
    one, two = (moved(LoRA(BASE, r=2, alpha=4), seed) for seed in (0, 1))
    both = add(one, two)
    assert torch.equal(both.state()["blocks.0.attention.query.a"][:2], one.state()["blocks.0.attention.query.a"])
    assert torch.equal(both.state()["blocks.0.attention.query.b"][:, 2:], 2 * two.state()["blocks.0.attention.query.b"])


def test_the_operands_and_the_base_are_unchanged():
    one, two = (moved(LoRA(BASE, r=2, train_bias=True), seed) for seed in (0, 1))
    saved = [snapshot(thing) for thing in (BASE, one, two)]
    both = moved(add(one, two), seed=3)
    assert all(unchanged(thing, before) for thing, before in zip((BASE, one, two), saved, strict=True))
    assert all(parameter.requires_grad for parameter in both.trainable().values()), "the sum can be trained further"


def test_a_sum_is_a_lora_that_can_be_saved():
    one, two = moved(LoRA(BASE, r=2)), moved(LoRA(BASE, r=3, targets=("query", "up"), train_bias=True), 1)
    both = add(one, two)
    again = LoRA.from_state(BASE, both.options(), both.state())
    assert torch.equal(again(IDS), both(IDS))


def test_a_sum_may_have_a_rank_beyond_its_matrix():
    one = moved(LoRA(random_decoder(STYLES["Llama"]), r=10, targets="value"))
    both = add(one, one, one)
    assert both.state()["blocks.0.attention.value.a"].shape == (30, 30)
    assert_close(both(IDS), scale(one, 3)(IDS), "law")


def test_loras_of_different_bases_are_refused():
    one, two = (LoRA(random_decoder(STYLES["Llama"], seed), r=2) for seed in (0, 1))
    with pytest.raises(InputError, match=r"different bases: embed\.weight differs"):
        add(one, two)
    same = LoRA(random_decoder(STYLES["Llama"]), r=2)
    assert add(one, same).r == 4, "equal weights are the same base"
    with pytest.raises(InputError, match="needs at least one LoRA"):
        add()
