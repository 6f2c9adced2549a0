"""Features on disk: computed once, memory-mapped, and refused where they are not of this decoder and these texts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minillm import InputError
from minillm.adapt.frozen_head import FeatureRecipe
from minillm.training import feature_cache
from minillm.training.feature_cache import FEATURES, MANIFEST, cached_features, compute_features
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

PLAIN = FeatureRecipe()
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
    found = compute_features(base, TEXTS, FeatureRecipe(layer, pooling))
    pool = {"last": lambda states: states[-1], "mean": lambda states: states.mean(0), "first": lambda states: states[0]}
    assert_close(found, torch.stack([pool[pooling](alone(base, text, layer)) for text in TEXTS]), "law")


def test_the_first_token_of_a_causal_decoder_has_read_nothing_of_the_text():
    found = compute_features(decoder(), [[9, 2, 7], [9], [9, 5]], FeatureRecipe(pooling="first"))
    assert_close(found, found[1].expand(3, -1), "law")


def test_dropout_is_off_while_features_are_computed_and_the_decoder_is_handed_back_as_it_was():
    base = random_decoder(replace(STYLES["Llama"], dropout=0.5))
    quiet = compute_features(base, TEXTS, PLAIN)
    assert torch.equal(compute_features(base.train(), TEXTS, PLAIN), quiet)
    assert base.training


def only_store(root):
    """The one store under a directory."""
    (store,) = root.iterdir()
    return store


def test_features_are_computed_once_and_mapped_from_the_disk_afterwards(tmp_path, monkeypatch):
    first = cached_features(decoder(), TEXTS, tmp_path, PLAIN)
    assert torch.equal(first, compute_features(decoder(), TEXTS, PLAIN))
    assert {path.name for path in only_store(tmp_path).iterdir()} == {FEATURES, MANIFEST}, "and no temporary file"
    monkeypatch.setattr(feature_cache, "compute_features", None)
    assert torch.equal(cached_features(decoder(), TEXTS, tmp_path, PLAIN), first)


def test_a_store_that_was_interrupted_is_completed(tmp_path):
    whole = cached_features(decoder(), TEXTS, tmp_path, PLAIN).clone()
    (only_store(tmp_path) / FEATURES).unlink()
    assert torch.equal(cached_features(decoder(), TEXTS, tmp_path, PLAIN), whole)


def test_features_that_are_not_used_take_no_memory(tmp_path):
    address = cached_features(decoder(), TEXTS, tmp_path, PLAIN)
    listed = Path("/proc/self/maps")
    if not listed.exists():
        pytest.skip("this system does not list what is mapped")
    ranges = [line.split() for line in listed.read_text().splitlines() if line.endswith(FEATURES)]
    bounds = [[int(end, 16) for end in entry[0].split("-")] for entry in ranges]
    assert any(low <= address.data_ptr() < high for low, high in bounds)


def test_other_weights_texts_tokenizer_layer_pooling_or_precision_are_another_store(tmp_path):
    nudged = decoder()
    with torch.no_grad():
        nudged.blocks[0].attention.key.weight[0, 0] += 1e-12
    asked = [
        (decoder(), TEXTS, PLAIN, "t"),
        (decoder(1), TEXTS, PLAIN, "t"),
        (nudged, TEXTS, PLAIN, "t"),
        (decoder(), TEXTS[:-1], PLAIN, "t"),
        (decoder(), [*TEXTS[:-1], [9, 9]], PLAIN, "t"),
        (decoder(), TEXTS, PLAIN, "another"),
        (decoder(), TEXTS, FeatureRecipe(layer=0), "t"),
        (decoder(), TEXTS, FeatureRecipe(layer=1), "t"),
        (decoder(), TEXTS, FeatureRecipe(pooling="mean"), "t"),
        (decoder().float(), TEXTS, FeatureRecipe(precision="bfloat16"), "t"),
        (decoder().float(), TEXTS, PLAIN, "t"),
    ]
    for base, texts, recipe, tokenizer in [*asked, *asked]:
        cached_features(base, texts, tmp_path, recipe, tokenizer)
    assert len(list(tmp_path.iterdir())) == len(asked)


@pytest.mark.parametrize("part", ["weights", "texts", "layer", "pooling", "precision", "tokenizer"])
def test_a_stale_store_is_an_error_that_says_what_has_changed(tmp_path, part):
    cached_features(decoder(), TEXTS, tmp_path, PLAIN, "one")
    manifest = only_store(tmp_path) / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {part: "another"}))
    with pytest.raises(InputError, match=f"are stale: {part} is .* was 'another'"):
        cached_features(decoder(), TEXTS, tmp_path, PLAIN, "one")


def test_every_damage_is_noticed(tmp_path):
    base = decoder()
    cached_features(base, TEXTS, tmp_path / "one", PLAIN)
    path = only_store(tmp_path / "one") / FEATURES
    whole = path.read_bytes()
    for end in (0, 7, 8, 50, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match="cannot be read"):
            cached_features(base, TEXTS, tmp_path / "one", PLAIN)
    for place in range(8, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0b100]) + whole[place + 1 :])
        with pytest.raises(InputError):
            cached_features(base, TEXTS, tmp_path / "one", PLAIN)
    cached_features(base, TEXTS[::-1], tmp_path / "other", PLAIN)
    path.write_bytes((only_store(tmp_path / "other") / FEATURES).read_bytes())
    with pytest.raises(InputError, match="belong to another store"):
        cached_features(base, TEXTS, tmp_path / "one", PLAIN)


def test_a_damaged_description_is_noticed(tmp_path):
    cached_features(decoder(), TEXTS, tmp_path, PLAIN)
    manifest = only_store(tmp_path) / MANIFEST
    described = json.loads(manifest.read_text())
    for damage in ("", "{", "[]", "7", json.dumps({name: described[name] for name in list(described)[1:]})):
        manifest.write_text(damage)
        with pytest.raises(InputError, match="is damaged"):
            cached_features(decoder(), TEXTS, tmp_path, PLAIN)


def test_what_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"layer must be in \[0, 1\] for this decoder, got 2"):
        compute_features(decoder(), TEXTS, FeatureRecipe(layer=2))
    with pytest.raises(InputError, match="pooling must be one of last, mean, first, got 'max'"):
        FeatureRecipe(pooling="max")
    with pytest.raises(InputError, match="no texts"):
        cached_features(decoder(), [], Path("nowhere"), PLAIN)
