"""The whole decoder, twice: its gradients by differences, by numpy and by torch, for every choice of the config."""

from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from minillm.config import DecoderConfig, FeedForward, Norm, Positions
from minillm.key_values import KeyValues
from minillm.ops.lora import lora
from minillm.reference import decoder as reference
from minillm.reference.parameters import with_low_rank
from minillm.reference.tower import KeyValues as NumpyKeyValues
from tests.decoders import SIZES, STYLES, random_decoder, random_prefix
from tests.rungs import slope_along
from tests.strategies import masks, sizes
from tests.tolerances import assert_close

styles = st.sampled_from(sorted(STYLES)).map(STYLES.get)
prefix_kinds = st.sampled_from(("none", "shared", "by row", "gated", "without positions"))
seeds = st.integers(0, 2**31)


def numpy_weights(decoder):
    return {name: tensor.numpy().copy() for name, tensor in decoder.state_dict().items()}


def numpy_prefix(prefix):
    sides = (prefix.keys, prefix.values, prefix.gate)
    sides = (None if side is None else side.detach().numpy().copy() for side in sides)
    return NumpyKeyValues(*sides, takes_positions=prefix.takes_positions)


def prefix_of_kind(kind, config, rows, length, seed=0):
    if kind == "none":
        return None
    prefix = random_prefix(config, length, rows if kind == "by row" else 1, kind == "gated", seed)
    return replace(prefix, takes_positions=kind != "without positions")


def check_twins(decoder, ids, prefix, mask, seed=0):
    """Logits, and the gradients of every parameter and of the prefix."""
    sides = [] if prefix is None else [side for side in (prefix.keys, prefix.values, prefix.gate) if side is not None]
    for side in sides:
        side.requires_grad_()
    logits = decoder(ids, prefix=prefix, mask=mask)
    inputs = {"prefix": prefix and numpy_prefix(prefix), "mask": None if mask is None else mask.numpy()}
    expected, cache = reference.decoder_forward(numpy_weights(decoder), decoder.config, ids.numpy(), **inputs)
    assert_close(logits, expected, what="the logits")
    dout = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits.backward(dout)
    gradients = reference.decoder_backward(dout.numpy(), cache)
    for name, parameter in decoder.named_parameters():
        assert_close(parameter.grad, gradients["weights"].pop(name), what=f"the gradient of {name}")
    assert gradients["weights"].keys() <= frozen_names(decoder)
    for side, slope in zip(sides, gradients["prefix"].sides if sides else (), strict=False):
        assert_close(side.grad, slope, what="the prefix's gradient")


def frozen_names(decoder):
    """A tied head is one parameter of two names; a Linear under LoRA has a weight and bias that are constants."""
    return decoder.state_dict().keys() - dict(decoder.named_parameters()).keys()


def random_ids(batch, tokens, vocabulary=SIZES["vocabulary"], seed=0):
    return torch.randint(0, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("norm", "norm_first", "positions", "feed_forward"),
    list(product(get_args(Norm), (False, True), get_args(Positions), get_args(FeedForward))),
)
def test_every_choice_is_the_same_in_numpy_and_torch(norm, norm_first, positions, feed_forward):
    choice = {"norm": norm, "norm_first": norm_first, "positions": positions, "feed_forward": feed_forward}
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    for kv_heads, tied, bias in product((1, 3), (False, True), (False, True)):
        rest = {"kv_heads": kv_heads, "tie_embeddings": tied, "bias": bias}
        config = DecoderConfig(**SIZES | choice | rest)
        decoder = random_decoder(config)
        kind = ("none", "shared", "gated", "by row")[2 * tied + bias]
        check_twins(decoder, random_ids(2, 4), prefix_of_kind(kind, config, 2, 5), mask if kv_heads == 1 else None)


@given(styles, prefix_kinds, sizes, sizes, sizes, st.data(), seeds)
def test_sizes_masks_and_prefixes_are_the_same_in_numpy_and_torch(config, kind, batch, tokens, length, data, seed):
    mask = torch.from_numpy(data.draw(masks(batch, tokens))) if data.draw(st.booleans()) else None
    prefix = prefix_of_kind(kind, config, batch, length, seed)
    check_twins(random_decoder(config, seed), random_ids(batch, tokens, seed=seed), prefix, mask, seed)


@given(styles, prefix_kinds, sizes, sizes, sizes, st.data(), seeds)
def test_the_decoders_gradients_are_its_slopes(config, kind, batch, tokens, length, data, seed):
    weights = numpy_weights(random_decoder(config, seed))
    mask = data.draw(masks(batch, tokens)) if data.draw(st.booleans()) else None
    prefix = prefix_of_kind(kind, config, batch, length, seed)
    prefix = prefix and numpy_prefix(prefix)
    random = np.random.default_rng(seed)
    ids = random.integers(0, config.vocabulary, (batch, tokens))

    def forward():
        return reference.decoder_forward(weights, config, ids, prefix=prefix, mask=mask)

    logits, cache = forward()
    assume(_away_from_kinks(cache))
    dout = random.normal(size=logits.shape)
    gradients = reference.decoder_backward(dout, cache)
    slopes = [(weights[name], slope) for name, slope in gradients["weights"].items()]
    if prefix is not None:
        sides = zip(prefix.sides, gradients["prefix"].sides, strict=True)
        slopes += [pair for pair in sides if pair[0] is not None]
    arrays, slopes = zip(*slopes, strict=True)
    directions = [random.normal(size=array.shape) for array in arrays]
    expected = slope_along(lambda: (forward()[0] * dout).sum(), arrays, directions)
    along = sum((slope * direction).sum() for slope, direction in zip(slopes, directions, strict=True))
    assert_close(along, expected, "difference")


