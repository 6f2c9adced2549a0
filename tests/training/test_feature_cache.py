"""Features on disk: computed once, memory-mapped, and rejected if damaged or stale."""

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
POOL = {"last": lambda states: states[-1], "mean": lambda states: states.mean(0), "first": lambda states: states[0]}


def decoder(seed=0):
    return random_decoder(STYLES["Llama"], seed)


def alone(base, text, layer):
    """The hidden states of one text, by the outputs of the blocks."""
    seen = []
    hooks = [block.register_forward_hook(lambda *call: seen.append(call[2])) for block in base.blocks]
    last = base.features(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return (last if layer is None else seen[layer])[0]


@pytest.mark.parametrize("layer", [None, 0, 1])
@pytest.mark.parametrize("pooling", POOL)
def test_a_texts_features_are_its_own_hidden_states_pooled(layer, pooling):
    base = decoder()
    found = compute_features(base, TEXTS, FeatureRecipe(layer, pooling))
    assert_close(found, torch.stack([POOL[pooling](alone(base, text, layer)) for text in TEXTS]), "law")


def test_the_first_token_of_a_causal_decoder_does_not_attend_to_the_text():
    found = compute_features(decoder(), [[9, 2, 7], [9], [9, 5]], FeatureRecipe(pooling="first"))
    assert_close(found, found[1].expand(3, -1), "law")


def test_dropout_is_off_while_features_are_computed_and_the_mode_is_restored():
    base = random_decoder(replace(STYLES["Llama"], dropout=0.5))
    quiet = compute_features(base, TEXTS, PLAIN)
    assert torch.equal(compute_features(base.train(), TEXTS, PLAIN), quiet)
    assert base.training


@pytest.fixture
def store(tmp_path):
    """The directory of the stored features of TEXTS."""
    cached_features(decoder(), TEXTS, tmp_path, PLAIN, "one")
    (store,) = tmp_path.iterdir()
    return store


def again(store, texts=TEXTS):
    return cached_features(decoder(), texts, store.parent, PLAIN, "one")[0]


def test_features_are_computed_once_and_then_mapped_from_disk(store, monkeypatch):
    expected = compute_features(decoder(), TEXTS, PLAIN)
    assert {path.name for path in store.iterdir()} == {FEATURES, MANIFEST}, "and no temporary file"
    monkeypatch.setattr(feature_cache, "compute_features", None)
    found, seconds = cached_features(decoder(), TEXTS, store.parent, PLAIN, "one")
    assert torch.equal(found, expected)
    assert 0 < seconds < 10, "those of the first computation"


def test_an_interrupted_store_is_completed(store):
    whole = again(store).clone()
    (store / FEATURES).unlink()
    assert torch.equal(again(store), whole)


def test_stored_features_are_memory_mapped(store):
    address, listed = again(store), Path("/proc/self/maps")
    if not listed.exists():
        pytest.skip("this system does not list memory maps")
    ranges = [line.split() for line in listed.read_text().splitlines() if line.endswith(FEATURES)]
    bounds = [[int(end, 16) for end in entry[0].split("-")] for entry in ranges]
    assert any(low <= address.data_ptr() < high for low, high in bounds)


def test_other_weights_texts_tokenizer_layer_pooling_or_precision_have_another_store(tmp_path):
    nudged = decoder()
    with torch.no_grad():
        nudged.blocks[0].attention.key.weight[0, 0] += 1e-12
    different = [
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
    for base, texts, recipe, tokenizer in [*different, *different]:
        cached_features(base, texts, tmp_path, recipe, tokenizer)
    assert len(list(tmp_path.iterdir())) == len(different)


@pytest.mark.parametrize("part", ["weights", "texts", "layer", "pooling", "precision", "tokenizer"])
def test_a_stale_store_raises_and_the_message_names_the_change(store, part):
    manifest = store / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {part: "another"}))
    with pytest.raises(InputError, match=f"are stale: {part} is .* was 'another'"):
        again(store)


def test_every_damage_of_the_features_raises(store):
    path = store / FEATURES
    whole = path.read_bytes()
    for end in (0, 7, 8, 50, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match="cannot be read"):
            again(store)
    for place in range(8, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0b100]) + whole[place + 1 :])
        with pytest.raises(InputError):
            again(store)
    again(store, TEXTS[::-1])
    (other,) = set(store.parent.iterdir()) - {store}
    path.write_bytes((other / FEATURES).read_bytes())
    with pytest.raises(InputError, match="belong to another store"):
        again(store)


def test_a_damaged_description_raises(store):
    described = json.loads((store / MANIFEST).read_text())
    for damage in ("", "{", "[]", "7", json.dumps({name: described[name] for name in list(described)[1:]})):
        (store / MANIFEST).write_text(damage)
        with pytest.raises(InputError, match=r"cannot be read as JSON|must be a JSON object|are stale"):
            again(store)


def test_an_invalid_layer_pooling_or_text_raises():
    with pytest.raises(InputError, match=r"layer must be in \[0, 1\] for this decoder, got 2"):
        compute_features(decoder(), TEXTS, FeatureRecipe(layer=2))
    with pytest.raises(InputError, match="pooling must be one of last, mean, first, got 'max'"):
        FeatureRecipe(pooling="max")
    with pytest.raises(InputError, match="at least one text, got none"):
        cached_features(decoder(), [], Path("nowhere"), PLAIN)
