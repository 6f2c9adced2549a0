"""A classifier on features of a frozen decoder: the same logits from ids and from cached features."""

import pytest
import torch
import torch.nn.functional as F

from minillm import InputError
from minillm.adapt import FineTune, FrozenHead
from minillm.adapt.frozen_head import FeatureRecipe
from minillm.data.batches import pad_left, pad_right
from minillm.training.feature_cache import cached_features
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

TEXTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3], [5, 8, 9, 7], [9], [2, 8, 4], [1, 2, 1, 7, 7, 3]]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2])


@pytest.mark.parametrize(("layer", "pooling"), [(None, "last"), (0, "mean"), (1, "first")])
def test_ids_give_the_logits_of_cached_features_and_so_does_the_rebuilt_method(layer, pooling, tmp_path):
    base = random_decoder(STYLES["Llama"])
    method = FrozenHead(base, 3, {"c": 2.0, "standardise": True}, layer, pooling)
    features, _ = cached_features(base, TEXTS, tmp_path, method.recipe)
    method.fit(features, LABELS)
    expected = method.classifier.scores(features)
    (left, mask), (right, last) = pad_left(TEXTS), pad_right(TEXTS)
    assert_close(method(left, mask=mask), expected, "law")
    assert_close(method(right, mask=torch.arange(right.shape[1]) <= last[:, None]), expected, "law")
    assert_close(method(torch.tensor(TEXTS[:1])), expected[:1], "law")
    again = FrozenHead.from_state(base, method.options(), method.state())
    assert torch.equal(again(left, mask=mask), method(left, mask=mask))
    assert again.options() == method.options()


def test_a_probe_on_cached_features_is_fine_tuning_the_output_layer_with_a_frozen_body(tmp_path):
    """Law 10: the same batches in the same order, no dropout, gradient steps on both sides."""
    base = random_decoder(STYLES["Llama"])
    probe, tuned = FrozenHead(base, 3), FineTune(base, layers="output", classes=3)
    features, _ = cached_features(base, TEXTS, tmp_path, probe.recipe)
    steps = [torch.optim.AdamW(method.trainable().values(), lr=0.1) for method in (probe, tuned)]
    for step in range(10):
        batch = [(3 * step + row) % len(TEXTS) for row in range(3)]
        ids, mask = pad_left([TEXTS[index] for index in batch])
        logits = probe.classifier(features[batch]), tuned(ids, mask=mask)
        for optimizer, found in zip(steps, logits, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(found, LABELS[batch]).backward()
            optimizer.step()
        assert_close(*logits, "law")
    for part in ("weight", "bias"):
        assert probe.trainable()[f"classifier.{part}"].abs().min() > 0.01
        assert_close(tuned.trainable()[f"head.{part}"], probe.trainable()[f"classifier.{part}"], "law")


def test_a_decoder_in_half_precision_keeps_its_head_in_float32():
    method = FrozenHead(random_decoder(STYLES["Llama"]).bfloat16(), 2)
    assert {parameter.dtype for parameter in method.trainable().values()} == {torch.float32}
    assert method(torch.tensor(TEXTS[:1])).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classes": 1}, "at least 2 classes, got 1"),
        ({"layer": 2}, r"layer must be in \[0, 1\] for this decoder, got 2"),
        ({"pooling": "cls"}, "pooling must be one of last, mean, first, got 'cls'"),
        ({"settings": {"k": 3}}, "Logistic has no argument 'k'"),
        ({"head": "tree"}, "head must be 'logistic', got 'tree'"),
    ],
)
def test_unknown_options_are_refused(options, sentence):
    base = random_decoder(STYLES["Llama"])
    fresh = FrozenHead(base, 2)
    assert fresh.recipe == FeatureRecipe()
    with pytest.raises(InputError, match=sentence):
        FrozenHead.from_state(base, fresh.options() | options, fresh.state())
