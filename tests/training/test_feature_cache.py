"""Features on disk: computed once, read by mapping, and refused where they are not of this decoder and these texts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minillm import InputError
from minillm.training.feature_cache import MANIFEST, Recipe, compute_features, filed_features, stored_features
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

TEXTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3], [5, 8, 9, 7], [9]]


def decoder(seed=0):
    return random_decoder(STYLES["Llama"], seed)


def alone(base, text, layer):
    """The hidden states of one text, by the blocks' own outputs."""
    seen = []
    hooks = [block.register_forward_hook(lambda *call: seen.append(call[2])) for block in base.blocks]
    last = base.features(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return (last if layer is None else seen[layer])[0]


@pytest.mark.parametrize("layer", [None, 0, 1])
@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
def test_a_texts_features_are_its_own_hidden_states_pooled(layer, pooling):
    base = decoder()
    found = compute_features(base, TEXTS, Recipe(layer, pooling))
    pool = {"last": lambda states: states[-1], "mean": lambda states: states.mean(0), "first": lambda states: states[0]}
    assert_close(found, torch.stack([pool[pooling](alone(base, text, layer)) for text in TEXTS]), "law")


def test_the_first_token_of_a_causal_decoder_has_read_nothing_of_the_text():
    found = compute_features(decoder(), [[9, 2, 7], [9], [9, 5]], Recipe(pooling="first"))
    assert_close(found, found[1].expand(3, -1), "law")


def test_dropout_is_off_while_features_are_computed_and_the_decoder_is_handed_back_as_it_was():
    base = random_decoder(replace(STYLES["Llama"], dropout=0.5))
    quiet = compute_features(base, TEXTS)
    assert torch.equal(compute_features(base.train(), TEXTS), quiet)
    assert base.training


def test_features_are_computed_once_and_mapped_from_the_disk_afterwards(tmp_path, monkeypatch):
    base = decoder()
    monkeypatch.setattr("minillm.training.feature_cache.SHARD", 2)
    first = stored_features(base, TEXTS, tmp_path)
    assert_close(first.tensor(), compute_features(base, TEXTS), "law")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "features-00000.safetensors", "features-00001.safetensors", "features-00002.safetensors", MANIFEST,
    ], "a shard every two texts, and no temporary file"  # fmt: skip
    monkeypatch.setattr("minillm.training.feature_cache.compute_features", None)
    again = stored_features(base, TEXTS, tmp_path)
    assert torch.equal(again.tensor(), first.tensor())
    assert [len(piece) for piece in again.split(3)] == [2, 2, 1]
    assert [len(piece) for piece in again.split(1)] == [1] * 5
    assert again.shape == (5, 30)


def test_a_store_that_was_interrupted_goes_on_with_the_shards_that_are_missing(tmp_path, monkeypatch):
    base = decoder()
    monkeypatch.setattr("minillm.training.feature_cache.SHARD", 2)
    whole = stored_features(base, TEXTS, tmp_path).tensor()
    (tmp_path / "features-00001.safetensors").unlink()
    asked = []

    def counted(decoder, texts, *rest):
        asked.extend(texts)
        return compute_features(decoder, texts, *rest)

    monkeypatch.setattr("minillm.training.feature_cache.compute_features", counted)
    assert torch.equal(stored_features(base, TEXTS, tmp_path).tensor(), whole)
    assert asked == TEXTS[2:4]


def test_reading_takes_no_memory_for_what_is_not_used(tmp_path):
    stored_features(decoder(), TEXTS, tmp_path)
    features = stored_features(decoder(), TEXTS, tmp_path)
    address = features.pieces[0].data_ptr()
    listed = Path("/proc/self/maps")
    if not listed.exists():
        pytest.skip("this system does not list what is mapped")
    ranges = [line.split() for line in listed.read_text().splitlines() if "features-00000" in line]
    bounds = [[int(end, 16) for end in entry[0].split("-")] for entry in ranges]
    assert any(low <= address < high for low, high in bounds)


def test_other_weights_texts_tokenizer_layer_pooling_or_precision_are_another_store(tmp_path):
    nudged = decoder()
    with torch.no_grad():
        nudged.blocks[0].attention.key.weight[0, 0] += 1e-12
    asked = [
        (decoder(), TEXTS, Recipe(), "t"),
        (decoder(1), TEXTS, Recipe(), "t"),
        (nudged, TEXTS, Recipe(), "t"),
        (decoder(), TEXTS[:-1], Recipe(), "t"),
        (decoder(), [*TEXTS[:-1], [9, 9]], Recipe(), "t"),
        (decoder(), TEXTS, Recipe(), "another"),
        (decoder(), TEXTS, Recipe(layer=0), "t"),
        (decoder(), TEXTS, Recipe(layer=1), "t"),
        (decoder(), TEXTS, Recipe(pooling="mean"), "t"),
        (decoder().float(), TEXTS, Recipe(precision="bfloat16"), "t"),
        (decoder().float(), TEXTS, Recipe(), "t"),
    ]
    for base, texts, recipe, tokenizer in [*asked, *asked]:
        filed_features(base, texts, tmp_path, recipe, tokenizer)
    assert len(list(tmp_path.iterdir())) == len(asked)


@pytest.mark.parametrize(
    ("part", "now"),
    [
        ("weights", {"decoder": decoder(1)}),
        ("texts", {"texts": [*TEXTS[:-1], [8]]}),
        ("layer", {"recipe": Recipe(layer=0)}),
        ("pooling", {"recipe": Recipe(pooling="mean")}),
        ("precision", {"recipe": Recipe(precision="bfloat16")}),
        ("tokenizer", {"tokenizer": "another"}),
    ],
)
def test_a_stale_store_is_an_error_that_says_what_has_changed(tmp_path, part, now):
    asked = {"decoder": decoder(), "texts": TEXTS, "directory": tmp_path, "recipe": Recipe(), "tokenizer": "one"}
    stored_features(**asked)
    with pytest.raises(InputError, match=f"are stale: {part} is"):
        stored_features(**asked | now)


def test_every_damage_is_noticed(tmp_path):
    base = decoder()
    stored_features(base, TEXTS, tmp_path / "one")
    path = tmp_path / "one" / "features-00000.safetensors"
    whole = path.read_bytes()
    for end in (0, 7, 8, 50, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match="cannot be read"):
            stored_features(base, TEXTS, tmp_path / "one")
    for place in range(8, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0b100]) + whole[place + 1 :])
        with pytest.raises(InputError):
            stored_features(base, TEXTS, tmp_path / "one")
    stored_features(base, TEXTS[::-1], tmp_path / "other")
    path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    with pytest.raises(InputError, match="belong to another store"):
        stored_features(base, TEXTS, tmp_path / "one")


def test_a_damaged_description_is_noticed(tmp_path):
    stored_features(decoder(), TEXTS, tmp_path)
    kept = json.loads((tmp_path / MANIFEST).read_text())
    for damage in ("", "{", "[]", "7", json.dumps({name: kept[name] for name in list(kept)[1:]})):
        (tmp_path / MANIFEST).write_text(damage)
        with pytest.raises(InputError, match="is damaged"):
            stored_features(decoder(), TEXTS, tmp_path)


def test_what_is_not_there_is_refused():
    with pytest.raises(InputError, match="no block 2: this decoder has 0 to 1"):
        compute_features(decoder(), TEXTS, Recipe(layer=2))
    with pytest.raises(InputError, match="no pooling 'max'; there is: last, mean, first"):
        Recipe(pooling="max")
    with pytest.raises(InputError, match="no texts"):
        stored_features(decoder(), [], Path("nowhere"))
