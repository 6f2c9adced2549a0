"""Claims about LoRA (the lecture's place 3; Hu et al. 2021)."""

import math

import torch

from minillm.operations import lora
from tests.tolerances import assert_close, relative_error

SCALE = 0.5


def _case(rank=5, inputs=23, outputs=29):
    x, dout = torch.randn(31, inputs).double(), torch.randn(31, outputs).double()
    weight, a = torch.randn(outputs, inputs).double(), torch.randn(rank, inputs).double()
    return x, dout, weight, a.requires_grad_(), torch.zeros(outputs, rank).double().requires_grad_()


def test_with_b_at_zero_a_has_no_first_gradient_and_b_has():
    """Hu et al. 2021, section 4.1: dW = B A starts at 0 as B does; then A's gradient s Bᵀ G is exactly 0,
    and B's, s G Aᵀ, is not."""
    x, dout, weight, a, b = _case()
    lora(x, weight, None, a, b, SCALE).backward(dout)
    print(f"the largest first gradient of A: {a.grad.abs().max()}, of B: {b.grad.abs().max():.3f}")
    assert not a.grad.any()
    assert b.grad.abs().max() > 1


def test_the_first_step_is_full_fine_tunings_times_s_squared_a_transposed_a():
    """One step of gradient descent from B = 0 moves the matrix by -η G s² AᵀA, where full fine-tuning moves it by -η G:
    the same slope, projected (and stretched) to what A reads."""
    rate = 0.01
    x, dout, weight, a, b = _case()
    lora(x, weight, None, a, b, SCALE).backward(dout)
    moved = SCALE * (b - rate * b.grad) @ (a - rate * a.grad)
    full = weight.clone().requires_grad_()
    (x @ full.T).backward(dout)
    expected = -rate * full.grad @ (SCALE**2 * a.T @ a)
    print(f"error {relative_error(moved, expected):.1e}")
    assert_close(moved, expected, "law")


def test_the_rank_of_an_update_is_at_most_r():
    """Hu et al. 2021, equation 3, after any number of steps."""
    x, dout, weight, a, b = _case()
    optimizer = torch.optim.AdamW([a, b], lr=0.1)
    for _ in range(7):
        optimizer.zero_grad()
        lora(x, weight, None, a, b, SCALE).backward(dout)
        optimizer.step()
    full = weight.clone().requires_grad_()
    (x @ full.T).backward(dout)
    ranks = [torch.linalg.matrix_rank(matrix).item() for matrix in (SCALE * b @ a, full.grad)]
    print(f"rank of dW {ranks[0]} (r is 5); of full fine-tuning's gradient {ranks[1]}")
    assert ranks == [5, 23]


def test_two_loras_add_by_concatenating_their_factors_and_not_by_adding_them():
    """(B1 + B2)(A1 + A2) has cross terms; [B1 B2][A1; A2] is B1 A1 + B2 A2 and has none."""
    (_, _, _, a1, _), (_, _, _, a2, _) = _case(), _case()
    b1, b2 = torch.randn(2, 29, 5).double()
    both = b1 @ a1 + b2 @ a2
    concatenated, added = torch.cat((b1, b2), 1) @ torch.cat((a1, a2)), (b1 + b2) @ (a1 + a2)
    print(f"concatenated: error {relative_error(concatenated, both):.1e}; added: {relative_error(added, both):.0%}")
    assert_close(concatenated, both, "law")
    assert relative_error(added, both) > 0.3


def test_merging_and_subtracting_again_drifts_in_half_precision():
    """Against Hu et al. 2021, section 4.1, that subtracting B A recovers W0: true of real numbers. A model is kept in
    bfloat16 or float16, where each sum is rounded."""
    weight, update = torch.randn(257, 251), 0.1 * torch.randn(257, 251)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        start = weight.to(dtype)
        kept = start.clone()
        for _ in range(10):
            kept = (kept + update.to(dtype)) - update.to(dtype)
        changed = (kept != start).double().mean().item()
        print(f"{dtype}: {changed:.0%} of the weights changed, by up to {(kept - start).abs().max():.1e}")
        assert changed > 0.05


def test_the_relation_of_appendix_g_is_misprinted():
    """Hu et al. 2021, appendix G, prints φ = (1 - d²) / p for the similarity φ = ‖UᵀV‖² / p of two subspaces of
    dimension p at the projection distance d. With d² = p - Σσ², the relation is φ = 1 - d² / p."""
    p = 5
    u, v = (torch.linalg.qr(torch.randn(23, p).double()).Q for _ in range(2))
    cosines = torch.linalg.svdvals(u.T @ v)
    # The distance by its own definition: between the projections on the two subspaces.
    distance = torch.linalg.matrix_norm(u @ u.T - v @ v.T) / math.sqrt(2)
    similarity = cosines.square().sum() / p
    printed, corrected = (1 - distance**2) / p, 1 - distance**2 / p
    print(f"φ = {similarity:.4f}; as printed {printed:.4f}, corrected {corrected:.4f}")
    assert_close(corrected, similarity, "law")
    assert abs(printed - similarity) > 0.1
