"""Packed rows: each conversation is computed as if it were alone in its row (law 4: in every method)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError, operations
from minillm.adapt import FrozenHead
from minillm.generation import GrowingLayer
from minillm.ops.attention import visible_keys
from minillm.ops.positions import PREFIX, token_positions
from tests.decoders import STYLES, random_decoder, random_prefix
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

PACKED = torch.tensor([[1, 1, 2, 2, 2, 0]])


def test_positions_start_again_and_a_token_attends_to_its_own_conversation():
    assert token_positions(PACKED, 4).tolist() == [[4, 5, 4, 5, 6, 4]]
    assert _seen(PACKED) == ["100000", "110000", "001000", "001100", "001110", "000001"]


def test_a_prefix_is_seen_by_every_conversation_and_a_window_counts_one_conversation():
    after_prefix = torch.cat((torch.full((1, 2), PREFIX), PACKED), 1)
    assert _seen(after_prefix)[2:] == ["11100000", "11110000", "11001000", "11001100", "11001110", "11000001"]
    windowed = ["01100000", "00110000", "01001000", "00001100", "00000110", "01000001"]
    assert _seen(after_prefix, window=2)[2:] == windowed
    always = ["11100000", "11110000", "11001000", "11001100", "11000110", "11000001"]
    assert _seen(after_prefix, window=2, always=2)[2:] == always


def _seen(mask, **window):
    rows = visible_keys(mask.shape[1], mask.shape[1], mask, mask.device, **window)[0, 0].int().tolist()
    return ["".join(map(str, row)) for row in rows]


@given(st.sampled_from(sorted(STYLES)), st.lists(st.integers(0, 12), min_size=5, max_size=5), st.booleans())
def test_the_logits_of_a_conversation_do_not_depend_on_its_neighbours(style, others, prefixed):
    decoder = random_decoder(STYLES[style])
    prefix = random_prefix(decoder.config, 3) if prefixed else None
    mask = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 3, 3]])
    ids = torch.tensor([[1, 2, 3, 9, 8, 7, 6, 4, 5]])
    changed = torch.tensor([[*others[:3], 9, 8, 7, 6, *others[3:]]])
    before, after = (decoder(each, prefix=prefix, mask=mask) for each in (ids, changed))
    assert_close(after[:, 3:7], before[:, 3:7], "law")


@pytest.mark.parametrize("style", STYLES)
def test_a_cache_continues_the_last_conversation_of_a_packed_row(style):
    decoder, ids, mask = random_decoder(STYLES[style]), torch.tensor([[3, 1, 4, 1, 5]]), PACKED[:, :5]
    cache = [GrowingLayer(5) for _ in decoder.blocks]
    first = decoder.features(ids[:, :3], mask=mask[:, :3], cache=cache)
    rest = decoder.features(ids[:, 3:], mask=mask, cache=cache)
    assert_close(torch.cat((first, rest), 1), decoder.features(ids, mask=mask), "law")


def test_the_kernel_gets_no_packed_rows(monkeypatch):
    monkeypatch.setattr(operations, "by_kernel", lambda *_: pytest.fail("its mask is Bool"))
    assert operations.attention(*torch.randn(3, 1, 2, 6, 4), mask=PACKED).isfinite().all()


def test_a_mask_of_floating_point_numbers_is_refused():
    with pytest.raises(
        InputError, match=r"Bool, or Int with 0 for padding and n for conversation n, got torch\.float64"
    ):
        random_decoder(STYLES["Llama"])(torch.ones_like(PACKED), mask=PACKED.double())


def test_a_classifier_of_texts_refuses_packed_rows():
    with pytest.raises(InputError, match="one text per row"):
        FrozenHead(random_decoder(STYLES["Llama"]), 2)(torch.ones_like(PACKED), mask=PACKED)
