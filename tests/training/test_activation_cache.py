"""Frozen layers run once per row; caching their output changes only the time."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from minillm import InputError
from minillm.adapt import FineTune, InContext, LoRA, SoftPrompt, stack
from minillm.data.batches import length_buckets
from minillm.prompting.scoring import answer_scores
from minillm.training.activation_cache import ActivationCache, lowest_trained_stage
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

DEEP = {style: replace(config, layers=5) for style, config in STYLES.items()}
ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3], [5, 8, 9, 7], [9], [2, 8, 4], [1, 2, 1, 7, 7, 3], [9, 2, 0], [3, 1, 4, 1]]
LABELS = torch.tensor([0, 1, 0, 0, 1, 1, 1, 0, 1])
ANSWERS = [[2], [7]]
LAYERS = {"output": 6, 1: 4, 2: 3, "blocks.2.*": 2, "norm.weight": 5, "blocks.1.attention.query.weight": 1, "head.*": 6}


@pytest.mark.parametrize("layers", LAYERS)
def test_the_lowest_trained_stage_is_that_of_the_lowest_trained_parameter(layers):
    assert lowest_trained_stage(FineTune(random_decoder(DEEP["Llama"]), layers)) == LAYERS[layers]


@pytest.mark.parametrize(
    "adapt",
    [
        FineTune,
        lambda base: LoRA(base, r=2),
        lambda base: FineTune(base, "embed.weight"),
        lambda base: InContext(base, torch.tensor([[3, 1]])),
        lambda base: stack(FineTune(base, 1), SoftPrompt(base, 2)),
        lambda base: stack(FineTune(base, 1), SoftPrompt(base, 2).requires_grad_(False)),
    ],
)
def test_nothing_is_cached_if_the_lowest_layer_is_trained_or_attends_to_a_prefix(adapt):
    method = adapt(random_decoder(DEEP["Llama"]))
    assert lowest_trained_stage(method) == 0
    with pytest.raises(InputError, match="there are no activations to cache"):
        ActivationCache(method)


def losses(method, cache=None, batches=None, answers=ANSWERS):
    """The losses of gradient descent on answers, with or without a cache, and the trained weights."""
    optimizer = torch.optim.SGD(method.trainable().values(), lr=0.05)
    found = []
    for epoch in range(2):
        for batch in batches or length_buckets(list(map(len, ROWS)), 2 + epoch):
            scores = answer_scores(method, [ROWS[index] for index in batch], answers, cache and cache.features)
            loss = F.cross_entropy(scores, LABELS[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
    return torch.stack(found), method.state()


@pytest.mark.parametrize("style", DEEP)
@pytest.mark.parametrize("layers", ["output", 2, "blocks.1.attention.query.weight"])
def test_losses_in_the_same_batches_are_bit_identical_with_the_cache(style, layers):
    base, batches = random_decoder(DEEP[style]), length_buckets(list(map(len, ROWS)), 3)
    plain, cached = FineTune(base, layers), FineTune(base, layers)
    expected, weights = losses(plain, batches=batches)
    found, same_weights = losses(cached, ActivationCache(cached), batches)
    assert torch.equal(found, expected)
    assert found[-len(batches) :].mean() < found[: len(batches)].mean(), "it learns"
    assert all(torch.equal(same_weights[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    "adapt",
    [
        *(lambda base, layers=layers: FineTune(base, layers) for layers in ("norm.weight", 1, "blocks.2.*")),
        lambda base: LoRA(base, r=2, targets=("blocks.3.*", "blocks.4.*")),
    ],
)
def test_losses_in_other_batches_are_equal_to_rounding_with_the_cache(adapt):
    found = []
    for cache in (lambda method: None, ActivationCache):
        torch.manual_seed(0)
        method = adapt(random_decoder(DEEP["Llama"]))
        found.append(losses(method, cache(method), answers=[[2, 5], [7]])[0])
    assert_close(found[1], found[0], "law")


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_frozen_layers_run_once_and_the_backward_pass_stops_above_them():
    config = DEEP["Llama"]
    method = FineTune(random_decoder(config), 2)
    cache, ids, row = ActivationCache(method), torch.tensor(ROWS[:1]), ROWS[:1]
    body = method.decoder
    with torch.no_grad():
        frozen = flops(lambda: body.run_blocks(body.embed(ids), stop=3))
        top = flops(lambda: body.run_blocks(body.embed(ids), start=3))
    assert frozen / 3 == top / 2 > 0, "every block has the same cost"
    assert flops(lambda: cache.features(row)) == frozen + top
    assert flops(lambda: cache.features(row)) == top
    backward = flops(lambda: cache.features(row).sum().backward()) - top
    # Twice the forward pass, without the gradient of the lowest block's input.
    assert top < backward < 2.6 * top
    head = 2 * len(row[0]) * config.width * config.vocabulary
    assert flops(lambda: method(ids).sum().backward()) == frozen + top + backward + 2 * head, "no gradient goes below"


def test_only_new_rows_are_run():
    method = FineTune(random_decoder(DEEP["Llama"]), 1)
    cache, seen = ActivationCache(method), []
    method.decoder.embed.register_forward_hook(lambda _, ids, __: seen.append(len(ids[0])))
    for rows in (ROWS[:3], ROWS[:3], ROWS[1:5], ROWS[2:5], [ROWS[0], ROWS[0], ROWS[5]]):
        cache.features(rows)
    assert seen == [3, 2, 1]


def test_a_row_is_distinguished_from_its_prefix_and_from_padding():
    method = FineTune(random_decoder(DEEP["Llama"]), 1)
    cache = ActivationCache(method)
    for rows in ([[9, 2]], [[9, 2, 0]], [[9, 2], [9, 2, 0, 0]], [[9, 2, 0]]):
        found = cache.features(rows)
        for states, row in zip(found, rows, strict=True):
            assert_close(states[: len(row)], method.decoder.features(torch.tensor([row]))[0], "law")


def test_dropout_in_frozen_layers_raises_in_training():
    method = FineTune(random_decoder(replace(DEEP["Llama"], dropout=0.1)), 1)
    cache = ActivationCache(method)
    cache.features(ROWS)
    method.train()
    with pytest.raises(InputError, match="set dropout to 0"):
        cache.features(ROWS)


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        (lambda base, body: base.blocks[3].feed_forward.up.weight.mul_(1.5), 1),
        (lambda base, body: body.embed.weight.mul_(1.5), 1),
        (lambda base, body: body.norm.weight.mul_(1.5), "output"),
        (lambda base, body: body.float(), 1),
        (lambda base, body: body.blocks[0].attention.key.requires_grad_(True), 1),
    ],
)
def test_a_change_of_the_frozen_layers_raises(change, layers):
    base = random_decoder(DEEP["Llama"])
    method = FineTune(base, layers)
    cache = ActivationCache(method)
    cache.features(ROWS)
    cache.features(ROWS)
    with torch.no_grad():
        change(base, method.decoder)
    with pytest.raises(InputError, match="make a new ActivationCache"):
        cache.features(ROWS)


def test_a_change_of_precision_raises():
    method = FineTune(random_decoder(DEEP["Llama"]).float(), 1)
    cache = ActivationCache(method)
    cache.features(ROWS)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="precision have changed"):
        cache.features(ROWS)


def test_a_change_of_the_trained_layers_is_allowed():
    method = FineTune(random_decoder(DEEP["Llama"]), 1)
    cache = ActivationCache(method)
    before = cache.features(ROWS[:1])
    with torch.no_grad():
        method.decoder.blocks[4].attention.value.weight.mul_(2)
    assert not torch.equal(cache.features(ROWS[:1]), before)
    assert torch.equal(cache.features(ROWS[:1]), method.decoder.features(torch.tensor(ROWS[:1])))
