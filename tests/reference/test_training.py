"""Training in numpy alone: the same losses as torch's, for every method of adaptation."""

import numpy as np
import pytest
import torch
from torch import nn

from minillm.adapt import PrefixTuning
from minillm.operations import IGNORED, linear_cross_entropy
from minillm.reference.adamw import no_moments
from minillm.reference.decoder import features_forward, keys_values_backward, keys_values_forward
from minillm.reference.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from minillm.reference.parameters import with_low_rank
from minillm.reference.prefix import prefix_backward, prefix_forward
from minillm.reference.training import language_model_loss, next_token_labels, training_step
from tests.decoders import STYLES, random_decoder
from tests.reference.test_decoder import LowRank, numpy_weights
from tests.reference.test_prefix import numpys_names
from tests.tolerances import assert_close

STEPS, RATE, DECAY, CLIP = 20, 3e-3, 0.1, 1.0
every_style = pytest.mark.parametrize("style", sorted(STYLES))


def _batches(config):
    """One batch per step, with padding."""
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        mask = np.ones((3, 7), bool)
        mask[1, :2] = mask[2, 5:] = False
        yield random.integers(0, config.vocabulary, (3, 7)), mask


def _numpy_losses(parameters, loss_and_gradients, config):
    moments, losses = no_moments(parameters), []
    for ids, mask in _batches(config):
        loss, parameters, moments = training_step(
            lambda now, ids=ids, mask=mask: loss_and_gradients(now, ids, mask),
            parameters, moments, rate=RATE, decay=DECAY, clip=CLIP,
        )  # fmt: skip
        losses.append(loss)
    return losses


