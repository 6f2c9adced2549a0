"""The numbers with two threads, which share products, rows and sums: what `MINILLM_TEST_THREADS=2` runs in whole."""

import numpy as np
import pytest
import torch

from minillm.lab import check as checks
from minillm.lab.check_operations import operation_case
from minillm.lab.trust import against_numpy, by_ratio, here
from minillm.operations import FAST, PLAIN, backend
from tests import laws
from tests.reference import test_training
from tests.tolerances import assert_good

# More rows than torch leaves to one thread.
ROWS, WIDTH, CPU = 1031, 61, torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(2)


def _arguments(random):
    hidden, up = random.normal(size=(2, ROWS, WIDTH))
    weight, a, b = (random.normal(size=shape) / 8 for shape in ((67, WIDTH), (5, WIDTH), (67, 5)))
    yield "linear", "linear", {"x": hidden, "weight": weight, "bias": random.normal(size=67)}
    yield "norm", "rms_norm", {"hidden": hidden, "weight": random.normal(size=WIDTH), "eps": 1e-5}
    yield "norm", "layer_norm", {"hidden": hidden, "weight": hidden[0], "bias": hidden[1], "eps": 1e-5}
    yield "feed_forward", "swiglu", {"gate": hidden, "up": up}
    yield "softmax", "softmax", {"scores": hidden}
    yield "lora", "lora", {"x": hidden, "weight": weight, "bias": None, "a": a, "b": b, "scale": 2.0}
    labels = random.integers(0, 67, ROWS)
    yield "linear_cross_entropy", "linear_cross_entropy", {"hidden": hidden, "weight": weight, "labels": labels}
    sides = {side: random.normal(size=(3, heads, 67, 8)) for side, heads in (("query", 6), ("key", 2), ("value", 2))}
    yield "attention", "attention", sides


@pytest.mark.parametrize("by", [PLAIN, FAST])
def test_operations_whose_numbers_are_shared_by_two_threads_are_right(by):
    random = np.random.default_rng(0)
    for file, name, arguments in _arguments(random):
        case = operation_case(file, name, **arguments)
        with backend(by):
            assert_good(here(case, random, torch.float32, CPU), f"{name}, numpy vs torch ({by}), float32")
        assert_good(against_numpy(case, random, by), f"{name}, numpy vs torch ({by}), float64")
        assert_good(by_ratio(case, random, torch.bfloat16, CPU, FAST), f"{name}, numpy vs the fast form, bfloat16")


def test_the_whole_check_is_good():
    found = checks.check(checks.Check("tiny", device="cpu", threads=2))
    assert (found["threads"], checks.failed(found)) == (2, [])


@pytest.mark.parametrize("name", ["LoRA", "prefix, random"])
@pytest.mark.parametrize("number", [4, 6])
def test_laws_hold(number, name):
    laws.LAWS[number].holds(name, "Llama")


def test_training_steps_have_numpys_losses():
    test_training.test_full_and_partial_fine_tuning_have_torchs_first_twenty_losses("Llama", "")
