"""Laws of the decoder: sizes, causality, batches and padding, prompts."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.key_values import KeyValues
from tests.decoders import SIZES, STYLES, random_decoder, random_prefix
from tests.strategies import masks, sizes
from tests.tolerances import assert_close

styles = st.sampled_from(sorted(STYLES)).map(STYLES.get)
every_style = pytest.mark.parametrize("style", sorted(STYLES))
every_prefix = pytest.mark.parametrize("kind", ["none", "shared", "by row", "gated"])


def _ids(*shape, seed=0):
    return torch.randint(0, SIZES["vocabulary"], shape, generator=torch.Generator().manual_seed(seed))


def _prefix(kind, config, rows):
    if kind == "none":
        return None
    return random_prefix(config, 3, rows if kind == "by row" else 1, kind == "gated")


def _row(prefix, row):
    if prefix is None or prefix.keys.shape[1] == 1:
        return prefix
    return KeyValues(prefix.keys[:, row : row + 1], prefix.values[:, row : row + 1], prefix.gate)


PUBLISHED = {
    "gpt2": {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200},
    "llama": {"smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384}
    | {"llama-2-7b": 6_738_415_616},
}


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("family", "size"), [(family, size) for family in PUBLISHED for size in PUBLISHED[family]])
def test_a_published_model_has_its_published_number_of_parameters(family, size):
    with torch.device("meta"):
        decoder = Decoder(getattr(DecoderConfig, family)(size))
    assert _count(decoder) == PUBLISHED[family][size]
    if size == "small":
        assert _count(decoder.blocks[0]) == 7_087_872


def test_the_whole_parameter_tree_of_a_small_llama():
    shapes = {name: tuple(parameter.shape) for name, parameter in Decoder(STYLES["Llama, untied"]).named_parameters()}
    block = {"attention_norm": (30,), "attention.query": (30, 30), "attention.key": (10, 30)}
    block |= {"attention.value": (10, 30), "attention.out": (30, 30), "feed_forward_norm": (30,)}
    block |= {"feed_forward.gate": (11, 30), "feed_forward.up": (11, 30), "feed_forward.down": (30, 11)}
    assert shapes == {
        "embed.weight": (13, 30),
        **{f"blocks.{i}.{name}.weight": shape for i in range(2) for name, shape in block.items()},
        "norm.weight": (30,),
        "head.weight": (13, 30),
    }


def test_the_parameter_tree_of_figure_1_and_gpt2_differs_by_positions_and_the_last_norm():
    figure, gpt2 = (Decoder(STYLES[style]).state_dict().keys() for style in ("figure 1", "GPT-2"))
    assert gpt2 - figure == {"positions.weight", "norm.weight", "norm.bias"}
    assert figure <= gpt2


def test_a_tied_head_is_the_embedding_table_itself():
    decoder = Decoder(STYLES["Llama"])
    assert decoder.head.weight is decoder.embed.weight
    assert Decoder(STYLES["Llama, untied"]).head.weight is not decoder.embed.weight


def test_a_new_decoder_is_initialised_like_gpt2():
    torch.manual_seed(0)
    decoder = Decoder(replace(DecoderConfig.gpt2("small"), layers=2, vocabulary=1000))
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1:
            expected = 0.01 if name.endswith(("out.weight", "down.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.02), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


@every_style
@every_prefix
def test_logits_depend_on_every_earlier_token_and_on_no_later_one(style, kind):
    decoder = random_decoder(STYLES[style])
    ids, prefix = _ids(2, 7), _prefix(kind, decoder.config, 2)
    before, window = decoder(ids, prefix=prefix), decoder.config.window
    reach = 7 if window is None else decoder.config.layers * (window - 1) + 1
    for place in range(7):
        later, one = ids.clone(), ids.clone()
        later[:, place:] = (ids[:, place:] + 1) % SIZES["vocabulary"]
        one[:, place] = later[:, place]
        after = decoder(later, prefix=prefix)
        assert_close(after[:, :place], before[:, :place], "law")
        assert (after[:, place] - before[:, place]).abs().max() > 1e-3
        moved = (decoder(one, prefix=prefix) - before)[:, place:].abs().amax((0, 2))
        assert (moved[:reach] > 1e-6).all()
        assert (moved[reach:] == 0).all(), "each layer extends the reach by a window"


@every_style
@every_prefix
def test_a_row_of_a_batch_equals_that_row_alone_with_padding_on_any_side(style, kind):
    decoder = random_decoder(STYLES[style])
    prefix = _prefix(kind, decoder.config, 3)
    for starts, lengths in (((0,) * 3, (7,) * 3), ((5, 2, 4), (2, 5, 3)), ((0,) * 3, (2, 5, 3)), ((1,) * 3, (2, 5, 3))):
        ids, mask = torch.full((3, 7), 4), torch.zeros(3, 7, dtype=torch.bool)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            ids[row, start : start + length] = _ids(length, seed=length + row)
            mask[row, start : start + length] = True
        logits = decoder(ids, prefix=prefix, mask=None if mask.all() else mask)
        assert logits.isfinite().all()
        for row, real in enumerate(mask):
            alone = decoder(ids[row : row + 1, real], prefix=_row(prefix, row))
            assert_close(logits[row : row + 1, real], alone, "law")


@given(styles, st.data(), sizes, sizes, st.integers(0, 2**31))
def test_a_hard_prompt_is_its_keys_and_values_is_a_soft_prompt_of_its_embeddings(config, data, length, tokens, seed):
    decoder = random_decoder(config, seed)
    mask = torch.from_numpy(data.draw(masks(data.draw(sizes), tokens)))
    prompt, ids = _ids(1, length, seed=seed), _ids(*mask.shape, seed=seed + 1)
    soft = decoder.keys_values(decoder.embed(prompt))
    padded = decoder(ids, prefix=decoder.keys_values(prompt), mask=mask)
    for row, real in enumerate(mask):
        hard = decoder(torch.cat((prompt, ids[row : row + 1, real]), 1))[:, length:]
        assert_close(padded[row : row + 1, real], hard, "law")
        assert_close(decoder(ids[row : row + 1, real], prefix=soft), hard, "law")


@every_style
def test_the_order_of_tokens_matters(style):
    decoder = random_decoder(STYLES[style])
    one, other = decoder(torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]]))[:, -1]
    assert (one - other).abs().max() > 1e-6


def test_rotary_positions_are_relative_and_the_others_are_not():
    """A prefix shifts all positions; with its gate at 0 nothing else changes."""
    for style, config in STYLES.items():
        decoder = random_decoder(config)
        prefix = random_prefix(config, 3, gated=True)
        closed = KeyValues(prefix.keys, prefix.values, torch.zeros_like(prefix.gate))
        moved = (decoder(_ids(1, 5), prefix=closed) - decoder(_ids(1, 5))).abs().max()
        assert moved < 1e-12 if config.positions == "rotary" else moved > 1e-3, style


@every_style
def test_the_logits_are_the_head_of_the_features(style):
    decoder, ids = random_decoder(STYLES[style]), _ids(2, 5)
    assert torch.equal(decoder.head(decoder.features(ids)), decoder(ids))


@every_style
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_module_computes_in_the_dtype_of_the_decoder(style, dtype):
    decoder, ids, seen = random_decoder(STYLES[style]), _ids(2, 5), set()
    mask, prefix = torch.tensor([[True] * 5, [False] * 2 + [True] * 3]), random_prefix(decoder.config, 3)
    expected = decoder(ids, prefix=prefix, mask=mask)
    for module in decoder.to(dtype).modules():
        module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    logits = decoder(ids, prefix=prefix, mask=mask)
    assert seen == {dtype}
    assert (logits.double() - expected).abs().max() / expected.abs().max() < {torch.bfloat16: 0.1}.get(dtype, 1e-5)


@every_style
def test_dropout_acts_only_in_training(style):
    config = replace(STYLES[style], dropout=0.3)
    decoder, plain, ids = random_decoder(config), random_decoder(STYLES[style]), _ids(2, 5)
    assert torch.equal(decoder(ids), plain(ids))
    decoder.train()
    assert (decoder(ids) - decoder(ids)).abs().max() > 1e-3
    decoder.eval()
    assert torch.equal(decoder(ids), plain(ids))


def test_more_tokens_than_the_context_are_refused():
    decoder = random_decoder(STYLES["Llama"])
    assert decoder(_ids(1, 17)).shape == (1, 17, 13)
    with pytest.raises(InputError, match=r"18 tokens exceed .* context of 17"):
        decoder(_ids(1, 18))
    with pytest.raises(InputError, match="3 prompt positions"):
        decoder(_ids(1, 15), prefix=random_prefix(decoder.config, 3))


@pytest.mark.parametrize("tokens", [4, 6])
def test_a_mask_of_the_wrong_length_is_refused(tokens):
    decoder = random_decoder(STYLES["Llama"])
    with pytest.raises(InputError, match=rf"the mask is \(2, {tokens}\).* are \(2, 5\)"):
        decoder.features(_ids(2, 5), mask=torch.ones(2, tokens, dtype=torch.bool))


def test_gradients_reach_every_parameter():
    for style, config in STYLES.items():
        decoder = random_decoder(config)
        decoder(_ids(2, 17)).square().sum().backward()
        for name, parameter in decoder.named_parameters():
            # Without rotary positions a key's bias adds the same to all scores of a query: it has no gradient.
            expected = not (name.endswith("key.bias") and config.positions != "rotary")
            assert (parameter.grad.abs().max() > 1e-6) == expected, f"{style}: {name}"
