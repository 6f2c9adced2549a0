"""The training loop: exact accumulation, the schedule, the best epoch, errors, interrupts and resuming."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minillm import InputError
from minillm.runtime.locks import locked
from minillm.training.checkpoints import CHECKPOINT, Checkpoints
from minillm.training.learners import TorchLearner
from minillm.training.loop import Loop, train
from minillm.training.schedule import TrainingSettings, rate_at
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked


class Line(nn.Module):
    """The smallest method: y = w · x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))

    def trainable(self):
        return dict(self.named_parameters())

    def loss(self, batch, dropout=0.0):
        x, y = torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch], dtype=torch.float64)
        return F.mse_loss(F.dropout(x @ self.w, dropout), y, reduction="sum"), len(batch)


EXAMPLES = [
    (torch.randn(3, generator=torch.Generator().manual_seed(i), dtype=torch.float64), float(i)) for i in range(11)
]


def fit(settings, method=None, **options):
    method = method or Line()
    return method, train(method, EXAMPLES, method.loss, lambda _: 3, settings, **options)


def test_accumulated_batches_equal_one_big_batch_even_if_the_last_is_short():
    whole, _ = fit(TrainingSettings(epochs=3, batch_size=11, learning_rate=0.1))
    parts, history = fit(TrainingSettings(epochs=3, batch_size=4, accumulate=3, learning_rate=0.1))
    assert len(history.losses) == 3
    assert_close(parts.w, whole.w, "law")


def test_a_step_is_adamw_on_the_clipped_mean_gradient_without_decay_of_vectors():
    settings = TrainingSettings(epochs=1, batch_size=11, learning_rate=0.1, clip=0.3, weight_decay=0.2, beta2=0.9)
    method, history = fit(settings)
    expected = Line()
    optimizer = torch.optim.AdamW([expected.w], lr=0.1, weight_decay=0.0, betas=(0.9, 0.9))
    loss = expected.loss(EXAMPLES)[0] / len(EXAMPLES)
    loss.backward()
    nn.utils.clip_grad_norm_([expected.w], 0.3)
    optimizer.step()
    assert_close(method.w, expected.w, "law")
    assert history.losses == [pytest.approx(loss.item(), rel=1e-12)]


