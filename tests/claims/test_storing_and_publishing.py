"""Claims about cached features and saved weight differences (the lecture's places 3 and 4)."""

import torch

from tests.decoders import STYLES, random_decoder


def test_features_cached_before_the_body_is_trained_are_stale():
    """Embeddings can be stored beforehand (law 10), but only those of a frozen body."""
    decoder, ids = random_decoder(STYLES["Llama"]), torch.randint(13, (11, 5))
    cached = decoder.features(ids).detach()
    with torch.no_grad():
        decoder.blocks[0].attention.value.weight += 1e-3
    moved = (decoder.features(ids) - cached).abs().max().item()
    print(f"adding 0.001 to one matrix changes the features by {moved:.1e}")
    assert moved > 1e-4


def test_publishing_dw_restores_the_model_for_those_who_have_the_base():
    """The lecture, "we only publish dW" (Alpaca, Vicuna): base + dW is the tuned model. In floating point nearly: a
    weight near 0 has finer digits than its difference to the base. By the bits exactly."""
    base = torch.randn(257, 251)
    tuned = base.clone()
    for _ in range(20):
        tuned = 0.99 * tuned + 0.05 * torch.randn(257, 251)
    exact = (base + (tuned - base) == tuned).double().mean().item()
    bits = tuned.view(torch.int32) ^ base.view(torch.int32)
    print(f"in floating point {exact:.2%} of the weights are restored exactly, by the bits all")
    assert 0.5 < exact < 1
    assert torch.equal((base.view(torch.int32) ^ bits).view(torch.float32), tuned)


def test_dw_in_half_precision_is_not_the_tuned_model():
    """A dW rounded to bfloat16 has half the bytes, but few weights are restored exactly."""
    base, direction = torch.randn(2, 257, 251)
    tuned = base + 0.01 * direction
    restored = base + (tuned - base).bfloat16()
    exact = (restored == tuned).double().mean().item()
    print(f"{exact:.2%} of the weights are restored exactly; the largest error is {(restored - tuned).abs().max():.1e}")
    assert exact < 0.1


def test_dw_alone_is_not_a_model():
    """Publishing dW does not publish the base: a decoder whose weights are dW predicts other tokens."""
    base, tuned = random_decoder(STYLES["Llama"]), random_decoder(STYLES["Llama"])
    difference = random_decoder(STYLES["Llama"])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for ours, theirs, delta in zip(tuned.parameters(), base.parameters(), difference.parameters(), strict=True):
            ours += 0.01 * torch.randn(ours.shape, generator=generator, dtype=ours.dtype)
            delta.copy_(ours - theirs)
    ids = torch.randint(13, (37, 5))
    answers = [decoder(ids)[:, -1].argmax(-1) for decoder in (tuned, base, difference)]
    agree = [(answers[0] == other).double().mean().item() for other in answers[1:]]
    print(f"of 37 texts the base agrees with the tuned model on {agree[0]:.0%}, dW alone on {agree[1]:.0%}")
    assert agree[0] > 0.8 > 0.4 > agree[1]
