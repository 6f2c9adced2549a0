"""A classifier on stored features: what scikit-learn finds, and what a frozen decoder says every time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from minillm import InputError
from minillm.adapt import FrozenHead
from minillm.adapt.feature_store import feature_key, last_token_features, stored_features
from minillm.batches import pad_left
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

TEXTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3], [5, 8, 9, 7], [9]]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_the_fit_is_scikit_learns(classes, c):
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(71, 30)), random.integers(0, classes, 71)
    head = FrozenHead(random_decoder(STYLES["Llama"]), classes)
    head.fit(torch.tensor(features), torch.tensor(labels), c)
    # Of two classes scikit-learn trains one vector, the difference of ours, whose penalty is then half of ours.
    oracle = LogisticRegression(C=c * 2 if classes == 2 else c, tol=1e-10, max_iter=10_000).fit(features, labels)
    mine = F.softmax(head.classifier(torch.tensor(features)), -1)
    assert np.abs(mine.detach().numpy() - oracle.predict_proba(features)).max() < 1e-6


def test_stored_features_give_the_scores_that_ids_give():
    head = FrozenHead(random_decoder(STYLES["Llama"]), 2)
    features = last_token_features(head.decoder, TEXTS)
    head.fit(features, torch.tensor([0, 1, 0, 1, 1]), 1.0)
    ids, mask = pad_left(TEXTS)
    assert_close(head(ids, mask=mask), head.classifier(features), "law")
    assert_close(head(torch.tensor(TEXTS[:1])), head.classifier(features[:1]), "law")
    padded_right = torch.tensor([[9, 2, 0, 0]])
    assert_close(
        head(padded_right, mask=torch.tensor([[True, True, False, False]])), head.classifier(features[1:2]), "law"
    )


def test_a_two_class_head_on_gpt2_small_has_1538_parameters():
    from minillm import Decoder, DecoderConfig

    with torch.device("meta"):
        head = FrozenHead(Decoder(DecoderConfig.gpt2("small")), 2)
    assert sum(parameter.numel() for parameter in head.trainable().values()) == 1538


def test_features_are_computed_once_and_read_from_the_disk_afterwards(tmp_path, monkeypatch):
    decoder = random_decoder(STYLES["Llama"])
    first = stored_features(decoder, TEXTS, tmp_path)
    monkeypatch.setattr("minillm.adapt.feature_store.last_token_features", None)
    assert torch.equal(stored_features(decoder, TEXTS, tmp_path), first)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"], "no temporary file is left"


def test_other_weights_texts_or_precision_are_another_key():
    decoder, other = (random_decoder(STYLES["Llama"], seed) for seed in (0, 1))
    nudged = random_decoder(STYLES["Llama"])
    with torch.no_grad():
        nudged.blocks[0].attention.key.weight[0, 0] += 1e-12
    keys = [
        feature_key(decoder, TEXTS, "float32"),
        feature_key(other, TEXTS, "float32"),
        feature_key(nudged, TEXTS, "float32"),
        feature_key(decoder, TEXTS[:-1], "float32"),
        feature_key(decoder, [*TEXTS[:-1], [9, 9]], "float32"),
        feature_key(decoder, TEXTS, "bfloat16"),
    ]
    assert len(set(keys)) == len(keys)
    assert feature_key(random_decoder(STYLES["Llama"]), TEXTS, "float32") == keys[0]


def test_a_damaged_or_exchanged_store_is_refused(tmp_path):
    decoder = random_decoder(STYLES["Llama"])
    stored_features(decoder, TEXTS, tmp_path)
    path = next(tmp_path.iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(InputError, match="cannot be read"):
        stored_features(decoder, TEXTS, tmp_path)
    stored_features(decoder, TEXTS[:4], tmp_path / "other")
    path.write_bytes(next((tmp_path / "other").iterdir()).read_bytes())
    with pytest.raises(InputError, match="not what the file's name says"):
        stored_features(decoder, TEXTS, tmp_path)


def test_one_class_only_is_refused():
    head = FrozenHead(random_decoder(STYLES["Llama"]), 2)
    with pytest.raises(InputError, match="all of one class"):
        head.fit(torch.randn(5, 30), torch.ones(5, dtype=torch.long), 1.0)
    with pytest.raises(InputError, match="two classes at least"):
        FrozenHead(random_decoder(STYLES["Llama"]), 1)
