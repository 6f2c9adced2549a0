"""The whole decoder: central differences, numpy and torch have the same gradients, for every choice of the config."""

from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from minillm.adapt.lora import LoRALinear
from minillm.config import DecoderConfig, FeedForward, Norm, Positions
from minillm.key_values import KeyValues
from minillm.lab.trust import Case, against_numpy, differences
from minillm.operations import FAST, PLAIN
from minillm.reference import decoder as reference
from minillm.reference.tower import KeyValues as NumpyKeyValues
from tests.decoders import SIZES, STYLES, random_decoder, random_prefix
from tests.strategies import masks, randoms, sizes
from tests.tolerances import assert_close, assert_good

styles = st.sampled_from(sorted(STYLES)).map(STYLES.get)
prefix_kinds = st.sampled_from(("none", "shared", "by row", "gated", "without positions"))
seeds = st.integers(0, 2**31)
FLOAT64 = "numpy vs torch, float64"


def numpy_weights(decoder):
    """All parameters by name, a tied head once, as the embedding; and the scale of each update under LoRA."""
    scales = {f"{path}.scale": part.scale for path, part in decoder.named_modules() if isinstance(part, LoRALinear)}
    return {name: parameter.detach().numpy().copy() for name, parameter in decoder.named_parameters()} | scales


class Computed(nn.Module):
    """A function of a decoder as a module, because `functional_call` needs one."""

    def __init__(self, decoder, compute):
        super().__init__()
        self.decoder, self.compute = decoder, compute

    def forward(self, **inputs):
        return self.compute(self.decoder, **inputs)


def case_of(decoder, others, forward, backward, compute):
    """A case from numpy's forward and backward and torch's function, of a decoder's weights and of other inputs."""
    weights, module = numpy_weights(decoder), Computed(decoder, compute)

    def numpy_forward(inputs):
        return forward({name: inputs[name] for name in weights}, **{name: inputs[name] for name in others})

    def numpy_backward(dout, cache):
        found = backward(dout, cache)
        reached = found.pop("weights")
        assert reached.keys() <= weights.keys()
        trained = {name: reached.get(name, np.zeros(array.shape)) for name, array in weights.items()}
        return trained | {name: gradient for name, gradient in found.items() if name in others}

    def run(inputs, dtype, device):
        named = {f"decoder.{name}": inputs[name] for name in weights}
        # Unused weights need a gradient of 0.
        zero = 0.0 * sum(tensor.sum() for tensor in named.values())
        return functional_call(module, named, (), {name: inputs[name] for name in others}) + zero

    return Case("decoder", weights | others, numpy_forward, numpy_backward, run)


def logits_case(decoder, ids, mask=None, prefix=None):
    """Logits, and the gradients of every parameter and of the prefix."""
    sides = {} if prefix is None else {name: getattr(prefix, name) for name in ("keys", "values", "gate")}
    others = {"ids": ids.numpy()} | {name: side.numpy() for name, side in sides.items() if side is not None}
    if mask is not None:
        others["mask"] = mask.numpy()

    def prefix_of(kind, inputs):
        given = {name: inputs.pop(name) for name in sides if name in inputs}
        return kind(**given, takes_positions=prefix.takes_positions) if given else None

    def forward(weights, ids, mask=None, **inputs):
        prefix = prefix_of(NumpyKeyValues, inputs)
        return reference.decoder_forward(weights, decoder.config, ids, mask=mask, prefix=prefix)

    def backward(dout, cache):
        gradients = reference.decoder_backward(dout, cache)
        through = gradients["prefix"].sides if sides else ()
        return {"weights": gradients["weights"]} | dict(zip(sides, through, strict=True))

    def compute(decoder, ids, mask=None, **inputs):
        return decoder(ids, mask=mask, prefix=prefix_of(KeyValues, inputs))

    return case_of(decoder, others, forward, backward, compute)


def prefix_of_kind(kind, config, rows, length, seed=0):
    if kind == "none":
        return None
    prefix = random_prefix(config, length, rows if kind == "by row" else 1, kind == "gated", seed)
    return replace(prefix, takes_positions=kind != "without positions")


