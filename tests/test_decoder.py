"""Laws of the decoder: what its sizes are, what may depend on what, and what a prompt is."""

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
from tests.strategies import sizes
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


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (DecoderConfig.gpt2("small"), 124_439_808),
        (DecoderConfig.gpt2("medium"), 354_823_168),
        (DecoderConfig.gpt2("large"), 774_030_080),
        (DecoderConfig.gpt2("xl"), 1_557_611_200),
        (DecoderConfig.llama("smollm2-135m"), 134_515_008),
        (DecoderConfig.llama("smollm2-360m"), 361_821_120),
        (DecoderConfig.llama("smollm2-1.7b"), 1_711_376_384),
        (DecoderConfig.llama("llama-2-7b"), 6_738_415_616),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_a_published_model_has_its_published_number_of_parameters(config, parameters):
    with torch.device("meta"):
        decoder = Decoder(config)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == parameters


def test_a_block_of_gpt2_small_has_seven_million_parameters():
    with torch.device("meta"):
        block = Decoder(replace(DecoderConfig.gpt2("small"), layers=1)).blocks[0]
    assert sum(parameter.numel() for parameter in block.parameters()) == 7_087_872


def test_the_whole_parameter_tree_of_a_small_llama():
    shapes = {name: tuple(parameter.shape) for name, parameter in Decoder(STYLES["Llama, untied"]).named_parameters()}
    assert shapes == {
        "embed.weight": (13, 30),
        **{f"blocks.{i}.attention_norm.weight": (30,) for i in range(2)},
        **{f"blocks.{i}.attention.query.weight": (30, 30) for i in range(2)},
        **{f"blocks.{i}.attention.key.weight": (10, 30) for i in range(2)},
        **{f"blocks.{i}.attention.value.weight": (10, 30) for i in range(2)},
        **{f"blocks.{i}.attention.out.weight": (30, 30) for i in range(2)},
        **{f"blocks.{i}.feed_forward_norm.weight": (30,) for i in range(2)},
        **{f"blocks.{i}.feed_forward.gate.weight": (11, 30) for i in range(2)},
        **{f"blocks.{i}.feed_forward.up.weight": (11, 30) for i in range(2)},
        **{f"blocks.{i}.feed_forward.down.weight": (30, 11) for i in range(2)},
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


def test_a_fresh_decoder_is_spread_as_gpt2_is():
    torch.manual_seed(0)
    decoder = Decoder(replace(DecoderConfig.gpt2("small"), layers=2, vocabulary=1000))
    spread = {name: parameter.std().item() for name, parameter in decoder.named_parameters() if parameter.dim() > 1}
    for name, value in spread.items():
        assert value == pytest.approx(0.01 if name.endswith(("out.weight", "down.weight")) else 0.02, rel=0.02), name
    assert all(not p.any() for name, p in decoder.named_parameters() if name.endswith("bias"))
    assert all((p == 1).all() for name, p in decoder.named_parameters() if name.endswith("norm.weight"))


@every_style
@every_prefix
def test_logits_do_not_depend_on_later_tokens(style, kind):
    decoder = random_decoder(STYLES[style])
    ids, prefix = _ids(2, 7), _prefix(kind, decoder.config, 2)
    before = decoder(ids, prefix=prefix)
    for place in range(7):
        changed = ids.clone()
        changed[:, place:] = (ids[:, place:] + 1) % SIZES["vocabulary"]
        after = decoder(changed, prefix=prefix)
        assert_close(after[:, :place], before[:, :place], "law")
        assert (after[:, place] - before[:, place]).abs().max() > 1e-3


@every_style
@every_prefix
def test_logits_depend_on_every_earlier_token(style, kind):
    """The other half of causality: a decoder that reads nothing would pass the law above."""
    decoder = random_decoder(STYLES[style])
    ids, prefix = _ids(1, 5), _prefix(kind, decoder.config, 1)
    before = decoder(ids, prefix=prefix)[0, -1]
    for place in range(5):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % SIZES["vocabulary"]
        assert (decoder(changed, prefix=prefix)[0, -1] - before).abs().max() > 1e-6


@every_style
@every_prefix
def test_a_row_of_a_batch_equals_that_row_alone(style, kind):
    decoder = random_decoder(STYLES[style])
    ids, prefix = _ids(3, 5), _prefix(kind, decoder.config, 3)
    together = decoder(ids, prefix=prefix)
    for row in range(3):
        assert_close(together[row : row + 1], decoder(ids[row : row + 1], prefix=_row(prefix, row)), "law")


@every_style
@every_prefix
def test_padding_left_or_right_changes_nothing(style, kind):
    decoder = random_decoder(STYLES[style])
    lengths, prefix = (2, 5, 3), _prefix(kind, decoder.config, 3)
    texts = [_ids(length, seed=length) for length in lengths]
    for side in ("left", "right", "both"):
        ids, mask = torch.full((3, 7), 4), torch.zeros(3, 7, dtype=torch.bool)
        for row, text in enumerate(texts):
            start = {"left": 7 - len(text), "right": 0, "both": 1}[side]
            ids[row, start : start + len(text)] = text
            mask[row, start : start + len(text)] = True
        logits = decoder(ids, prefix=prefix, mask=mask)
        assert logits.isfinite().all()
        for row, text in enumerate(texts):
            assert_close(logits[row][mask[row]][None], decoder(text[None], prefix=_row(prefix, row)), "law")


@given(styles, sizes, sizes, sizes, st.integers(0, 2**31))
def test_a_hard_prompt_is_its_keys_and_values_is_a_soft_prompt_of_its_embeddings(config, batch, length, tokens, seed):
    decoder = random_decoder(config, seed)
    prompt, ids = _ids(1, length, seed=seed), _ids(batch, tokens, seed=seed + 1)
    hard = decoder(torch.cat((prompt.expand(batch, -1), ids), 1))[:, length:]
    assert_close(decoder(ids, prefix=decoder.keys_values(prompt)), hard, "law")
    assert_close(decoder(ids, prefix=decoder.keys_values(decoder.embed(prompt))), hard, "law")


@every_style
def test_a_prompt_before_padded_rows_is_the_prompt_before_each(style):
    decoder = random_decoder(STYLES[style])
    prompt, ids = _ids(1, 3), _ids(2, 5, seed=1)
    mask = torch.tensor([[False, False, True, True, True], [True, True, True, False, False]])
    logits = decoder(ids, prefix=decoder.keys_values(prompt), mask=mask)
    for row in range(2):
        alone = decoder(torch.cat((prompt, ids[row : row + 1, mask[row]]), 1))[:, 3:]
        assert_close(logits[row][mask[row]][None], alone, "law")


@every_style
def test_the_order_of_tokens_matters(style):
    decoder = random_decoder(STYLES[style])
    ids = torch.tensor([[1, 2, 3, 4]])
    turned = torch.tensor([[2, 1, 3, 4]])
    assert (decoder(ids)[0, -1] - decoder(turned)[0, -1]).abs().max() > 1e-6


def test_rotary_positions_are_relative_and_the_others_are_not():
    """A prefix of another length moves all positions; with a closed gate nothing else changes."""
    for style, config in STYLES.items():
        decoder = random_decoder(config)
        prefix = random_prefix(config, 3, gated=True)
        closed = KeyValues(prefix.keys, prefix.values, torch.zeros_like(prefix.gate))
        moved = (decoder(_ids(1, 5), prefix=closed) - decoder(_ids(1, 5))).abs().max()
        assert moved < 1e-12 if config.positions == "rotary" else moved > 1e-3, style


@every_style
def test_features_are_what_the_head_reads(style):
    decoder, ids = random_decoder(STYLES[style]), _ids(2, 5)
    assert torch.equal(decoder.head(decoder.features(ids)), decoder(ids))


@every_style
def test_float64_is_never_downcast(style):
    """A step through float32 would move the logits by 1e-7 of their size; the numpy reference is exact."""
    decoder, ids = random_decoder(STYLES[style]), _ids(2, 5)
    seen = set()
    for module in decoder.modules():
        module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    mask = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    decoder(ids, prefix=random_prefix(decoder.config, 3), mask=mask)
    assert seen == {torch.float64}


@every_style
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_decoder_answers_in_its_own_dtype(style, dtype):
    decoder, ids = random_decoder(STYLES[style]), _ids(2, 5)
    expected = decoder(ids)
    logits = decoder.to(dtype)(ids, mask=torch.ones(2, 5, dtype=torch.bool))
    assert logits.dtype == dtype
    assert (logits.double() - expected).abs().max() / expected.abs().max() < {torch.float32: 1e-5}.get(dtype, 0.1)


@every_style
def test_dropout_acts_in_training_alone(style):
    config = replace(STYLES[style], dropout=0.3)
    decoder, plain, ids = random_decoder(config), random_decoder(STYLES[style]), _ids(2, 5)
    assert torch.equal(decoder(ids), plain(ids))
    decoder.train()
    assert (decoder(ids) - decoder(ids)).abs().max() > 1e-3
    decoder.eval()
    assert torch.equal(decoder(ids), plain(ids))


def test_more_tokens_than_the_context_are_refused_with_a_sentence():
    decoder = random_decoder(STYLES["Llama"])
    assert decoder(_ids(1, 17)).shape == (1, 17, 13)
    with pytest.raises(InputError, match=r"18 tokens exceed .* context of 17"):
        decoder(_ids(1, 18))
    with pytest.raises(InputError, match="3 prompt positions"):
        decoder(_ids(1, 15), prefix=random_prefix(decoder.config, 3))


@pytest.mark.parametrize("tokens", [4, 6])
def test_a_mask_of_the_wrong_length_is_refused_with_a_sentence(tokens):
    decoder = random_decoder(STYLES["Llama"])
    with pytest.raises(InputError, match=rf"the mask is \(2, {tokens}\).* are \(2, 5\)"):
        decoder.features(_ids(2, 5), mask=torch.ones(2, tokens, dtype=torch.bool))


def test_gradients_reach_every_parameter():
    for style, config in STYLES.items():
        decoder = random_decoder(config)
        decoder(_ids(2, 17)).square().sum().backward()
        for name, parameter in decoder.named_parameters():
            # Without rotary positions a key's bias adds the same to all of a query's scores: it has no gradient.
            expected = not (name.endswith("key.bias") and config.positions != "rotary")
            assert (parameter.grad.abs().max() > 1e-6) == expected, f"{style}: {name}"
