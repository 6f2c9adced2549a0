"""The best LoRA of a rank for a change of weights, and its error."""

import pytest
import torch

from minillm import InputError
from minillm.adapt import FineTune, InContext, LoRA
from minillm.adapters.algebra import add
from minillm.adapters.extract import extract, resize
from minillm.adapters.merge import merge, updates
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

IDS = torch.tensor([[3, 1, 4, 1, 5]])


def relative_errors(exact, lora):
    """|dW - B A| / |dW| by definition."""
    found = updates(lora)
    return {path: ((dw - found[path]).norm() / dw.norm()).item() for path, dw in exact.items()}


def test_a_merged_lora_is_recovered_exactly():
    base = random_decoder(STYLES["Llama"])
    lora = moved(LoRA(base, r=3, alpha=4, targets=("all-linear", "embed", "head")))
    found = extract(base, merge(lora), r=3, targets=("all-linear", "embed", "head"))
    assert_close(found.lora(IDS), lora(IDS), "law")
    assert max(found.errors.values()) < 1e-12
    assert found.left_out == ()


@pytest.mark.parametrize("r", [1, 4])
def test_a_full_fine_tune_has_the_best_approximation_of_the_rank(r):
    base = random_decoder(STYLES["GPT-2"])
    tuned = moved(FineTune(base))
    found = extract(base, tuned, r=r)
    exact = {path: tuned.decoder.get_submodule(path).weight - base.get_submodule(path).weight for path in found.errors}
    assert relative_errors(exact, found.lora) == pytest.approx(found.errors, rel=1e-9)
    for path, change in exact.items():
        singular = torch.linalg.svdvals(change.detach())
        assert found.errors[path] == pytest.approx((singular[r:].norm() / singular.norm()).item(), rel=1e-9)
        assert torch.linalg.matrix_rank(updates(found.lora)[path]) == r
    assert {"embed.weight", "positions.weight", "norm.bias", "blocks.0.attention.query.bias"} <= set(found.left_out)
    assert "blocks.0.attention.query.weight" not in found.left_out


def test_at_full_rank_the_error_is_zero():
    base = random_decoder(STYLES["Llama"])
    tuned = moved(FineTune(base, layers=["blocks.*.query.weight", "blocks.*.up.weight"]))
    found = extract(base, tuned, r=30)
    assert_close(found.lora(IDS), tuned(IDS), "law")
    assert set(found.errors.values()) == {0.0}
    assert len(found.errors) == 4, "unchanged matrices are not adapted"


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_an_energy_is_kept_by_the_smallest_sufficient_rank(energy):
    base = random_decoder(STYLES["Llama"])
    tuned = moved(FineTune(base))
    found = extract(base, tuned, energy=energy)
    state = found.lora.state()
    for path, error in found.errors.items():
        squares = torch.linalg.svdvals(
            tuned.decoder.get_submodule(path).weight.detach() - base.get_submodule(path).weight
        )
        shares = squares.square().cumsum(0) / squares.square().sum()
        rank = len(state[f"{path}.a"])
        assert error**2 <= 1 - energy + 1e-12
        assert shares[rank - 1] >= energy - 1e-12
        assert rank == 1 or shares[rank - 2] < energy


def test_resizing_is_the_best_approximation_without_forming_dw(monkeypatch):
    base = random_decoder(STYLES["Llama"])
    one, two = moved(LoRA(base, r=3, alpha=5, targets=("all-linear", "embed"))), moved(LoRA(base, r=4), seed=1)
    both = add(one, two)
    sizes = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda matrix, **how: sizes.append(matrix.shape) or svd(matrix, **how))
    found = resize(both, r=2)
    assert max(max(size) for size in sizes) <= 7, "the decomposed matrices have the size of the rank"
    exact = updates(both)
    assert relative_errors(exact, found.lora) == pytest.approx(found.errors, rel=1e-9)
    for path, dw in exact.items():
        singular = torch.linalg.svdvals(dw)
        assert found.errors[path] == pytest.approx((singular[2:].norm() / singular.norm()).item(), rel=1e-9)
    assert {len(tensor) for name, tensor in found.lora.state().items() if name.endswith(".a")} == {2}


def test_resizing_to_its_own_rank_or_a_larger_one_changes_nothing():
    lora = moved(LoRA(random_decoder(STYLES["GPT-2"]), r=3, alpha=5, train_bias=True))
    for r in (3, 9):
        found = resize(lora, r=r)
        assert_close(found.lora(IDS), lora(IDS), "law")
        assert found.lora.r == 3
        assert max(found.errors.values()) == 0.0


def test_the_sum_of_a_lora_with_itself_is_compressed_without_error():
    lora = moved(LoRA(random_decoder(STYLES["Llama"]), r=3, targets=("all-linear",)))
    found = resize(add(lora, lora), energy=1 - 1e-13)
    assert found.lora.r == 3
    assert max(found.errors.values()) < 1e-6
    assert_close(found.lora(IDS), add(lora, lora)(IDS), "law")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "give either r or energy, got neither"),
        ({"r": 2, "energy": 0.9}, "give either r or energy, got both"),
        ({"r": 0}, "r must be at least 1, got 0"),
        ({"energy": 0}, r"energy must be in \(0, 1\], got 0"),
        ({"energy": 1.5}, r"energy must be in \(0, 1\], got 1.5"),
        ({"r": 2, "targets": ("c_attn",)}, "target 'c_attn' matches nothing"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    base = random_decoder(STYLES["Llama"])
    with pytest.raises(InputError, match=sentence):
        extract(base, moved(FineTune(base)), **options)


def test_models_that_are_no_change_of_this_base_are_refused():
    base = random_decoder(STYLES["Llama"])
    with pytest.raises(InputError, match="no target differs"):
        extract(base, FineTune(base), r=2)
    with pytest.raises(InputError, match="must have the parameters of the base"):
        extract(base, random_decoder(STYLES["GPT-2"]), r=2)
    with pytest.raises(InputError, match="cannot be merged"):
        extract(base, InContext(base, torch.tensor([[1, 2]])), r=2)
    broken = merge(FineTune(base))
    with torch.no_grad():
        broken.blocks[0].feed_forward.up.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"blocks\.0\.feed_forward\.up has NaN or infinite values"):
        extract(base, broken, r=2)
