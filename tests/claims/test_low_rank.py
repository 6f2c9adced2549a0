"""Claims about LoRA's matrices (the lecture's place 3; Hu et al. 2021)."""

import math

import pytest
import torch

from minillm.adapters.extract import similarity
from tests.tolerances import assert_close


def test_merging_and_subtracting_again_drifts_in_half_precision():
    """Against Hu et al. 2021, section 4.1, that subtracting B A recovers W0: true of real numbers, but each sum is
    rounded to the dtype. A merge here is therefore a new decoder, and discarding it is exact."""
    weight, update = torch.randn(257, 251), 0.1 * torch.randn(257, 251)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        start = weight.to(dtype)
        merged = start.clone()
        for _ in range(10):
            merged = (merged + update.to(dtype)) - update.to(dtype)
        changed = (merged != start).double().mean().item()
        print(f"{dtype}: {changed:.0%} of the weights changed, by up to {(merged - start).abs().max():.1e}")
        assert changed > 0.05


def test_the_relation_of_appendix_g_is_misprinted():
    """Hu et al. 2021, appendix G, prints φ = (1 - d²) / p for the similarity φ = ‖UᵀV‖² / p of two subspaces of
    dimension p at the projection distance d. With d² = p - Σσ², the relation is φ = 1 - d² / p."""
    p = 5
    u, v = (torch.linalg.qr(torch.randn(23, p).double()).Q for _ in range(2))
    cosines = torch.linalg.svdvals(u.T @ v)
    # The distance by its definition: between the projections on the two subspaces.
    distance = torch.linalg.matrix_norm(u @ u.T - v @ v.T) / math.sqrt(2)
    found = cosines.square().sum() / p
    printed, corrected = (1 - distance**2) / p, 1 - distance**2 / p
    print(f"φ = {found:.4f}; as printed {printed:.4f}, corrected {corrected:.4f}")
    assert similarity(u.T, v.T, p, p) == pytest.approx(found.item(), rel=1e-12)
    assert_close(corrected, found, "law")
    assert abs(printed - found) > 0.1
