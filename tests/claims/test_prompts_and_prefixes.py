"""Claims about prompts, soft prompts and prefixes (the lecture's places 1 and 2)."""

import torch

from minillm.operations import Prefix, attention
from minillm.ops.attention import attention_weights, prepend, visible_keys
from tests.decoders import STYLES, random_decoder
from tests.tolerances import relative_error


def _text_and_prefix(rows=2, heads=6, groups=2, tokens=5, length=3, width=7):
    query = torch.randn(rows, heads, tokens, width).double()
    key, value = torch.randn(2, rows, groups, tokens, width).double()
    return query, key, value, Prefix(*torch.randn(2, 1, groups, length, width).double())


def _weights(query, key, value, prefix):
    """The attention weights of every query, on the prefix and the text."""
    keys = prepend(prefix, key, value, None)[0]
    return attention_weights(query, keys, visible_keys(query.shape[2], keys.shape[2], None, query.device))


def test_a_zero_prefix_is_not_a_no_op():
    """A key of 0 has a score of 0, not of -∞, so a prefix of zeros takes mass from the text. (Zhang et al. 2023 add a
    gate for that reason.)"""
    query, key, value, prefix = _text_and_prefix()
    zeros = Prefix(torch.zeros_like(prefix.key), torch.zeros_like(prefix.value))
    plain = attention(query, key, value)
    changed = relative_error(attention(query, key, value, prefix=zeros), plain)
    closed = attention(query, key, value, prefix=Prefix(prefix.key, prefix.value, torch.zeros(6).double()))
    print(f"zeros change attention by {changed:.0%}; a gate of 0 changes {relative_error(closed, plain):.0%}")
    assert changed > 0.1
    assert torch.equal(closed, plain)


def test_no_finite_key_makes_a_prefix_a_no_op():
    """The mass on a prefix is positive for every finite key; it falls exponentially with the distance to the query."""
    query, key, value, prefix = _text_and_prefix(rows=1, heads=1, groups=1, tokens=1)
    masses = []
    for distance in (0, 1, 10, 100):
        weights = _weights(query, key, value, Prefix(-distance * query, prefix.value[:, :, :1]))
        masses.append(weights[..., 0].item())
    print("the mass on a prefix at growing distance:", ", ".join(f"{mass:.1e}" for mass in masses))
    assert masses == sorted(masses, reverse=True)
    assert masses[-1] > 0


def test_not_every_prefix_is_a_prompt():
    """Li & Liang 2021, section 4.1: keys and values in every layer are more expressive than embeddings. A prompt's keys
    and values in all layers follow from D numbers per position; a prefix has 2 L G K."""
    config = STYLES["Llama"]
    decoder = random_decoder(config)
    embeddings = torch.randn(1, 1, config.width).double().requires_grad_()
    found = decoder.keys_values(embeddings)
    outputs = torch.cat((found.keys.flatten(), found.values.flatten()))
    jacobian = torch.stack([torch.autograd.grad(out, embeddings, retain_graph=True)[0].flatten() for out in outputs])
    directions = torch.linalg.matrix_rank(jacobian).item()
    print(f"a soft prompt moves the prefix in {directions} of {len(outputs)} directions")
    assert directions <= config.width < len(outputs)
