"""Results with two threads, which share products, rows and sums. MINILLM_TEST_THREADS=2 runs whole suites with two."""

import pytest
import torch

from minillm.lab import check, check_operations
from tests import laws
from tests.reference import test_training

# `.ci/run` runs whole suites with two threads.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(2)


def test_operations_equal_numpys(monkeypatch):
    # More rows than torch leaves to one thread.
    monkeypatch.setattr(check_operations, "BATCH", 300)
    # Central differences compare numpy with itself, and decoders are tested below.
    monkeypatch.setattr(check, "differences", lambda case, random: None)
    monkeypatch.setattr(check, "decoder_cases", lambda config, random: [])
    found = check.check(check.Check(config="tiny", device="cpu", threads=2))
    assert (found["threads"], check.failed(found)) == (2, [])


@pytest.mark.parametrize(("number", "name"), [(4, "LoRA"), (6, "prefix, random")])
def test_laws_hold(number, name):
    laws.LAWS[number].holds(name, "Llama")


def test_training_steps_have_numpys_losses():
    test_training.test_fine_tuning_and_lora_have_torchs_first_twenty_losses("Llama", "")