class Matrix(Line):
    """Its loss depends on nothing, so that only weight decay changes its parameters."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(2, 3))

    def loss(self, batch):
        return 0.0 * (self.matrix.sum() + self.w.sum()), len(batch)


def test_weight_decay_applies_to_matrices_only():
    settings = TrainingSettings(epochs=1, batch_size=11, learning_rate=0.1, weight_decay=0.5)
    method, _ = fit(settings, method=Matrix())
    assert torch.equal(method.w, Line().w)
    assert_close(method.matrix, torch.full((2, 3), 0.95), "law in float32")


def test_the_weights_of_the_best_validated_epoch_are_restored():
    scores, snapshots, method = iter((0.2, 0.9, 0.4)), [], Line()

    def validate():
        snapshots.append(method.w.detach().clone())
        return next(scores), 0.0

    _, history = fit(TrainingSettings(epochs=3, learning_rate=0.1, batch_size=5), method=method, validate=validate)
    assert history.best_epoch == 1
    assert torch.equal(method.w, snapshots[1])
    assert not torch.equal(snapshots[1], snapshots[2])


def test_without_validation_the_last_epoch_is_the_best():
    assert fit(TrainingSettings(epochs=3, batch_size=5))[1].best_epoch == 2


def test_equal_seeds_give_equal_losses_and_different_seeds_different_ones():
    losses = [fit(TrainingSettings(epochs=2, batch_size=3, seed=seed))[1].losses for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(("place", "saves"), [("validate", [True]), ("loss", [])])
def test_an_interrupt_after_the_first_step_saves_and_is_raised(place, saves):
    saved, method = [], Line()

    def interrupted(*_):
        raise KeyboardInterrupt

    options = {"validate": interrupted} if place == "validate" else {}
    method.loss = interrupted if place == "loss" else method.loss
    with pytest.raises(KeyboardInterrupt):
        fit(TrainingSettings(), method=method, on_interrupt=lambda: saved.append(True), **options)
    assert saved == saves


def test_the_learning_rate_warms_up_linearly_and_decays_by_a_cosine_to_a_tenth():
    settings = TrainingSettings(learning_rate=2.0, warmup=0.25)
    rates = [rate_at(step, 20, settings) for step in range(20)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert all(later < earlier for earlier, later in pairwise(rates[5:]))
    assert rate_at(20, 20, settings) == pytest.approx(0.2)
    assert rate_at(5 + 15 // 2, 20, settings) > rate_at(13, 20, settings) > 0.2


class Recorder:
    """A learner that records its calls and learns nothing."""

    def __init__(self, losses):
        self.losses, self.steps, self.rates = iter(losses), [], []

    def backward(self, batches):
        self.steps.append(batches)
        return next(self.losses)

    def optimizer_step(self, rate):
        self.rates.append(rate)

    def state(self):
        return {}

    def restore(self, tensors):
        pass


def test_the_loop_follows_the_schedule_and_uses_every_example_once_per_epoch():
    settings = TrainingSettings(epochs=2, batch_size=3, accumulate=2, learning_rate=2.0, warmup=0.5)
    recorder = Recorder([3.0, 2.0, 1.0, 0.5])
    loop = Loop(recorder, list("abcdefghijk"), ord, settings)
    assert [loop.step(batches) for _ in range(2) for batches in loop.groups()] == [3.0, 2.0, 1.0, 0.5]
    assert recorder.rates == [rate_at(step, 4, settings) for step in range(4)]
    assert len(set(recorder.rates)) == 3, "warm-up and decay"
    assert sorted(len(batch) for step in recorder.steps[:2] for batch in step) == [2, 3, 3, 3]
    assert all(len(step) == 2 for step in recorder.steps)
    for epoch in (recorder.steps[:2], recorder.steps[2:]):
        assert sorted(letter for step in epoch for batch in step for letter in batch) == list("abcdefghijk")
    assert loop.history.tokens == 2 * sum(map(ord, "abcdefghijk"))


class Overflowing(Line):
    """Its loss is finite before the last step, and its parameter is not after it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([-2e38]))

    def loss(self, batch):
        return self.w.sum(), 1


def test_weights_that_are_not_finite_after_the_last_step_are_an_error_with_the_learning_rate():
    method, settings = Overflowing(), TrainingSettings(epochs=1, batch_size=11, learning_rate=2e38)
    with pytest.raises(InputError, match=r"with a learning rate of 2e\+38, the method has values in w that are not"):
        fit(settings, method)
    assert method.w.isinf().all()
    diverged = Loop(TorchLearner(method.trainable(), method.loss, settings), EXAMPLES, lambda _: 3, settings)
    with pytest.raises(InputError, match=r"with a learning rate of 2e\+38"):
        diverged.state()  # of a checkpoint


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_raises_before_the_optimizer_step(loss):
    recorder = Recorder([1.0, loss])
    loop = Loop(recorder, list("abcd"), ord, TrainingSettings(epochs=1, batch_size=2))
    with pytest.raises(InputError, match=rf"the loss is {loss} at step 2: try a learning rate below 0\.0005"):
        [loop.step(batches) for batches in loop.groups()]
    assert len(recorder.rates) == 1


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("accumulate", 0, "accumulate must be at least 1"),
        ("learning_rate", 0.0, r"learning_rate must be a finite number above 0, got 0\.0"),
        ("learning_rate", float("inf"), "learning_rate must be a finite number above 0, got inf"),
        ("clip", float("nan"), "clip must be above 0, got nan"),
        ("patience", 0, "patience must be at least 1, got 0"),
        ("replay", -1, "replay must be at least 0, got -1"),
        ("l2_base", float("inf"), "l2_base must be a finite number of at least 0, got inf"),
        ("forgetting_budget", -0.1, r"forgetting_budget must be a finite number of at least 0, got -0\.1"),
        ("precision", "float16", "precision must be one of bfloat16, float32, float64, got 'float16'"),
    ],
)
def test_invalid_settings_raise(name, wrong, message):
    with pytest.raises(InputError, match=message):
        TrainingSettings(**{name: wrong})
    with pytest.raises(InputError, match="patience needs validation rows and at least 2 epochs"):
        TrainingSettings(epochs=1, patience=1)


