"""The frame of the lab's experiments: the plan, the budget, and the continuation of an interrupted experiment."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from minillm.errors import InputError
from minillm.lab import study
from minillm.lab.rates import Rates, best
from minillm.lab.sizes import Sizes, power_law
from minillm.lab.study import Bench, Study, Table, Trial, over_seeds, run_study


@dataclass(kw_only=True)
class Counting(Study):
    """Trials that take a second each, by a clock of our own."""

    out: Path = Path("counting")
    name = "counting"

    def plan(self, finished):
        # The plan grows while the last result is the best.
        return [self.settings("zero-shot", seed=seed) for seed in range(4 if len(finished) < 4 else 6)]

    def measure(self, bench, settings):
        if settings["seed"] == getattr(self, "stops_at", None):
            raise KeyboardInterrupt
        CLOCK[0] += 1.0
        return {"accuracy": 0.5 + settings["seed"] / 10, "predicted": [0] * 25}

    def conclude(self, finished):
        return [Table("seeds", ("seed",), [[trial.settings["seed"]] for trial in finished])], ["the end"]


CLOCK = [0.0]


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(study.time, "perf_counter", lambda: CLOCK[0])
    return lambda **given: Counting(**{"out": tmp_path / "out", "threads": 1, "train": 8, "test": 8, **given})


def _seeds(found):
    return [trial["settings"]["seed"] for trial in found["trials"]]


def test_an_experiment_runs_its_plan_and_writes_what_it_found(options):
    found = run_study(options())
    assert _seeds(found) == [0, 1, 2, 3, 4, 5]
    out = options().out
    assert json.loads((out / "counting.json").read_text("utf-8")) == json.loads(json.dumps(found))
    rows = json.loads((out / "rows.json").read_text("utf-8"))
    assert len(rows["texts"]) == len(rows["labels"]) == 8
    assert found["tables"][0]["rows"] == [[n] for n in range(6)]


def test_an_interrupted_experiment_continues_after_its_last_trial(options):
    interrupted = options()
    interrupted.stops_at = 2
    with pytest.raises(KeyboardInterrupt):
        run_study(interrupted)
    before = CLOCK[0]
    assert _seeds(run_study(options())) == [0, 1, 2, 3, 4, 5]
    assert CLOCK[0] - before == 4


def test_the_budget_ends_the_plan_and_a_larger_one_continues_it(options):
    # Two seconds for the short trials that are measured first, and one for each trial.
    assert _seeds(run_study(options(minutes=4.5 / 60))) == [0, 1]
    assert _seeds(run_study(options(minutes=1))) == [0, 1, 2, 3, 4, 5]


def test_the_first_trial_always_runs(options):
    assert _seeds(run_study(options(minutes=0.1 / 60))) == [0]


def test_another_task_is_refused_unless_it_overwrites(options):
    run_study(options(minutes=1.5 / 60))
    with pytest.raises(InputError, match="holds a run with train 8, and this one has 9"):
        run_study(options(train=9))
    assert len(run_study(options(train=9, overwrite=True))["trials"]) == 6


def test_a_dry_run_writes_nothing(options):
    planned = run_study(options(dry_run=True))
    assert (planned["trials"], planned["finished"]) == (4, 0)
    assert not options().out.exists()


@pytest.mark.parametrize(
    ("given", "message"), [({"methods": ("LORA",)}, "'LORA'"), ({"minutes": 0.0}, "--minutes must be above 0")]
)
def test_wrong_options_are_refused(options, given, message):
    with pytest.raises(InputError, match=message):
        options(**given)


def test_no_training_rows_are_not_the_default_number_of_them(options):
    with pytest.raises(InputError, match="0 training and 8 test rows are too few"):
        run_study(options(train=0))


def test_the_error_over_seeds_has_the_variance_of_seeds_and_of_rows():
    trials = [
        Trial({"seed": n}, {"accuracy": share, "predicted": [0] * 100}, 1.0) for n, share in enumerate((0.4, 0.6))
    ]
    mean, error = over_seeds(trials)
    # 0.02 / 2 between the seeds, 0.5 * 0.5 / 100 of the rows
    assert (mean, error) == (pytest.approx(0.5), pytest.approx((0.01 + 0.0025) ** 0.5))


def _swept(accuracies, rates=Rates()):  # noqa: B008
    """The finished sweep of LoRA with the accuracy of each power."""
    noise = {"standard_error": 0.02}
    return [Trial(rates.at("lora", power), {"accuracy": share, **noise}, 1.0) for power, share in accuracies.items()]


def _powers(finished):
    rates = Rates(methods=("lora",))
    planned = [settings["learning_rate"] for settings in rates.plan(finished) if "scored" in settings]
    return [power for power in range(-4, 5) if rates.at("lora", power)["learning_rate"] in planned]


def test_hopeless_rates_are_left_out_and_the_grid_grows_at_its_end():
    assert _powers([]) == [-2, -1, 0, 1, 2]
    assert _powers(_swept({0: 0.8, 1: 0.7, -1: 0.79})) == [-2, -1, 0, 1]
    assert _powers(_swept({0: 0.6, 1: 0.7, -1: 0.5, 2: 0.8})) == [-1, 0, 1, 2, 3]  # -2 is hopeless


def test_the_best_rate_is_the_lowest_of_equal_ones():
    finished = _swept({0: 0.8, 1: 0.8, -1: 0.7})
    assert best(finished, "lora") == Rates().at("lora", 0)["learning_rate"]


def test_a_power_law_is_fitted():
    sizes = [10, 50, 100, 500, 2000]
    a, b, c = power_law(sizes, [0.1 + 0.8 * n**-0.5 for n in sizes])
    assert (a, b, c) == (pytest.approx(0.1, abs=1e-6), pytest.approx(0.8, abs=1e-6), pytest.approx(0.5))
    assert power_law(sizes, [0.8 * n**-0.5 for n in sizes])[0] == pytest.approx(0, abs=1e-9)
    assert power_law(sizes, [0.9, 0.8, 0.7, 0.3, 0.01])[0] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("command", [Rates, Sizes])
def test_an_experiment_runs_from_its_estimate_to_its_picture(command, tmp_path, capsys):
    options = {"methods": ("lora",), "train": 32, "test": 32, "threads": 1, "minutes": 0.1, "out": tmp_path}
    command(**options).run()
    found = json.loads((tmp_path / f"{command.name}.json").read_text("utf-8"))
    assert found["trials"]
    assert (tmp_path / f"{command.name}.svg").exists()
    assert re.search(r"\d+ of \d+ trials to run, about [\d.]+ (s|min)", capsys.readouterr().err)


def test_few_rows_hold_fewer_shots(tmp_path):
    """10 rows need not hold two of each of four answers."""
    study = Counting(out=tmp_path, threads=1, train=40, test=8)
    task = study.load_task()
    rows = [next(row for row in task.train if row.label == label) for label in range(4)]
    bench = Bench(study.load(), replace(task, train=rows * 2 + rows[:1], validation=[]))
    for count, shots in ((9, 8), (7, 4), (3, 0)):
        short = replace(bench.task, train=(rows * 2 + rows[:1])[:count])
        assert study.adapted(bench, {"method": "few-shot"}, short)[1]["chosen"]["shots"] == shots
