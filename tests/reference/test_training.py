"""Training in numpy alone: the same losses as torch's, for every method of adaptation."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from minillm.adapt import LoRA, PrefixTuning
from minillm.operations import IGNORED, linear_cross_entropy
from minillm.reference.adamw import no_moments
from minillm.reference.decoder import features_forward, keys_values_backward, keys_values_forward
from minillm.reference.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from minillm.reference.prefix import prefix_backward, prefix_forward
from minillm.reference.training import language_model_loss, training_step
from tests.decoders import STYLES, random_decoder
from tests.reference.test_decoder import numpy_weights
from tests.reference.test_prefix import numpys_names
from tests.tolerances import assert_close

STEPS, RATE, DECAY, CLIP = 20, 3e-3, 0.1, 1.0
two_styles = pytest.mark.parametrize("style", ["figure 1", "Llama, untied"])


def _batches(config):
    """One padded batch per step: ids, mask, and the next token as the label of each token that has one."""
    random, mask = np.random.default_rng(0), np.ones((3, 7), bool)
    mask[1, :2] = mask[2, 5:] = False
    for _ in range(STEPS):
        ids, labels = random.integers(0, config.vocabulary, (3, 7)), np.full((3, 7), IGNORED)
        labels[:, :-1] = np.where(mask[:, :-1] & mask[:, 1:], ids[:, 1:], IGNORED)
        yield ids, mask, labels


def _numpy_losses(parameters, loss_and_gradients, config):
    moments, losses = no_moments(parameters), []
    for batch in _batches(config):
        loss, parameters, moments = training_step(
            lambda now, batch=batch: loss_and_gradients(now, *batch),
            parameters, moments, rate=RATE, decay=DECAY, clip=CLIP,
        )  # fmt: skip
        losses.append(loss)
    return losses


def _torch_losses(parameters, loss_of, config):
    parameters, losses = list(parameters), []
    matrices, vectors = ([p for p in parameters if (p.dim() > 1) == yes] for yes in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    for batch in _batches(config):
        loss = loss_of(*map(torch.from_numpy, batch))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _torch_loss(decoder, ids, mask, labels, prefix=None):
    features = decoder.features(ids, mask=mask, prefix=prefix)
    total = linear_cross_entropy(features.flatten(0, 1), decoder.head.weight, labels.flatten())
    return total / (labels != IGNORED).sum()


def _assert_same_losses(config, start, loss_and_gradients, parameters, loss_of):
    """The first losses in numpy, from the arrays `start`, and in torch, from `parameters`."""
    expected = _numpy_losses(start, loss_and_gradients, config)
    assert len(set(expected)) == STEPS
    assert_close(np.array(_torch_losses(parameters, loss_of, config)), np.array(expected), what="the losses")


@pytest.mark.parametrize(
    ("style", "trained"),
    [(style, "") for style in sorted(STYLES)] + [("Llama, untied", part) for part in ("blocks.1", "norm", "LoRA")],
)
def test_fine_tuning_and_lora_have_torchs_first_twenty_losses(style, trained):
    decoder = random_decoder(STYLES[style])
    if trained == "LoRA":
        decoder = LoRA(decoder, r=5, alpha=2).decoder
    else:
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_(trained in name)
    weights, config = numpy_weights(decoder), decoder.config
    named = {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}

    def loss_and_gradients(now, ids, mask, labels):
        loss, gradients = language_model_loss(weights | now, config, ids, labels, mask=mask)
        return loss, gradients["weights"]

    start = {name: weights[name] for name in named}
    _assert_same_losses(config, start, loss_and_gradients, named.values(), partial(_torch_loss, decoder))


@two_styles
def test_a_soft_prompt_has_torchs_first_twenty_losses(style):
    decoder = random_decoder(STYLES[style]).requires_grad_(False)
    weights, config = numpy_weights(decoder), decoder.config
    start = np.random.default_rng(1).normal(size=(5, config.width))
    prompt = torch.from_numpy(start.copy()).requires_grad_()

    def loss_and_gradients(now, ids, mask, labels):
        prefix, cache = keys_values_forward(weights, config, now["prompt"][None])
        loss, gradients = language_model_loss(weights, config, ids, labels, mask=mask, prefix=prefix)
        return loss, {"prompt": keys_values_backward(gradients["prefix"], cache)["embeddings"][0]}

    def loss_of(ids, mask, labels):
        return _torch_loss(decoder, ids, mask, labels, decoder.keys_values(prompt[None]))

    _assert_same_losses(config, {"prompt": start}, loss_and_gradients, [prompt], loss_of)


@two_styles
def test_prefix_tuning_through_its_mlp_has_torchs_first_twenty_losses(style):
    decoder = random_decoder(STYLES[style])
    method = PrefixTuning(decoder, 5, hidden=7)
    weights, config = numpy_weights(decoder), decoder.config
    start = {name: parameter.detach().numpy().copy() for name, parameter in numpys_names(method.mlp)}

    def loss_and_gradients(now, ids, mask, labels):
        prefix, cache = prefix_forward(**now, layers=config.layers, groups=config.kv_heads)
        loss, gradients = language_model_loss(weights, config, ids, labels, mask=mask, prefix=prefix)
        return loss, prefix_backward(gradients["prefix"], cache)

    def loss_of(ids, mask, labels):
        return _torch_loss(decoder, ids, mask, labels, method.prefix())

    _assert_same_losses(config, start, loss_and_gradients, method.trainable().values(), loss_of)


@two_styles
def test_a_classifier_on_frozen_features_has_torchs_first_twenty_losses(style):
    decoder = random_decoder(STYLES[style]).requires_grad_(False)
    weights, config = numpy_weights(decoder), decoder.config
    start = np.random.default_rng(1).normal(size=(3, config.width))
    classifier = torch.from_numpy(start.copy()).requires_grad_()

    def loss_and_gradients(now, ids, mask, labels):
        features, _ = features_forward(weights, config, ids, mask=mask)
        loss, cache = linear_cross_entropy_forward(features[:, 4], now["classifier"], ids[:, 0] % 3)
        return loss, {"classifier": linear_cross_entropy_backward(1.0, cache)["weight"]}

    def loss_of(ids, mask, labels):
        return linear_cross_entropy(decoder.features(ids, mask=mask)[:, 4], classifier, ids[:, 0] % 3)

    _assert_same_losses(config, {"classifier": start}, loss_and_gradients, [classifier], loss_of)