def test_a_method_without_trainable_parameters_raises():
    method = Line()
    method.trainable = dict
    with pytest.raises(InputError, match="no trainable parameters"):
        fit(TrainingSettings(), method=method)


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_restored_loop_continues_bit_for_bit_from_every_step(stop):
    """Within an epoch and at its end, with the random numbers of dropout and accumulated batches."""
    settings = TrainingSettings(batch_size=3, accumulate=2, learning_rate=0.1, seed=5, weight_decay=0.1)

    def loop():
        torch.manual_seed(settings.seed)
        method = Line()
        learner = TorchLearner(method.trainable(), lambda batch: method.loss(batch, dropout=0.3), settings)
        return Loop(learner, EXAMPLES, lambda _: 3, settings, steps=8)

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


class Killed(BaseException):
    """Like SIGKILL: nothing is saved after it."""


NUMBERS = [(float(n), float(n % 3)) for n in range(7)]


def run_to(directory, stop, how=Killed, *, every=None, settings=None):
    """A run on dropout, with validation, that is ended in step `stop`; None: to its end."""
    method, done = Line(), []
    settings = settings or TrainingSettings(epochs=3, batch_size=3, learning_rate=0.1, seed=5, l2_base=0.1)

    def loss(batch):
        done.append(True)
        if len(done) == stop:
            raise how
        x = torch.tensor([[x, 1.0, x * x] for x, _ in batch], dtype=torch.float64)
        y = torch.tensor([y for _, y in batch], dtype=torch.float64)
        return F.mse_loss(F.dropout(x @ method.w, 0.3), y, reduction="sum"), len(batch)

    def validate():
        return -abs(method.w[0].item() - 0.6), method.w[1].item()

    history = train(
        method, NUMBERS, loss, lambda _: 1, settings, validate=validate, forgetting=lambda: 2.0 - method.w[2].item(),
        checkpoints=None if directory is None else Checkpoints(directory, {"method": "line"}, every),
    )  # fmt: skip
    return method.w.detach().clone(), {**vars(history), "seconds": 0.0}


