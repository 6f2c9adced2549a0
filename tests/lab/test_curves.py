"""`minillm lab forgetting` and `overfit`: what each method forgets, and where its validation loss turns."""

import math
from statistics import stdev

import pytest

from minillm import load
from minillm.data.conversations import EncodedConversation
from minillm.data.tasks import LabelledText, Task
from minillm.errors import InputError
from minillm.lab.experiment import Experiment
from minillm.lab.forgetting import Forgetting, rise
from minillm.lab.overfit import Overfit, curves
from minillm.lab.study import Bench, Trial, run_study


@pytest.mark.slow
@pytest.mark.parametrize(("method", "steps"), [("lora", ["0", "4"]), ("output", [])])
def test_forgetting_is_measured_also_for_a_classifier_and_is_zero_without_the_adapter(method, steps, tmp_path):
    options = Forgetting(methods=(method,), train=20, test=8, threads=1, out=tmp_path, minutes=1e-3)
    found = run_study(options)
    (trial,) = (Trial(**trial) for trial in found["trials"])
    assert {nats for rows in trial.measured["off"].values() for nats, _ in rows} == {0.0}
    assert trial.measured["on"].keys() == {"own text", "word problems"}
    assert all((rise(rows) == (0.0, 0.0)) == (method == "output") for rows in trial.measured["on"].values())
    assert list(trial.measured["chosen"]["forgetting"]) == steps
    assert found["tables"][0]["rows"][0][-1] == "0"


def test_the_rise_per_token_has_the_standard_error_of_a_mean_if_texts_are_equally_long():
    nats = [0.5, 0.25, 1.0, -0.5]
    mean, error = rise([(each, 5) for each in nats])
    assert (mean, error) == pytest.approx((sum(nats) / 20, stdev(nats) / math.sqrt(4) / 5), rel=1e-12)
    assert rise([(1.0, 1), (9.0, 9)]) == pytest.approx((1.0, 0.0))


def test_remedies_are_planned_for_full_and_lora_after_all_methods():
    planned = Forgetting(methods=("full", "features", "lora")).plan([])
    assert [(one["method"], one["remedy"]) for one in planned[:4]] == [
        ("full", "-"), ("features", "-"), ("lora", "-"), ("full", "replay"),
    ]  # fmt: skip
    assert len(planned) == 3 + 2 * 4


def test_the_time_of_a_trial_includes_the_texts_that_the_base_knows():
    """A row has three tokens, the prompt and a word: 32 texts of 100 such rows, on and off, and 8 times in 32 steps."""
    study, two = Forgetting(), [LabelledText("balls", label) for label in range(2)]
    experiment = Experiment(None, load("tiny")[1], None, "float32", 0)
    bench = Bench(experiment, Task("t", "Ada has {text}", (" a", " b"), two * 250, [], two * 5))
    settings = study.settings("full", remedy="-", epochs=4, train=128)
    alone = study.passes(bench, settings)
    study.known = {"own text": [EncodedConversation([0] * 300, range(1))] * 32}
    assert study.passes(bench, settings) - alone == pytest.approx((2 + 8) * 32 * 300 / 3)
    assert study.passes(bench, settings | {"method": "features"}) == pytest.approx(4 * 128 + 10 + 2 * 32 * 300 / 3)


def test_overfit_names_a_method_without_epochs():
    with pytest.raises(InputError, match="features has no epochs; the methods that train in epochs are soft-prompt"):
        Overfit(methods=("full", "features"))


def test_the_turn_of_the_validation_loss_is_found():
    losses = [float(step) for step in range(20)]
    held = [3.0, 2.0, *(2.0 + n for n in range(1, 9))]
    chosen = {"losses": losses, "validation_losses": held, "best_epoch": 3}
    trial = Trial({"method": "lora", "train": 32, "seed": 0}, {"chosen": chosen}, 1.0)
    training, validation, stop = curves(trial)
    assert (training[0], training[-1], validation, stop) == (0.5, 18.5, held, 3)
    later = Trial({**trial.settings, "seed": 1}, {"chosen": {**chosen, "best_epoch": 4}}, 1.0)
    (table,), _ = Overfit().conclude([trial, later])
    assert list(table.rows[0]) == ["lora", 32, 2, 2, 3.5, 2.5, 2.0, 18.5, 10.0]
