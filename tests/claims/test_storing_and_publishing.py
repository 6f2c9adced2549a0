"""Claims about what has to be computed again and what has to be given away (the lecture's places 3 and 4)."""

import torch

from minillm.operations import linear_cross_entropy
from tests.decoders import STYLES, random_decoder


def test_embeddings_can_be_stored_beforehand():
    """The lecture, feature-based adaptation: the body is frozen, so its features are the same in every epoch. The
    losses of a classifier on stored features are those of the whole model, bit for bit."""
    decoder = random_decoder(STYLES["Llama"]).requires_grad_(False)
    ids, labels = torch.randint(13, (11, 5)), torch.randint(3, (11,))
    stored = decoder.features(ids)[:, -1]
    losses = []
    for features in (lambda: stored, lambda: decoder.features(ids)[:, -1]):
        head = torch.zeros(3, decoder.config.width, dtype=torch.float64, requires_grad=True)
        optimizer, seen = torch.optim.AdamW([head], lr=0.1), []
        for _ in range(7):
            optimizer.zero_grad()
            loss = linear_cross_entropy(features(), head, labels)
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        losses.append(seen)
    print("stored:", *(f"{loss:.6f}" for loss in losses[0]))
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_embeddings_stored_before_the_body_moves_are_stale():
    """The other side of that claim: it holds for a frozen body alone."""
    decoder, ids = random_decoder(STYLES["Llama"]), torch.randint(13, (11, 5))
    stored = decoder.features(ids).detach()
    with torch.no_grad():
        decoder.blocks[0].attention.value.weight += 1e-3
    moved = (decoder.features(ids) - stored).abs().max().item()
    print(f"a thousandth in one matrix moves the features by {moved:.1e}")
    assert moved > 1e-4


def test_publishing_dw_restores_the_model_for_those_who_have_the_base():
    """The lecture, "we only publish dW" (Alpaca, Vicuna): base + dW is the tuned model. By floats nearly: a weight that
    has come near 0 has finer digits than its difference to the base can hold. By bits exactly."""
    base = torch.randn(257, 251)
    tuned = base.clone()
    for _ in range(20):
        tuned = 0.99 * tuned + 0.05 * torch.randn(257, 251)
    exact = (base + (tuned - base) == tuned).double().mean().item()
    bits = tuned.view(torch.int32) ^ base.view(torch.int32)
    print(f"by floats {exact:.2%} of the weights come back exactly, by bits all")
    assert 0.5 < exact < 1
    assert torch.equal((base.view(torch.int32) ^ bits).view(torch.float32), tuned)


def test_dw_in_half_precision_is_not_the_tuned_model():
    """A dW rounded to bfloat16 is half the bytes, and no weight of it may be trusted to the last bits."""
    base, direction = torch.randn(2, 257, 251)
    tuned = base + 0.01 * direction
    restored = base + (tuned - base).bfloat16()
    exact = (restored == tuned).double().mean().item()
    print(f"{exact:.2%} of the weights come back exactly; the largest error is {(restored - tuned).abs().max():.1e}")
    assert exact < 0.1


def test_a_matrix_of_dw_alone_says_nothing_of_the_model():
    """Publishing dW protects the base: a decoder made of a difference answers unlike the tuned one."""
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
    print(f"of 37 texts the base answers {agree[0]:.0%} like the tuned model, dW alone {agree[1]:.0%}")
    assert agree[0] > 0.8 > 0.4 > agree[1]
