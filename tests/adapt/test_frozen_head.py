"""A classifier on features of a frozen decoder: the same from ids as from the store, and fine-tuning in disguise."""

import pytest
import torch
import torch.nn.functional as F

from minillm import Decoder, DecoderConfig, InputError
from minillm.adapt import FineTune, FrozenHead
from minillm.adapt.frozen_head import FeatureRecipe
from minillm.adapt.heads import HEADS
from minillm.data.batches import pad_left, pad_right
from minillm.training.feature_cache import cached_features, compute_features
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

TEXTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3], [5, 8, 9, 7], [9], [2, 8, 4], [1, 2, 1, 7, 7, 3]]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2])
SMALL = {"mlp": {"hidden": 3, "c": 0.1}}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("layer", "pooling"), [(None, "last"), (0, "mean"), (1, "first")])
def test_ids_give_the_scores_that_stored_features_give(head, layer, pooling, tmp_path):
    base = random_decoder(STYLES["Llama"])
    method = FrozenHead(base, 3, head=head, settings=SMALL.get(head), layer=layer, pooling=pooling)
    features = cached_features(base, TEXTS, tmp_path, method.recipe)
    method.fit(features, LABELS)
    expected = method.classifier.scores(features)
    (left, mask), (right, last) = pad_left(TEXTS), pad_right(TEXTS)
    assert_close(method(left, mask=mask), expected, "law")
    assert_close(method(right, mask=torch.arange(right.shape[1]) <= last[:, None]), expected, "law")
    assert_close(method(torch.tensor(TEXTS[:1])), expected[:1], "law")
    assert method(left, mask=mask).shape == (len(TEXTS), 3)


@pytest.mark.parametrize("head", HEADS)
def test_options_and_state_rebuild_it(head):
    base = random_decoder(STYLES["Llama"])
    method = FrozenHead(base, 3, head=head, settings=SMALL.get(head), layer=0, pooling="mean")
    method.fit(compute_features(base, TEXTS, method.recipe), LABELS)
    again = FrozenHead.from_state(base, method.options(), method.state())
    ids = torch.tensor(TEXTS[:1])
    assert torch.equal(again(ids), method(ids))
    assert again.options() == method.options()
    assert all(torch.equal(again.state()[name], saved) for name, saved in method.state().items())


def test_what_gradients_train_and_what_is_only_fitted():
    base = random_decoder(STYLES["Llama"])
    trained = {head: set(FrozenHead(base, 3, head=head).trainable()) for head in HEADS}
    linear = {"classifier.weight", "classifier.bias"}
    layers = {f"classifier.{layer}.{part}" for layer in ("hidden", "out") for part in ("weight", "bias")}
    assert trained == {"logistic": linear, "ridge": linear, "mlp": layers, "centroid": set(), "neighbours": set()}
    assert set(FrozenHead(base, 3, head="centroid").state()) == {"classifier.centroids"}
    assert set(FrozenHead(base, 3, head="neighbours").state()) == {"classifier.features", "classifier.labels"}


def test_a_probe_on_stored_features_is_fine_tuning_the_output_layer_with_a_frozen_body(tmp_path):
    """Law 10: the same batches in the same order, no dropout, gradient steps on both sides."""
    base = random_decoder(STYLES["Llama"])
    probe, tuned = FrozenHead(base, 3), FineTune(base, layers="output", classes=3)
    features = cached_features(base, TEXTS, tmp_path, probe.recipe)
    steps = [torch.optim.AdamW(method.trainable().values(), lr=0.1) for method in (probe, tuned)]
    for step in range(10):
        batch = [(3 * step + row) % len(TEXTS) for row in range(3)]
        ids, mask = pad_left([TEXTS[index] for index in batch])
        scores = probe.classifier(features[batch]), tuned(ids, mask=mask)
        for optimizer, found in zip(steps, scores, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(found, LABELS[batch]).backward()
            optimizer.step()
        assert_close(*scores, "law")
    for mine, theirs in (("classifier.weight", "head.weight"), ("classifier.bias", "head.bias")):
        assert probe.trainable()[mine].abs().min() > 0.01, "they have moved"
        assert_close(tuned.trainable()[theirs], probe.trainable()[mine], "law")


def test_a_head_learns_nothing_of_the_decoder_and_the_decoder_nothing_of_the_head():
    base = random_decoder(STYLES["Llama"])
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    method = FrozenHead(base, 3, head="mlp")
    F.cross_entropy(method(torch.tensor(TEXTS[:1])), LABELS[:1]).backward()
    assert all(parameter.grad is not None for parameter in method.trainable().values())
    assert all(parameter.grad is None for parameter in [*base.parameters(), *method.decoder.parameters()])
    assert all(torch.equal(parameter, before[name]) for name, parameter in base.named_parameters())


def test_a_two_class_head_on_gpt2_small_has_1538_parameters():
    with torch.device("meta"):
        head = FrozenHead(Decoder(DecoderConfig.gpt2("small")), 2)
    assert sum(parameter.numel() for parameter in head.trainable().values()) == 1538


def test_a_decoder_in_half_precision_keeps_its_head_in_float32():
    base = random_decoder(STYLES["Llama"]).bfloat16()
    method = FrozenHead(base, 2)
    assert {parameter.dtype for parameter in method.trainable().values()} == {torch.float32}
    assert method(torch.tensor(TEXTS[:1])).dtype == torch.float32


def test_what_is_not_there_is_refused():
    base = random_decoder(STYLES["Llama"])
    with pytest.raises(InputError, match="two classes at least"):
        FrozenHead(base, 1)
    with pytest.raises(InputError, match="no block 2"):
        FrozenHead(base, 2, layer=2)
    with pytest.raises(InputError, match="no pooling 'cls'"):
        FrozenHead(base, 2, pooling="cls")
    with pytest.raises(InputError, match="no head 'tree'"):
        FrozenHead(base, 2, head="tree")
    assert FrozenHead(base, 2).recipe == FeatureRecipe()