@pytest.mark.parametrize("every", [None, 1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", [Killed, KeyboardInterrupt])
def test_a_run_that_is_ended_in_any_step_continues_bit_for_bit(tmp_path, how, every):
    """Also one that is ended again and again; the best epoch is not the last."""
    weights, whole = run_to(None, None)
    assert whole["best_epoch"] < 2
    for stop in range(1, 10):
        out = tmp_path / str(stop)
        for _ in range(2):
            with pytest.raises(how):
                run_to(out, stop, how, every=every)
            stop = 1
        last, rest = run_to(out, None, every=every)
        assert torch.equal(last, weights)
        assert rest == whole
        last, _ = run_to(out, 1, every=every)
        assert torch.equal(last, weights), "a complete run takes no step"


PATIENT = TrainingSettings(epochs=6, batch_size=3, learning_rate=0.1, seed=5, patience=1)
FRUGAL = TrainingSettings(epochs=6, batch_size=3, learning_rate=0.1, seed=5, forgetting_budget=0.3)


@pytest.mark.parametrize("settings", [PATIENT, FRUGAL])
def test_a_run_that_ends_early_does_so_in_the_same_step_after_an_interrupt(tmp_path, settings):
    weights, whole = run_to(None, None, settings=settings)
    steps = len(whole["losses"])
    if settings.patience is None:
        assert whole["forgetting"].keys() == {str(step) for step in range(0, steps + 1, 4)}
        assert [nats > 0.3 for nats in whole["forgetting"].values()] == [False] * (steps // 4) + [True]
    else:
        assert whole["validation"].index(max(whole["validation"])) == whole["best_epoch"] == steps // 3 - 2
    assert 0 < steps < 18
    for stop in range(1, steps + 1):
        with pytest.raises(KeyboardInterrupt):
            run_to(tmp_path / str(stop), stop, KeyboardInterrupt, settings=settings)
        last, rest = run_to(tmp_path / str(stop), None, settings=settings)
        assert torch.equal(last, weights)
        assert rest == whole


def test_patience_counts_the_epochs_after_the_best_one():
    scores = iter([(0.2, 1.0), (0.9, 1.0), (0.4, 1.0), (0.9, 1.0), (1.0, 1.0)])
    settings = TrainingSettings(epochs=5, batch_size=11, patience=2)
    _, history = fit(settings, validate=lambda: next(scores))
    assert (history.validation, history.best_epoch) == ([0.2, 0.9, 0.4, 0.9], 1)


def test_metrics_are_written_also_for_an_interrupted_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_to(tmp_path, 5, KeyboardInterrupt)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert rows[0] == ["step", "loss", "rate", "validation", "score", "forgetting"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "3", "4"]
    assert [bool(row[3] and row[4]) for row in rows[1:]] == [False, False, True, False]
    _, whole = run_to(tmp_path, None)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    settings = TrainingSettings(epochs=3, learning_rate=0.1)
    assert [float(row[1]) for row in rows] == whole["losses"]
    assert [float(row[2]) for row in rows] == [rate_at(step, 9, settings) for step in range(9)]
    assert [float(row[3]) for row in rows[2::3]] == whole["validation_losses"]
    assert [float(row[4]) for row in rows[2::3]] == whole["validation"]
    assert {row[0]: float(row[5]) for row in rows if row[5]} == {step: whole["forgetting"][step] for step in "48"}


def test_a_penalty_has_the_gradient_of_the_squared_distance_from_the_start_and_no_part_in_the_loss():
    one, other, batches = Line(), Line(), [EXAMPLES[:4], EXAMPLES[4:]]
    penalised, plain = (
        TorchLearner(line.trainable(), line.loss, TrainingSettings(l2_base=weight))
        for line, weight in ((one, 3.0), (other, 0.0))
    )
    with torch.no_grad():
        for line in (one, other):
            line.w.add_(torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64))
    assert penalised.backward(batches) == plain.backward(batches)
    assert_close(one.w.grad - other.w.grad, torch.tensor([6.0, 0.0, -12.0], dtype=torch.float64), "law")


def test_a_validation_that_is_ended_is_repeated(tmp_path):
    settings, method, scores = TrainingSettings(epochs=2, batch_size=5, learning_rate=0.1), Line(), iter((1.0, 0.0))
    checkpoints = Checkpoints(tmp_path)

    def ended():
        raise KeyboardInterrupt

    for validate in (ended, ended):
        with pytest.raises(KeyboardInterrupt):
            train(method, NUMBERS, line_loss(method), lambda _: 1, settings, validate=validate, checkpoints=checkpoints)
    history = train(
        method, NUMBERS, line_loss(method), lambda _: 1, settings, validate=lambda: (next(scores), 0.0),
        checkpoints=checkpoints,
    )  # fmt: skip
    assert (history.validation, history.best_epoch, len(history.losses)) == ([1.0, 0.0], 0, 4)


def line_loss(method):
    return lambda batch: method.loss([(torch.full((3,), x, dtype=torch.float64), y) for x, y in batch])


def test_the_checkpoint_of_other_settings_is_refused_and_left_unchanged(tmp_path):
    with pytest.raises(Killed):
        run_to(tmp_path, 5)
    before = (tmp_path / CHECKPOINT).read_bytes()
    other = TrainingSettings(epochs=3, batch_size=3, learning_rate=0.2, seed=5)
    with pytest.raises(InputError, match=r"holds a run with learning_rate 0\.1, and this one has 0\.2; give another"):
        run_to(tmp_path, None, settings=other)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    with (
        ThreadPoolExecutor(1) as other, locked(tmp_path),
        pytest.raises(InputError, match="is being written by another minillm"),
    ):  # fmt: skip
        other.submit(run_to, tmp_path, None).result()


def test_a_checkpoint_is_due_after_an_epoch_and_after_five_minutes(tmp_path, monkeypatch):
    clock, checkpoints = iter((299.0, 301.0)), Checkpoints(tmp_path)
    checkpoints.saved = 0.0
    monkeypatch.setattr("minillm.training.checkpoints.time.monotonic", lambda: next(clock))
    assert [checkpoints.due(1, epoch_ends=False) for _ in range(2)] == [False, True]
    assert checkpoints.due(3, epoch_ends=True)
    assert [step for step in range(1, 8) if replace(checkpoints, every=3).due(step, epoch_ends=True)] == [3, 6]