def random_ids(batch, tokens, vocabulary=SIZES["vocabulary"], seed=0):
    return torch.randint(0, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("norm", "norm_first", "positions", "feed_forward"),
    list(product(get_args(Norm), (False, True), get_args(Positions), get_args(FeedForward))),
)
def test_every_choice_of_the_config_is_the_same_in_numpy_and_torch(norm, norm_first, positions, feed_forward):
    choice = {"norm": norm, "norm_first": norm_first, "positions": positions, "feed_forward": feed_forward}
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    for tied, bias in product((False, True), repeat=2):
        kv_heads = 3 if tied == bias else 1
        config = DecoderConfig(**SIZES | choice | {"kv_heads": kv_heads, "tie_embeddings": tied, "bias": bias})
        prefix = prefix_of_kind(("none", "shared", "gated", "by row")[2 * tied + bias], config, 2, 5)
        case = logits_case(random_decoder(config), random_ids(2, 4), mask if kv_heads == 1 else None, prefix)
        assert_good(against_numpy(case, np.random.default_rng(0), (PLAIN, FAST)[bias]), FLOAT64)


@st.composite
def logits_cases(draw):
    config, batch, tokens, seed = draw(styles), draw(sizes), draw(sizes), draw(seeds)
    mask = torch.from_numpy(draw(masks(batch, tokens))) if draw(st.booleans()) else None
    prefix = prefix_of_kind(draw(prefix_kinds), config, batch, draw(sizes), seed)
    return logits_case(random_decoder(config, seed), random_ids(batch, tokens, seed=seed), mask, prefix)


@given(logits_cases(), st.sampled_from((PLAIN, FAST)), randoms)
def test_sizes_masks_and_prefixes_are_the_same_in_numpy_and_torch(case, by, random):
    assert_good(against_numpy(case, random, by), FLOAT64)


# Four forward passes for each parameter: a fifth of the usual number of examples.
@settings(max_examples=settings.default.max_examples // 5)
@given(logits_cases(), randoms)
def test_the_gradients_of_the_decoder_equal_differences(case, random):
    assume(_away_from_kinks(case.forward(case.inputs)[1]))
    assert_good(differences(case, random), "numpy vs differences, float64")


def _away_from_kinks(cache):
    """relu has no gradient at 0, and a difference across 0 is not the gradient of either side."""
    (_, tower), _, _ = cache
    inner = [block["feed_forward"]["activation"][1] for block in tower["blocks"]]
    return all(isinstance(saved, tuple) or np.abs(saved).min() > 1e-3 for saved in inner)


@given(styles, st.booleans(), sizes, sizes, seeds)
def test_the_keys_and_values_of_a_prompt_are_the_same_in_numpy_and_torch(config, by_ids, batch, length, seed):
    random, ids = np.random.default_rng(seed), random_ids(batch, length, seed=seed).numpy()
    prompt = ids if by_ids else random.normal(size=(batch, length, config.width))

    def forward(weights, prompt):
        found, cache = reference.keys_values_forward(weights, config, prompt)
        return np.stack(found.sides[:2]), cache

    def backward(dout, cache):
        gradients = reference.keys_values_backward(NumpyKeyValues(*dout), cache)
        return {"weights": gradients["weights"]} | ({} if by_ids else {"prompt": gradients["embeddings"]})

    def compute(decoder, prompt):
        found = decoder.keys_values(prompt)
        return torch.stack((found.keys, found.values))

    case = case_of(random_decoder(config, seed), {"prompt": prompt}, forward, backward, compute)
    assert_good(against_numpy(case, random), FLOAT64)


def test_a_state_dict_is_accepted_and_computed_in_float64():
    decoder = random_decoder(STYLES["Llama"]).float()
    state, ids = decoder.state_dict(), random_ids(2, 5)
    logits, _ = reference.decoder_forward({name: t.numpy() for name, t in state.items()}, decoder.config, ids.numpy())
    assert logits.dtype == np.float64
    assert_close(decoder.double()(ids), logits)
