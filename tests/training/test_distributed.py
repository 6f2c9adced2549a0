"""Jobs of two and three processes take the steps of one, and end together: after an error, Ctrl-C or a lost process."""

import json
import os
import signal
import subprocess
import sys
import traceback
from functools import partial

import numpy as np
import pytest
import torch

from minillm import adapt
from minillm.operations import IGNORED
from minillm.runtime import distributed
from minillm.training.checkpoints import CHECKPOINT, Checkpoints
from minillm.training.loop import train
from minillm.training.pretraining import PackedRow, language_model_loss
from minillm.training.schedule import TrainingSettings
from minillm.training.sharded import learner_of, shard
from tests.tolerances import assert_close
from tests.training.small_loop import ROWS, small_decoder, trained_loop

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
CPU = torch.device("cpu")
UNEQUAL = [*ROWS, PackedRow([1, 3, 5, 7], [1, 3, 5, 7]), PackedRow([2, 4], [2, 4]), PackedRow([5, 6], [5, IGNORED])]
SETTINGS = TrainingSettings(epochs=2, batch_size=3, accumulate=2, learning_rate=1e-4, clip=0.1)
"""AdamW divides a gradient by its own size: the rounding of one near 0 moves a weight by up to rate / 1e-8 of it."""


def together(work, count, path):
    """Run `work` in the processes of a job; what each returned, or how it failed and whether it reports that.

    As with torchrun, the store by which they find each other is in none of them.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    children = {}
    for rank in range(count):
        if not (child := os.fork()):
            os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
            os._exit(_written(work, path / f"{rank}.json"))
        children[child] = path / f"{rank}.json"
    for child in children:
        os.waitpid(child, 0)
    return [json.loads(file.read_text()) if file.exists() else None for file in children.values()]


def _written(work, file):
    signal.alarm(60)
    torch.set_num_threads(1)  # a fork has none of the threads of its parent
    try:
        with distributed.joined(CPU):
            result = work()
    except (Exception, KeyboardInterrupt) as problem:
        traceback.print_exc()
        result = [type(problem).__name__, str(problem), distributed.reports()]
    file.write_text(json.dumps(result))
    return 0


def numbers(loop):
    return [loop.history.losses, {name: p.tolist() for name, p in loop.learner.parameters.items()}]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_take_the_same_steps_as_one(count, tmp_path):
    """Accumulated batches of unequal rows, of which a process may get none."""
    settings = {"learning_rate": 1e-4, "clip": 0.1, "accumulate": 2}
    one = trained_loop(UNEQUAL[:5], **settings)
    for losses, parameters in together(lambda: numbers(trained_loop(UNEQUAL[:5], **settings)), count, tmp_path):
        assert_close(np.array(losses), np.array(one.history.losses), "law", terms=one.steps)
        for name, parameter in one.learner.parameters.items():
            assert_close(np.array(parameters[name]), parameter, "law", name, terms=one.steps)


def fail():
    raise MemoryError


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def lora():
    return adapt.LoRA(small_decoder(), r=2, targets=("query", "value"))


def full():
    return adapt.FineTune(small_decoder())


def adapted(make, out, stop=None, how=fail, where=0):
    """Train a method, and stop in pass `stop` of process `where`: the losses, the best epoch, the trained tensors."""
    method, passes = make(), []

    def loss(rows):
        passes.append(True)
        if len(passes) == stop and distributed.process_number() == where:
            how()
        return language_model_loss(method.decoder, rows)

    def validate():
        nats, count = language_model_loss(method.decoder, UNEQUAL)
        return -nats.item(), nats.item() / count

    checkpoints = Checkpoints(out, {"method": "lora"}, every=1)
    history = train(
        method, UNEQUAL * 2, loss, lambda row: len(row.ids), SETTINGS, validate=validate, checkpoints=checkpoints
    )
    state = {name: tensor.tolist() for name, tensor in method.state().items()}
    return [history.losses, history.best_epoch, state]


def assert_equal_runs(found, expected):
    assert found[1] == expected[1]
    assert_close(np.array(found[0]), np.array(expected[0]), "law", terms=len(expected[0]))
    for name, tensor in expected[2].items():
        assert_close(np.array(found[2][name]), np.array(tensor), "law", name, terms=len(expected[0]))


@pytest.mark.parametrize("make", [lora, full])
@pytest.mark.parametrize("count", [2, 3])
def test_a_method_is_that_of_one_process_and_its_checkpoint_resumes_on_any_number_of_them(count, make, tmp_path):
    whole, job = adapted(make, tmp_path / "one"), partial(adapted, make, tmp_path / "job")
    ended = together(partial(job, stop=5, where=count - 1), count, tmp_path)
    assert (tmp_path / "job" / CHECKPOINT).exists()
    assert [problem[0] for problem in ended[:-1]] == ["ConnectionAbortedError"] * (count - 1)
    for found in together(job, 5 - count, tmp_path):
        assert_equal_runs(found, whole)
    assert_equal_runs(job(stop=1), whole)  # which takes no step


def test_a_process_keeps_its_part_of_the_blocks_weights_and_moments(tmp_path):
    def sizes():
        decoder = small_decoder()
        shard(decoder)
        learner = learner_of(
            dict(decoder.named_parameters()), partial(language_model_loss, decoder), TrainingSettings()
        )
        learner.backward([UNEQUAL])
        learner.optimizer_step(0.1)
        return {
            name: [own.numel(), *(moment.numel() for moment in learner.optimizer.state[own].values())]
            for name, own in learner.parameters.items()
        }

    parts = together(sizes, 3, tmp_path)
    for name, parameter in small_decoder().named_parameters():
        kept = [part[name] for part in parts]
        assert all(one == [one[0], 1, one[0], one[0]] for one in kept)
        held = sum(one[0] for one in kept)
        assert held == parameter.numel() * (1 if name.startswith("blocks.") else 3), name


@pytest.mark.parametrize("make", [lora, full])
def test_a_lost_process_ends_the_job_with_one_sentence_and_a_checkpoint(make, tmp_path):
    first, lost, other = together(partial(adapted, make, tmp_path / "job", stop=5, how=kill, where=1), 3, tmp_path)
    assert lost is None
    assert sorted([first[2], other[2]]) == [False, True], "one of them reports it"
    for name, sentence, _ in (first, other):
        assert name == "ConnectionAbortedError"
        assert sentence.startswith("a process of the job was lost (")
        assert sentence.endswith("; the same command continues from the last checkpoint")
    assert_equal_runs(adapted(make, tmp_path / "job"), adapted(make, tmp_path / "one"))


@pytest.mark.parametrize("make", [lora, full])
def test_ctrl_c_in_one_process_ends_all_after_the_same_step(make, tmp_path):
    press = partial(signal.raise_signal, signal.SIGINT)
    ended = together(partial(adapted, make, tmp_path / "job", stop=3, how=press, where=1), 2, tmp_path)
    assert [problem[:2] for problem in ended] == [["KeyboardInterrupt", "step 2 of 4"]] * 2
    assert sorted(problem[2] for problem in ended) == [False, True]
    assert (tmp_path / "job" / CHECKPOINT).exists()


def test_an_error_in_one_process_is_the_one_that_is_reported(tmp_path):
    def work():
        if distributed.process_number() == 1:
            raise ValueError("a row of this process")
        distributed.any_process(False)

    waiting, failed = together(work, 2, tmp_path)
    assert failed == ["ValueError", "a row of this process", True]
    assert (waiting[0], waiting[2]) == ("ConnectionAbortedError", False)


ADAPT = ["adapt", "--base", "tiny", "--task", "word_problems", "--train", "24", "--test", "20", "--threads", "1"]


def torchrun(*words):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minillm"]
    command = [sys.executable, *launcher, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_under_torchrun_adapt_prints_once_writes_once_and_finds_the_adapter_of_one_process(tmp_path):
    one = subprocess.run(
        [sys.executable, "-m", "minillm", *ADAPT, "--json", "--out", tmp_path / "1"], capture_output=True
    )
    two = torchrun(*ADAPT, "--json", "--out", tmp_path / "2")
    found, expected = json.loads(two.stdout), json.loads(one.stdout)
    assert found["accuracy"] == expected["accuracy"]
    assert_close(np.array(found["chosen"]["losses"]), np.array(expected["chosen"]["losses"]), "law in float32", terms=4)
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == sorted(
        path.name for path in (tmp_path / "1").iterdir()
    )
    other = torchrun(*ADAPT, "--seed", "1", "--out", tmp_path / "2")
    assert other.stderr.count("minillm: ") == other.stderr.count("holds a run with seed 0, and this one has 1") == 1
