"""A base is recognised by its weights as loaded: in every dtype, and not after a change."""

import copy

import pytest
import torch

import minillm
from minillm.adapt.surgery import frozen
from minillm.runtime.fingerprint import base_fingerprint
from tests.decoders import STYLES, random_decoder

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def known_as(decoder):
    return base_fingerprint(dict(decoder.named_parameters()), decoder.source)


@pytest.fixture
def single():
    """A decoder in float32, as in most files."""
    return random_decoder(STYLES["Llama"]).float()


@pytest.fixture
def saved(single, tmp_path):
    minillm.save(single, None, tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("stored", DTYPES[:3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_base_is_recognised_in_every_dtype(tmp_path, stored, dtype):
    original = random_decoder(STYLES["Llama"]).to(stored)
    minillm.save(original, None, tmp_path)
    expected = known_as(original)
    assert known_as(minillm.load(tmp_path, dtype=dtype)[0]) == expected
    assert known_as(minillm.load(tmp_path, dtype=stored)[0].to(dtype)) == expected, "cast after loading"
    assert known_as(copy.deepcopy(original).to(dtype)) == expected, "built in memory, then copied"


def test_equal_numbers_are_the_same_weights_in_float32_and_in_float64(single):
    assert known_as(copy.deepcopy(single)) == known_as(random_decoder(STYLES["Llama"]).float().double())
    assert known_as(single) != known_as(random_decoder(STYLES["Llama"])), "these have more digits"


def test_a_frozen_body_in_half_precision_is_recognised(single, saved):
    loaded, _ = minillm.load(saved)
    assert known_as(frozen(loaded, torch.bfloat16)) == known_as(single)


def test_a_base_that_was_rounded_by_a_cast_is_another_one(single, saved):
    loaded, _ = minillm.load(saved)
    assert known_as(loaded)["embed.weight"] == known_as(single)["embed.weight"]
    assert known_as(loaded.bfloat16().float())["embed.weight"] != known_as(single)["embed.weight"]


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("through_data", [False, True])
def test_a_changed_weight_changes_its_own_fingerprint_only(saved, single, dtype, through_data):
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


def test_weights_in_another_order_have_another_fingerprint(single):
    before = known_as(single)
    with torch.no_grad():
        weight = single.blocks[0].feed_forward.up.weight
        weight.copy_(weight.flip(0))
    assert known_as(single) != before


def test_the_cache_next_to_a_file_is_used_for_that_file_alone(saved, single):
    expected, cache = known_as(single), saved / ".fingerprints.json"
    known_as(minillm.load(saved)[0])
    assert cache.is_file()
    again, _ = minillm.load(saved, dtype=torch.bfloat16)
    assert again.source.read is not None
    again.source.read = lambda: pytest.fail("the file was read again")
    assert known_as(again) == expected

    other = random_decoder(STYLES["Llama"], seed=1).float()
    minillm.save(other, None, saved)
    exchanged, _ = minillm.load(saved, dtype=torch.bfloat16)
    assert known_as(exchanged) == known_as(other)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"files": 3}', "[" * 100_000, '{"files": [], "fingerprints": {}}'])
def test_a_damaged_cache_is_computed_again(saved, single, damage):
    known_as(minillm.load(saved)[0])
    (saved / ".fingerprints.json").write_text(damage)
    assert known_as(minillm.load(saved, dtype=torch.bfloat16)[0]) == known_as(single)
    assert len((saved / ".fingerprints.json").read_text()) > 1000


def test_without_write_permission_there_is_no_cache(saved, single, monkeypatch):
    def refused(path, text):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("minillm.runtime.fingerprint.write_text", refused)
    assert known_as(minillm.load(saved, dtype=torch.bfloat16)[0]) == known_as(single)


def test_a_base_whose_file_was_deleted_has_the_fingerprint_of_its_present_values(saved, single):
    loaded, _ = minillm.load(saved)
    (saved / "model.safetensors").unlink()
    assert known_as(loaded) == known_as(single)
