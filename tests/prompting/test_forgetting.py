"""Forgetting and its remedies: replay, the distance from the start, a budget."""

import pytest
import torch

from minillm import InputError, adapt
from minillm.prompting.forgetting import OWN_ROWS, held_out, own_text, remedies
from minillm.prompting.scoring import log_likelihoods
from minillm.training.schedule import TrainingSettings
from tests.test_classifier import BASE, LABELS, TEXTS, classifier

DECODER, TOKENIZER = BASE


def test_nothing_is_forgotten_before_training_and_the_replayed_text_is_not_that_of_the_measurement():
    settings, method = TrainingSettings(replay=OWN_ROWS, forgetting_budget=1.0), adapt.LoRA(DECODER, r=2)
    replay, forgetting = remedies(method, TOKENIZER, settings)
    assert forgetting() == 0.0
    assert len(replay) == OWN_ROWS
    assert not [row for row in replay if row in own_text(method, TOKENIZER, "float32", settings.seed)]
    with torch.no_grad():
        method.decoder.blocks[0].attention.query.b.add_(1.0)
    assert forgetting() != 0.0
    assert remedies(method, TOKENIZER, TrainingSettings()) == ([], None)


def test_the_loss_on_held_out_text_is_the_mean_over_tokens():
    rows = own_text(DECODER, TOKENIZER, "float32", 0, 3)
    total = -sum(log_likelihoods(DECODER, [row]).item() for row in rows)
    assert held_out(DECODER, rows, "float32") == pytest.approx(total / sum(len(row.ids) - 1 for row in rows))


def test_a_replayed_row_counts_as_much_as_a_label():
    plain = classifier(batch_size=32).fit(TEXTS, LABELS)
    fitted = classifier(batch_size=32, replay=5).fit(TEXTS, LABELS)
    rows, _ = remedies(adapt.LoRA(DECODER, r=2), TOKENIZER, TrainingSettings(replay=5))
    (first,), (mixed,) = (one.training_.chosen["losses"] for one in (plain, fitted))
    own = sum(held_out(DECODER, [row], "float32") for row in rows)
    assert mixed == pytest.approx((len(TEXTS) * first + own) / (len(TEXTS) + 5), rel=1e-5)


def test_a_penalty_keeps_the_weights_near_the_base_and_a_budget_ends_the_training():
    far, near, short = (
        classifier("full", epochs=6, batch_size=4, forgetting_budget=budget, l2_base=weight).fit(TEXTS, LABELS)
        for budget, weight in ((1e9, 0.0), (1e9, 1e3), (1e-3, 0.0))
    )
    base = dict(DECODER.named_parameters())
    moved = [sum((p - base[n]).square().sum() for n, p in one.method_.trainable().items()) for one in (far, near)]
    assert moved[1] < moved[0] / 4
    assert len(far.training_.chosen["losses"]) == 24
    steps, forgetting = len(short.training_.chosen["losses"]), short.training_.chosen["forgetting"]
    assert steps < 24
    assert [nats > 1e-3 for nats in forgetting.values()] == [False] * (steps // 4) + [True]


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("output", {"replay": 1}, "trains a classifier, no language model: leave out replay and forgetting_budget"),
        ("output", {"forgetting_budget": 1.0}, "leave out replay and forgetting_budget"),
        ("lora", {"patience": 1}, "patience needs validation rows and at least 2 epochs"),
    ],
)
def test_a_remedy_that_a_method_cannot_have_is_refused_before_training(method, params, message):
    with pytest.raises(InputError, match=message):
        classifier(method, **params).fit(TEXTS, LABELS)
