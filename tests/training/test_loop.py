"""The one training loop: exact accumulation, the best epoch, and what it does when things go wrong."""

import json
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minillm import InputError
from minillm.training.learners import TorchLearner
from minillm.training.loop import Loop, train
from minillm.training.schedule import TrainingSettings, rate_at
from tests.tolerances import assert_close


class Line(nn.Module):
    """A method as small as can be: y = w · x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))

    def trainable(self):
        return dict(self.named_parameters())


EXAMPLES = [
    (torch.randn(3, generator=torch.Generator().manual_seed(i), dtype=torch.float64), float(i)) for i in range(11)
]


def fit(settings, examples=EXAMPLES, **more):
    method = Line()

    def loss(batch):
        x, y = torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch], dtype=torch.float64)
        return F.mse_loss(x @ method.w, y, reduction="sum"), len(batch)

    return method, train(method, examples, loss, lambda _: 3, settings, **more)


def test_accumulated_batches_equal_one_big_batch_even_where_the_last_is_short():
    whole, _ = fit(TrainingSettings(epochs=3, batch_size=11, learning_rate=0.1))
    parts, history = fit(TrainingSettings(epochs=3, batch_size=4, accumulate=3, learning_rate=0.1))
    assert len(history.losses) == 3
    assert_close(parts.w, whole.w, "law")


def test_a_step_is_adamw_on_the_clipped_mean_gradient_and_vectors_do_not_decay():
    method, history = fit(
        TrainingSettings(epochs=1, batch_size=11, learning_rate=0.1, clip=0.3, weight_decay=0.2, beta2=0.9)
    )
    w = Line().w
    optimizer = torch.optim.AdamW([w], lr=0.1, weight_decay=0.0, betas=(0.9, 0.9))
    x, y = torch.stack([x for x, _ in EXAMPLES]), torch.tensor([y for _, y in EXAMPLES], dtype=torch.float64)
    loss = F.mse_loss(x @ w, y)
    loss.backward()
    nn.utils.clip_grad_norm_([w], 0.3)
    optimizer.step()
    assert_close(method.w, w, "law")
    assert history.losses == [pytest.approx(loss.item(), rel=1e-12)]


def test_the_epoch_that_validated_best_is_what_remains():
    scores, snapshots, method = iter((0.2, 0.9, 0.4)), [], Line()

    def loss(batch):
        x, y = torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch], dtype=torch.float64)
        return F.mse_loss(x @ method.w, y, reduction="sum"), len(batch)

    def validate_and_look():
        snapshots.append(method.w.detach().clone())
        return next(scores)

    settings = TrainingSettings(epochs=3, learning_rate=0.1, batch_size=5)
    history = train(method, EXAMPLES, loss, lambda _: 3, settings, validate=validate_and_look)
    assert history.best_epoch == 1
    assert torch.equal(method.w, snapshots[1])
    assert not torch.equal(snapshots[1], snapshots[2])


def test_the_same_seed_takes_the_same_steps_and_another_seed_others():
    losses = [fit(TrainingSettings(epochs=2, batch_size=3, seed=seed))[1].losses for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_no_number_stops_the_training_with_a_sentence():
    broken = [*EXAMPLES, (torch.full((3,), math.nan, dtype=torch.float64), 0.0)]
    with pytest.raises(InputError, match=r"the loss is nan at step 1: a lower learning rate than 0\.0005"):
        fit(TrainingSettings(epochs=1, batch_size=12), broken)


def test_an_interrupt_saves_what_there_is_and_goes_on():
    saved = []

    def validate():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(TrainingSettings(epochs=2), validate=validate, on_interrupt=lambda: saved.append(True))
    assert saved == [True]

    def loss(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            Line(), EXAMPLES, loss, lambda _: 3, TrainingSettings(), on_interrupt=lambda: saved.append("before a step")
        )
    assert saved == [True], "where nothing was learned, nothing is saved"


def test_the_rate_climbs_in_a_straight_line_and_falls_by_a_cosine():
    settings = TrainingSettings(learning_rate=2.0, warmup=0.25)
    rates = [rate_at(step, 20, settings) for step in range(20)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert all(later < earlier for earlier, later in pairwise(rates[5:]))
    assert rate_at(20, 20, settings) == pytest.approx(0.2), "it ends at a tenth"
    assert rate_at(5 + 15 // 2, 20, settings) > rate_at(13, 20, settings) > 0.2


class Diary:
    """A learner that learns nothing, and records its calls."""

    def __init__(self, losses):
        self.losses, self.read, self.rates = iter(losses), [], []

    def backward(self, batches):
        self.read.append(batches)
        return next(self.losses)

    def optimizer_step(self, rate):
        self.rates.append(rate)

    def state(self):
        return {}

    def restore(self, tensors):
        pass


def test_the_loop_moves_by_the_schedule_and_reads_every_example_once_an_epoch():
    settings = TrainingSettings(epochs=2, batch_size=3, accumulate=2, learning_rate=2.0, warmup=0.5)
    diary = Diary([3.0, 2.0, 1.0, 0.5])
    loop = Loop(diary, list("abcdefghijk"), ord, settings)
    assert [loop.step(batches) for _ in range(2) for batches in loop.groups()] == [3.0, 2.0, 1.0, 0.5]
    assert diary.rates == [rate_at(step, 4, settings) for step in range(4)]
    assert len(set(diary.rates)) == 3, "it climbs, and falls"
    assert sorted(len(batch) for step in diary.read[:2] for batch in step) == [2, 3, 3, 3]
    assert all(len(step) == 2 for step in diary.read)
    for epoch in (diary.read[:2], diary.read[2:]):
        assert sorted(letter for step in epoch for batch in step for letter in batch) == list("abcdefghijk")
    assert loop.history.tokens == 2 * sum(map(ord, "abcdefghijk"))


def test_nothing_moves_where_the_loss_is_no_number():
    diary = Diary([1.0, math.inf])
    loop = Loop(diary, list("abcd"), ord, TrainingSettings(epochs=1, batch_size=2))
    with pytest.raises(InputError, match="the loss is inf at step 2"):
        [loop.step(batches) for batches in loop.groups()]
    assert len(diary.rates) == 1


def test_settings_that_cannot_work_are_refused_in_a_sentence():
    for wrong in ({"epochs": 0}, {"learning_rate": 0.0}, {"precision": "float16"}, {"accumulate": 0}):
        with pytest.raises(InputError):
            TrainingSettings(**wrong)


def test_a_method_with_nothing_to_train_is_refused():
    class Nothing(Line):
        def trainable(self):
            return {}

    with pytest.raises(InputError, match="nothing to train"):
        train(Nothing(), EXAMPLES, lambda batch: (torch.zeros(()), 1), lambda _: 1, TrainingSettings())


class Matrix(nn.Module):
    """Decay alone moves what the loss does not depend on."""

    def __init__(self):
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))

    def trainable(self):
        return dict(self.named_parameters())


def test_matrices_decay_and_vectors_stay():
    method = Matrix()

    def loss(batch):
        return 0.0 * (method.matrix.sum() + method.vector.sum()), len(batch)

    train(
        method,
        EXAMPLES,
        loss,
        lambda _: 3,
        TrainingSettings(epochs=1, batch_size=11, learning_rate=0.1, weight_decay=0.5),
    )
    assert torch.equal(method.vector, torch.ones(3))
    assert_close(method.matrix, torch.full((2, 3), 0.95), "law in float32")


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_restored_loop_goes_on_bit_for_bit_wherever_it_was_stopped(stop):
    """Within an epoch and at its end, with dropout's random numbers, in batches of two passes."""
    settings = TrainingSettings(batch_size=3, accumulate=2, learning_rate=0.1, seed=5, weight_decay=0.1)

    def loop():
        torch.manual_seed(settings.seed)
        method = Line()

        def loss(batch):
            x, y = torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch], dtype=torch.float64)
            return F.mse_loss(F.dropout(x @ method.w, 0.3), y, reduction="sum"), len(batch)

        return Loop(TorchLearner(method, loss, settings), EXAMPLES, lambda _: 3, settings, steps=8)

    def run(loop, until):
        while len(loop.history.losses) < until:
            for batches in loop.groups():
                loop.step(batches)
                if len(loop.history.losses) == until:
                    break
        return loop

    whole, first = run(loop(), 8), run(loop(), stop)
    tensors, rest = first.state()
    tensors, rest = {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(rest))
    torch.manual_seed(99)
    second = loop()
    second.restore(tensors, rest)
    run(second, 8)
    assert second.history.losses == whole.history.losses
    assert torch.equal(second.learner.parameters["w"], whole.learner.parameters["w"])