def _away_from_kinks(cache):
    """relu has no slope at 0, and a difference across it is neither side's."""
    (_, tower), _, _ = cache
    inner = [block["feed_forward"]["activation"][1] for block in tower["blocks"]]
    return all(isinstance(saved, tuple) or np.abs(saved).min() > 1e-3 for saved in inner)


class LowRank(nn.Module):
    """A Linear with factors, wired here apart from `minillm.adapt`."""

    def __init__(self, linear, a, b, scale):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.a, self.b, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    def forward(self, x):
        return lora(x, self.weight, self.bias, self.a, self.b, self.scale)


@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize("kind", ["none", "shared"])
def test_lora_in_the_decoder_is_the_same_in_numpy_and_torch(style, kind):
    decoder = random_decoder(STYLES[style])
    factors = {}
    for name, linear in list(decoder.named_modules()):
        if isinstance(linear, nn.Linear) and name.startswith("blocks.") and not name.endswith("out"):
            # Small enough that no softmax saturates: what is left of a slope there is mostly rounding.
            a, b = 0.3 * torch.randn(5, linear.in_features), 0.3 * torch.randn(linear.out_features, 5)
            a, b = a.double(), b.double()
            factors[name] = (a.numpy().copy(), b.numpy().copy(), 0.7)
            place, _, role = name.rpartition(".")
            setattr(decoder.get_submodule(place), role, LowRank(linear, a, b, 0.7))
    ids, prefix = random_ids(2, 4), prefix_of_kind(kind, decoder.config, 2, 5)
    logits = decoder(ids, prefix=prefix)
    plain = {name: weight for name, weight in numpy_weights(decoder).items() if name[-2:] not in (".a", ".b")}
    expected, cache = reference.decoder_forward(
        with_low_rank(plain, factors), decoder.config, ids.numpy(), prefix=prefix and numpy_prefix(prefix)
    )
    assert_close(logits, expected)
    dout = torch.randn(logits.shape).double()
    logits.backward(dout)
    gradients = reference.decoder_backward(dout.numpy(), cache)["weights"]
    for name, parameter in decoder.named_parameters():
        assert_close(parameter.grad, gradients[name], what=f"the gradient of {name}")


@given(styles, st.booleans(), sizes, sizes, seeds)
def test_what_a_prompt_leaves_behind_is_the_same_in_numpy_and_torch(config, by_ids, batch, length, seed):
    decoder = random_decoder(config, seed)
    ids = random_ids(batch, length, seed=seed)
    prompt = ids if by_ids else torch.randn(batch, length, config.width).double().requires_grad_()
    left_behind = decoder.keys_values(prompt)
    expected, cache = reference.keys_values_forward(numpy_weights(decoder), config, prompt.detach().numpy())
    dkeys, dvalues = torch.randn(2, *left_behind.keys.shape).double()
    for actual, side in zip((left_behind.keys, left_behind.values), expected, strict=False):
        assert_close(actual, side)
    torch.autograd.backward((left_behind.keys, left_behind.values), (dkeys, dvalues))
    gradients = reference.keys_values_backward(NumpyKeyValues(dkeys.numpy(), dvalues.numpy()), cache)
    if not by_ids:
        assert_close(prompt.grad, gradients["embeddings"])
    for name, parameter in decoder.named_parameters():
        zero = torch.zeros_like(parameter)
        slope = gradients["weights"].get(name, zero.detach().numpy())
        assert_close(zero if parameter.grad is None else parameter.grad, slope, what=f"the gradient of {name}")


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_soft_prompts_gradient_passes_through_its_keys_and_values(style):
    decoder = random_decoder(STYLES[style])
    embeddings, ids = torch.randn(1, 3, decoder.config.width).double().requires_grad_(), random_ids(2, 5)
    logits = decoder(ids, prefix=decoder.keys_values(embeddings))
    dout = torch.randn(logits.shape).double()
    logits.backward(dout)
    weights = numpy_weights(decoder)
    prompt, prompt_cache = reference.keys_values_forward(weights, decoder.config, embeddings.detach().numpy())
    _, cache = reference.decoder_forward(weights, decoder.config, ids.numpy(), prefix=prompt)
    through = reference.decoder_backward(dout.numpy(), cache)
    gradients = reference.keys_values_backward(through["prefix"], prompt_cache)
    assert_close(embeddings.grad, gradients["embeddings"])
    for name, parameter in decoder.named_parameters():
        slope = through["weights"][name] + gradients["weights"].get(name, 0.0)
        assert_close(parameter.grad, slope, what=f"the gradient of {name}")


def test_a_state_dict_is_taken_as_it_is_and_read_in_float64():
    decoder = random_decoder(STYLES["Llama"]).float()
    state, ids = decoder.state_dict(), random_ids(2, 5)
    logits, _ = reference.decoder_forward({name: t.numpy() for name, t in state.items()}, decoder.config, ids.numpy())
    assert logits.dtype == np.float64
    assert_close(decoder.double()(ids), logits)


def test_a_prefix_of_the_wrong_gate_is_not_the_same():
    """The comparison above can fail: a gate of the other sign is seen."""
    decoder, ids = random_decoder(STYLES["Llama"]), random_ids(2, 5)
    prefix = random_prefix(decoder.config, 3, gated=True)
    turned = KeyValues(prefix.keys, prefix.values, -prefix.gate)
    expected, _ = reference.decoder_forward(
        numpy_weights(decoder), decoder.config, ids.numpy(), prefix=numpy_prefix(prefix)
    )
    with pytest.raises(AssertionError):
        assert_close(decoder(ids, prefix=turned), expected)
