"""The best LoRA of a rank for a change of weights, and its error."""

import math

import pytest
import torch

from minillm import InputError
from minillm.adapt import FineTune, InContext, LoRA
from minillm.adapters.algebra import add
from minillm.adapters.extract import effective_rank, extract, resize, similarity
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


def test_the_rows_of_a_are_the_singular_vectors_of_dw_by_the_roots_of_their_values():
    base = random_decoder(STYLES["Llama"])
    tuned = moved(FineTune(base, layers=["blocks.0.attention.value.weight"]))
    change = (tuned.decoder.blocks[0].attention.value.weight - base.blocks[0].attention.value.weight).detach()
    for lora in (extract(base, tuned, energy=1.0).lora, resize(extract(base, tuned, r=9).lora, r=9).lora):
        a = lora.state()["blocks.0.attention.value.a"]
        assert_close(a.square().sum(1), torch.linalg.svdvals(change)[: len(a)], "law")
        assert_close((change @ a.T).norm(dim=0) / a.norm(dim=1), a.square().sum(1), "law")


@pytest.mark.parametrize(
    ("singular", "rank"),
    [([7.0], 1), ([2.0, 2, 2, 2, 2], 5), ([5.0, 0, 0], 1), ([3.0, 1], (4 / 3) ** 0.75 * 4**0.25)],
)
def test_the_effective_rank_is_the_exponential_of_the_entropy(singular, rank):
    assert effective_rank(torch.tensor(singular)) == pytest.approx(rank, rel=1e-12)


def test_a_line_in_a_plane_is_contained_in_it():
    plane = torch.eye(3)[:2]
    for angle, expected in ((0, 1.0), (60, 0.25), (90, 0.0)):
        line = torch.tensor([[0.0, math.cos(math.radians(angle)), math.sin(math.radians(angle))]])
        assert similarity(line, plane, 1, 2) == pytest.approx(expected, abs=1e-6)
        assert similarity(plane, line, 2, 1) == pytest.approx(expected, abs=1e-6)
    assert similarity(line, plane, 1, 1) == 0


def test_similarity_is_of_subspaces_and_by_chance_the_larger_dimension_over_the_width():
    """The mean over the blocks of j directions of a basis is that over all rotations of the first block."""
    one, basis, turn = (torch.linalg.qr(torch.randn(n, n).double()).Q for n in (12, 12, 2))
    expected = similarity(one, basis, 2, 4)
    assert similarity(turn @ one[:2], basis, 2, 4) == pytest.approx(expected, rel=1e-12)
    blocks = [similarity(one, basis[start:], 2, 4) for start in (0, 4, 8)]
    assert sum(blocks) / 3 == pytest.approx(4 / 12, rel=1e-12)
