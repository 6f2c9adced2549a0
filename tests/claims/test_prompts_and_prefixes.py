"""Claims about prompts, soft prompts and prefixes (the lecture's places 1 and 2)."""

import torch

from minillm.operations import Prefix, attention
from minillm.ops.attention import attention_weights, prepend, visible_keys
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close, relative_error


def _text_and_prefix(rows=2, heads=6, groups=2, tokens=5, length=3, width=7):
    query = torch.randn(rows, heads, tokens, width).double()
    key, value = torch.randn(2, rows, groups, tokens, width).double()
    return query, key, value, Prefix(*torch.randn(2, 1, groups, length, width).double())


def _weights(query, key, value, prefix):
    """Of every query on the prefix and the text."""
    keys = prepend(prefix, key, value, None)[0]
    return attention_weights(query, keys, visible_keys(query.shape[2], keys.shape[2], None, query.device))


def test_prefix_attention_is_a_convex_mixture():
    """He et al. 2022, section 3.1: Attn([prefix; text]) = (1 - m) Attn(text) + m Attn(prefix), m the softmax's mass on
    the prefix."""
    query, key, value, prefix = _text_and_prefix()
    both = attention(query, key, value, prefix=prefix)
    mass = _weights(query, key, value, prefix)[..., :3].sum(-1, keepdim=True)
    # Every query sees the whole prefix: it attends as the last T of P + T positions whose own keys are left out.
    scores = query @ prefix.key.repeat_interleave(3, 1).mT / 7**0.5
    alone = scores.softmax(-1) @ prefix.value.repeat_interleave(3, 1)
    mixture = (1 - mass) * attention(query, key, value) + mass * alone
    print(
        f"error {relative_error(mixture, both):.1e}; the prefix's mass goes from {mass.min():.2f} to {mass.max():.2f}"
    )
    assert_close(mixture, both, "law")
    assert 0 < mass.min() < mass.max() < 1


def test_a_zero_prefix_is_not_a_no_op():
    """Against the belief that a prefix of zeros starts where the base stands: a key of 0 has a score of 0, not of -∞,
    so that it takes mass from the text. (Zhang et al. 2023 add a gate for that reason.)"""
    query, key, value, prefix = _text_and_prefix()
    zeros = Prefix(torch.zeros_like(prefix.key), torch.zeros_like(prefix.value))
    plain = attention(query, key, value)
    changed = relative_error(attention(query, key, value, prefix=zeros), plain)
    closed = attention(query, key, value, prefix=Prefix(prefix.key, prefix.value, torch.zeros(6).double()))
    print(f"zeros change attention by {changed:.0%}; a gate of 0 changes {relative_error(closed, plain):.0%}")
    assert changed > 0.1
    assert torch.equal(closed, plain)


def test_no_finite_key_makes_a_prefix_a_no_op():
    """A prefix's mass is above 0 for every finite key: far from the query it only falls exponentially."""
    query, key, value, prefix = _text_and_prefix(rows=1, heads=1, groups=1, tokens=1)
    masses = []
    for distance in (0, 1, 10, 100):
        weights = _weights(query, key, value, Prefix(-distance * query, prefix.value[:, :, :1]))
        masses.append(weights[..., 0].item())
    print("the mass on a prefix ever farther away:", ", ".join(f"{mass:.1e}" for mass in masses))
    assert masses == sorted(masses, reverse=True)
    assert masses[-1] > 0


def test_a_prompt_is_its_keys_and_values_is_its_embeddings():
    """The lecture's p0 and Lester et al. 2021: a hard prompt is one point in the space of soft ones; and Li & Liang
    2021: both are points in the space of prefixes."""
    for style, config in STYLES.items():
        decoder = random_decoder(config)
        prompt, ids = torch.randint(13, (1, 3)), torch.randint(13, (2, 5))
        hard = decoder(torch.cat((prompt.expand(2, -1), ids), 1))[:, 3:]
        errors = [
            relative_error(decoder(ids, prefix=decoder.keys_values(read)), hard)
            for read in (prompt, decoder.embed(prompt))
        ]
        print(f"{style}: by keys and values {errors[0]:.1e}, by embeddings {errors[1]:.1e}")
        assert max(errors) < 1e-12


def test_not_every_prefix_is_a_prompt():
    """Li & Liang 2021, section 4.1: keys and values in every layer say more than embeddings do. Counted: a prompt's
    keys and values in all layers follow from D numbers a position, a prefix has 2 L G K of them."""
    config = STYLES["Llama"]
    decoder = random_decoder(config)
    embeddings = torch.randn(1, 1, config.width).double().requires_grad_()
    left_behind = decoder.keys_values(embeddings)
    outputs = torch.cat((left_behind.keys.flatten(), left_behind.values.flatten()))
    jacobian = torch.stack([torch.autograd.grad(out, embeddings, retain_graph=True)[0].flatten() for out in outputs])
    directions = torch.linalg.matrix_rank(jacobian).item()
    print(f"a soft prompt moves the prefix in {directions} of {len(outputs)} directions")
    assert directions <= config.width < len(outputs)
