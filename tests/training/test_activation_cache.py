"""Frozen layers run once for a row, and caching their output changes nothing but the time."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from minillm import InputError
from minillm.adapt import FineTune, InContext, LoRA, SoftPrompt, stack
from minillm.data.batches import length_buckets, pad_right
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


def losses(method, cache=None, epochs=3, batches=None):
    """The losses of gradient descent on answers, with or without a cache, and the trained weights."""
    optimizer = torch.optim.SGD(method.trainable().values(), lr=0.05)
    found = []
    for epoch in range(epochs):
        for batch in batches or length_buckets(list(map(len, ROWS)), 2 + epoch):
            scores = answer_scores(method, [ROWS[index] for index in batch], ANSWERS, cache and cache.features)
            loss = F.cross_entropy(scores, LABELS[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
    return torch.stack(found), method.state()


@pytest.mark.parametrize("style", DEEP)
@pytest.mark.parametrize("layers", ["output", 2, "blocks.1.attention.query.weight"])
def test_losses_are_the_plain_ones_bit_for_bit_in_the_same_batches(style, layers):
    base, batches = random_decoder(DEEP[style]), length_buckets(list(map(len, ROWS)), 3)
    plain, stored = FineTune(base, layers), FineTune(base, layers)
    expected, weights = losses(plain, batches=batches)
    found, same_weights = losses(stored, ActivationCache(stored), batches=batches)
    assert torch.equal(found, expected)
    assert found[-len(batches) :].mean() < found[: len(batches)].mean(), "it learns"
    assert all(torch.equal(same_weights[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("layers", ["norm.weight", 1, "blocks.2.*"])
def test_losses_are_the_plain_ones_to_rounding_in_other_batches_and_from_files(layers, tmp_path):
    base = random_decoder(DEEP["Llama"])
    plain, stored, filed = (FineTune(base, layers) for _ in range(3))
    expected = losses(plain)[0]
    assert_close(losses(stored, ActivationCache(stored))[0], expected, "law")
    assert_close(losses(filed, ActivationCache(filed, tmp_path))[0], expected, "law")


def test_states_in_files_fill_one_file_after_another_and_go_with_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.training.activation_cache.CHUNK_BYTES", 6 * 30 * 8)
    method = FineTune(random_decoder(DEEP["Llama"]), 1)
    in_memory, filed = ActivationCache(method), ActivationCache(method, tmp_path)
    for cache in (in_memory, filed):
        cache.features(ROWS)
    assert torch.equal(filed.features(ROWS), in_memory.features(ROWS))
    assert len(list(tmp_path.glob("*/*"))) > 3
    del filed, cache
    assert not list(tmp_path.iterdir())


def test_a_gradient_reaches_only_what_is_trained():
    method = FineTune(random_decoder(DEEP["Llama"]), 2)
    answer_scores(method, ROWS, ANSWERS, ActivationCache(method).features).sum().backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


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
        trunk = flops(lambda: body.run_blocks(body.embed(ids), stop=3))
        top = flops(lambda: body.run_blocks(body.embed(ids), start=3))
    assert trunk / 3 == top / 2 > 0, "a block costs what a block costs"
    assert flops(lambda: cache.features(row)) == trunk + top
    assert flops(lambda: cache.features(row)) == top

    def step():
        cache.features(row).sum().backward()

    # What a frozen Linear is spared, its weight's gradient, no trained one is; below the lowest keys nothing is asked.
    backward = flops(step) - top
    assert top < backward < 2.6 * top
    head = 2 * len(row[0]) * config.width * config.vocabulary
    assert flops(lambda: method(ids).sum().backward()) == trunk + top + backward + 2 * head, "no gradient goes below"


def test_only_new_rows_are_run(monkeypatch):
    method = FineTune(random_decoder(DEEP["Llama"]), 1)
    cache, seen = ActivationCache(method), []
    embed = method.decoder.embed
    embed.register_forward_hook(lambda _, ids, __: seen.append(len(ids[0])))
    for rows in (ROWS[:3], ROWS[:3], ROWS[1:5], ROWS[2:5], [ROWS[0], ROWS[0], ROWS[5]]):
        cache.features(rows)
    assert seen == [3, 2, 1]


def test_a_row_is_not_another_that_begins_alike_or_looks_like_padding():
    method = FineTune(random_decoder(DEEP["Llama"]), 1)
    cache = ActivationCache(method)
    for rows in ([[9, 2]], [[9, 2, 0]], [[9, 2], [9, 2, 0, 0]], [[9, 2, 0]]):
        found = cache.features(rows)
        for states, row in zip(found, rows, strict=True):
            assert_close(states[: len(row)], method.decoder.features(torch.tensor([row]))[0], "law")


def test_answers_of_several_tokens_are_scored_alike():
    method, answers = FineTune(random_decoder(DEEP["GPT-2"]), 1), [[2, 5], [7]]
    plain = answer_scores(method, ROWS, answers)
    assert_close(answer_scores(method, ROWS, answers, ActivationCache(method).features), plain, "law")


def test_dropout_in_frozen_layers_is_an_error_while_training():
    method = FineTune(random_decoder(replace(DEEP["Llama"], dropout=0.1)), 1)
    cache = ActivationCache(method)
    cache.features(ROWS)
    method.train()
    with pytest.raises(InputError, match="set dropout to 0"):
        cache.features(ROWS)


def test_frozen_layers_that_change_under_their_cache_are_an_error():
    base = random_decoder(DEEP["Llama"])

    def changed(change, layers=1):
        method = FineTune(base, layers)
        cache = ActivationCache(method)
        cache.features(ROWS)
        cache.features(ROWS)
        change(method)
        with pytest.raises(InputError, match="make a new ActivationCache"):
            cache.features(ROWS)

    with torch.no_grad():
        changed(lambda method: base.blocks[3].feed_forward.up.weight.mul_(1.5))
        changed(lambda method: method.decoder.embed.weight.mul_(1.5))
        changed(lambda method: method.decoder.norm.weight.mul_(1.5), layers="output")
    changed(lambda method: method.float())
    changed(lambda method: method.decoder.blocks[0].attention.key.requires_grad_(True))


def test_frozen_layers_in_another_precision_are_an_error():
    method = FineTune(random_decoder(DEEP["Llama"]).float(), 1)
    cache = ActivationCache(method)
    cache.features(ROWS)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="precision have changed"):
        cache.features(ROWS)


def test_training_the_upper_blocks_is_no_change_of_the_frozen_layers():
    method = FineTune(random_decoder(DEEP["Llama"]), 1)
    cache = ActivationCache(method)
    before = cache.features(ROWS[:1])
    with torch.no_grad():
        method.decoder.blocks[4].attention.value.weight.mul_(2)
    assert not torch.equal(cache.features(ROWS[:1]), before)
    assert torch.equal(cache.features(ROWS[:1]), method.decoder.features(torch.tensor(ROWS[:1])))


@pytest.mark.parametrize("adapt", [FineTune, lambda base: LoRA(base, r=2), lambda base: FineTune(base, "embed.weight")])
def test_with_the_lowest_layer_trained_nothing_is_cached_and_a_warning_says_so(adapt):
    method = adapt(random_decoder(DEEP["Llama"]))
    with pytest.warns(UserWarning, match=r"decoder\.(embed|blocks\.0).* is trained, and nothing below it is frozen"):
        cache = ActivationCache(method)
    assert torch.equal(cache.features(ROWS), method.decoder.features(pad_right(ROWS)[0]))
    assert not cache._rows


@pytest.mark.parametrize("trained", [True, False])
def test_with_a_prefix_nothing_is_cached_and_a_warning_says_so(trained):
    base = random_decoder(DEEP["Llama"])
    prompt = SoftPrompt(base, 2)
    prompt.prompt.requires_grad_(trained)
    method = stack(FineTune(base, 1), prompt)
    with pytest.warns(
        UserWarning, match="not cached: " + ("before.prompt is trained" if trained else "the trained layers attend")
    ):
        cache = ActivationCache(method)
    assert torch.equal(cache.features(ROWS), method.decoder.features(pad_right(ROWS)[0], prefix=method.prefix()))
    with pytest.warns(UserWarning, match="not cached: nothing is trained"):
        ActivationCache(InContext(base, torch.tensor([[3, 1]])))


def test_lora_in_the_upper_blocks_has_frozen_layers_too():
    method = LoRA(random_decoder(DEEP["Llama"]), r=2, targets=("blocks.3.*", "blocks.4.*"))
    assert lowest_trained_stage(method) == 3
    assert_close(
        ActivationCache(method).features(ROWS)[0, :5], method.decoder.features(torch.tensor(ROWS[:1]))[0], "law"
    )
