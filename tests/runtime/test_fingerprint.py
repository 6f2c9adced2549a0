"""A base is known by its weights as they were loaded: whatever they were cast to, and not if they have changed."""

import copy

import pytest
import torch

import minillm
from minillm.adapt.surgery import frozen
from minillm.runtime.fingerprint import base_fingerprint, fingerprint
from tests.decoders import STYLES, random_decoder


def known_as(decoder):
    return base_fingerprint(dict(decoder.named_parameters()), decoder.source)


@pytest.fixture
def single():
    """A decoder of float32 numbers, as most files hold."""
    return random_decoder(STYLES["Llama"]).float()


@pytest.fixture
def saved(single, tmp_path):
    minillm.save(single, None, tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_base_is_known_in_every_dtype_that_it_is_loaded_in(tmp_path, stored, dtype):
    original = random_decoder(STYLES["Llama"]).to(stored)
    minillm.save(original, None, tmp_path)
    decoder, _ = minillm.load(tmp_path, dtype=dtype)
    assert known_as(decoder) == known_as(original)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_cast_is_seen_through_after_loading_or_after_the_first_use(single, saved, dtype):
    expected = known_as(single)
    assert known_as(minillm.load(saved)[0].to(dtype)) == expected
    assert known_as(copy.deepcopy(single).to(dtype)) == expected, "built in memory, and carried by a copy"


def test_equal_numbers_are_the_same_weights_in_float32_and_in_float64(single):
    assert known_as(copy.deepcopy(single)) == known_as(random_decoder(STYLES["Llama"]).float().double())
    assert known_as(single) != known_as(random_decoder(STYLES["Llama"])), "these had more digits"


def test_a_frozen_body_in_half_precision_still_knows_its_base(single, saved):
    loaded, _ = minillm.load(saved)
    assert known_as(frozen(loaded, torch.bfloat16)) == known_as(single)


def test_numbers_that_a_cast_has_rounded_are_not_the_base_when_they_are_wide_again(single, saved):
    loaded, _ = minillm.load(saved)
    assert known_as(loaded)["embed.weight"] == known_as(single)["embed.weight"]
    assert known_as(loaded.bfloat16().float())["embed.weight"] != known_as(single)["embed.weight"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("through_data", [False, True])
def test_a_changed_weight_is_noticed_and_it_alone_wherever_the_base_came_from(saved, single, dtype, through_data):
    loaded, _ = minillm.load(saved)
    for decoder in (loaded.to(dtype), single.to(dtype)):
        before = known_as(decoder)
        weight = decoder.blocks[1].attention.key.weight
        with torch.no_grad():
            (weight.data if through_data else weight)[3, 7] *= 1.5
        after = known_as(decoder)
        assert {name for name in before if before[name] != after[name]} == {"blocks.1.attention.key.weight"}
        with torch.no_grad():
            weight[3, 7] /= 1.5
        assert known_as(decoder) == before


def test_weights_that_change_places_are_noticed(single):
    before = known_as(single)
    with torch.no_grad():
        weight = single.blocks[0].feed_forward.up.weight
        weight.copy_(weight.flip(0))
    assert known_as(single) != before


def test_the_fingerprint_of_the_present_values_sees_every_cast(single):
    assert fingerprint(single.named_parameters()) != fingerprint(copy.deepcopy(single).double().named_parameters())


def test_what_was_learnt_of_a_file_is_kept_beside_it_and_believed_only_of_that_very_file(saved, single):
    expected, cache = known_as(single), saved / ".fingerprints.json"
    known_as(minillm.load(saved)[0])
    assert cache.is_file()
    again, _ = minillm.load(saved, dtype=torch.bfloat16)
    again.source.read = None if (kept := again.source.read) is None else lambda: pytest.fail("it was read again")
    assert known_as(again) == expected

    other = random_decoder(STYLES["Llama"], seed=1).float()
    minillm.save(other, None, saved)
    exchanged, _ = minillm.load(saved, dtype=torch.bfloat16)
    assert known_as(exchanged) == known_as(other)
    assert kept is not None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"files": 3}', "[" * 100_000, '{"files": [], "fingerprints": {}}'])
def test_a_damaged_cache_is_made_again(saved, single, damage):
    known_as(minillm.load(saved)[0])
    (saved / ".fingerprints.json").write_text(damage)
    assert known_as(minillm.load(saved, dtype=torch.bfloat16)[0]) == known_as(single)
    assert len((saved / ".fingerprints.json").read_text()) > 1000


def test_a_place_that_cannot_be_written_to_keeps_no_cache(saved, single, monkeypatch):
    def refused(path, text):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("minillm.runtime.files.write_text", refused)
    assert known_as(minillm.load(saved, dtype=torch.bfloat16)[0]) == known_as(single)


def test_a_base_whose_file_is_gone_is_what_it_is_now(saved, single):
    loaded, _ = minillm.load(saved)
    (saved / "model.safetensors").unlink()
    assert known_as(loaded) == known_as(single)