def _torch_losses(parameters, loss_of, config):
    parameters, losses = list(parameters), []
    matrices, vectors = ([p for p in parameters if (p.dim() > 1) == yes] for yes in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    for ids, mask in _batches(config):
        loss = loss_of(torch.from_numpy(ids), torch.from_numpy(mask))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _torch_loss(decoder, ids, mask, prefix=None):
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = torch.where(mask[:, 1:] & mask[:, :-1], ids[:, 1:], IGNORED)
    features = decoder.features(ids, mask=mask, prefix=prefix)
    total = linear_cross_entropy(features.flatten(0, 1), decoder.head.weight, labels.flatten())
    return total / (labels != IGNORED).sum()


def _check(numpy_losses, torch_losses):
    assert len(numpy_losses) == STEPS
    assert len(set(numpy_losses)) == STEPS
    assert_close(np.array(torch_losses), np.array(numpy_losses), what="the losses")


@every_style
@pytest.mark.parametrize("trained", ["", "blocks.1", "norm"])
def test_full_and_partial_fine_tuning_have_torchs_first_twenty_losses(style, trained):
    decoder = random_decoder(STYLES[style])
    weights, config = numpy_weights(decoder), decoder.config
    named = {name: parameter for name, parameter in decoder.named_parameters() if trained in name}

    def loss_and_gradients(now, ids, mask):
        labels = next_token_labels(ids, mask)
        loss, gradients = language_model_loss(weights | now, config, ids, labels, mask=mask)
        return loss, gradients["weights"]

    expected = _numpy_losses({name: weights[name] for name in named}, loss_and_gradients, config)
    for parameter in decoder.parameters():
        parameter.requires_grad_(False)
    for parameter in named.values():
        parameter.requires_grad_()
    _check(expected, _torch_losses(named.values(), lambda ids, mask: _torch_loss(decoder, ids, mask), config))


@every_style
def test_lora_has_torchs_first_twenty_losses(style):
    decoder = random_decoder(STYLES[style])
    weights, config, random = numpy_weights(decoder), decoder.config, np.random.default_rng(1)
    names = [f"blocks.{layer}.attention.{role}" for layer in range(config.layers) for role in ("query", "value")]
    parameters = {}
    for name in names:
        linear = decoder.get_submodule(name)
        a, b = random.normal(size=(5, linear.in_features)), np.zeros((linear.out_features, 5))
        parameters |= {f"{name}.a": a, f"{name}.b": b}
        place, _, role = name.rpartition(".")
        low_rank = LowRank(linear, torch.from_numpy(a.copy()), torch.from_numpy(b.copy()), 0.4)
        setattr(decoder.get_submodule(place), role, low_rank)

    def loss_and_gradients(now, ids, mask):
        adapted = with_low_rank(weights, {name: (now[f"{name}.a"], now[f"{name}.b"], 0.4) for name in names})
        loss, gradients = language_model_loss(adapted, config, ids, next_token_labels(ids, mask), mask=mask)
        return loss, gradients["weights"]

    expected = _numpy_losses(parameters, loss_and_gradients, config)
    named = dict(decoder.named_parameters())
    trained = [named[name] for name in parameters]
    for name, parameter in named.items():
        parameter.requires_grad_(name in parameters)
    _check(expected, _torch_losses(trained, lambda ids, mask: _torch_loss(decoder, ids, mask), config))


@every_style
def test_a_soft_prompt_has_torchs_first_twenty_losses(style):
    decoder = random_decoder(STYLES[style]).requires_grad_(False)
    weights, config = numpy_weights(decoder), decoder.config
    start = np.random.default_rng(1).normal(size=(5, config.width))

    def loss_and_gradients(now, ids, mask):
        prefix, cache = keys_values_forward(weights, config, now["prompt"][None])
        labels = next_token_labels(ids, mask)
        loss, gradients = language_model_loss(weights, config, ids, labels, mask=mask, prefix=prefix)
        return loss, {"prompt": keys_values_backward(gradients["prefix"], cache)["embeddings"][0]}

    expected = _numpy_losses({"prompt": start}, loss_and_gradients, config)
    prompt = torch.from_numpy(start.copy()).requires_grad_()

    def loss_of(ids, mask):
        return _torch_loss(decoder, ids, mask, decoder.keys_values(prompt[None]))

    _check(expected, _torch_losses([prompt], loss_of, config))


@every_style
def test_prefix_tuning_through_its_mlp_has_torchs_first_twenty_losses(style):
    decoder = random_decoder(STYLES[style])
    method = PrefixTuning(decoder, 5, hidden=7)
    weights, config = numpy_weights(decoder), decoder.config
    start = {name: parameter.detach().numpy().copy() for name, parameter in numpys_names(method.mlp)}

    def loss_and_gradients(now, ids, mask):
        prefix, cache = prefix_forward(**now, layers=config.layers, groups=config.kv_heads)
        labels = next_token_labels(ids, mask)
        loss, gradients = language_model_loss(weights, config, ids, labels, mask=mask, prefix=prefix)
        return loss, prefix_backward(gradients["prefix"], cache)

    expected = _numpy_losses(start, loss_and_gradients, config)
    trained = method.trainable().values()
    _check(expected, _torch_losses(trained, lambda ids, mask: _torch_loss(decoder, ids, mask, method.prefix()), config))


@every_style
def test_a_classifier_on_frozen_features_has_torchs_first_twenty_losses(style):
    decoder = random_decoder(STYLES[style]).requires_grad_(False)
    weights, config = numpy_weights(decoder), decoder.config
    start = {"classifier": np.random.default_rng(1).normal(size=(3, config.width))}

    def loss_and_gradients(now, ids, mask):
        features, _ = features_forward(weights, config, ids, mask=mask)
        loss, cache = linear_cross_entropy_forward(features[:, 4], now["classifier"], ids[:, 0] % 3)
        return loss, {"classifier": linear_cross_entropy_backward(1.0, cache)["weight"]}

    expected = _numpy_losses(start, loss_and_gradients, config)
    classifier = torch.from_numpy(start["classifier"].copy()).requires_grad_()

    def loss_of(ids, mask):
        return linear_cross_entropy(decoder.features(ids, mask=mask)[:, 4], classifier, ids[:, 0] % 3)

    _check(expected, _torch_losses([classifier], loss_of, config))


def test_training_in_numpy_memorises_a_text():
    decoder = random_decoder(STYLES["GPT-2"])
    weights, config = numpy_weights(decoder), decoder.config
    parameters = {name: weights[name] for name, _ in decoder.named_parameters()}
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]])
    moments, losses = no_moments(parameters), []
    for _ in range(100):
        loss, parameters, moments = training_step(
            lambda now: _weights_alone(language_model_loss(now, config, ids, next_token_labels(ids))),
            parameters, moments, rate=1e-2,
        )  # fmt: skip
        losses.append(loss)
    assert losses[0] > np.log(config.vocabulary)
    assert losses[-1] < 0.01


def _weights_alone(result):
    loss, gradients = result
    return loss, gradients["weights"]
