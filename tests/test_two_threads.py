"""Operations on so many rows that two threads share them. MINILLM_TEST_THREADS=2 runs whole suites with two threads."""

import pytest
import torch

from minillm.lab import check, check_operations


@pytest.mark.slow
def test_operations_equal_numpys(monkeypatch):
    torch.set_num_threads(2)
    # More rows than torch leaves to one thread.
    monkeypatch.setattr(check_operations, "BATCH", 300)
    # Central differences compare numpy with itself, and whole suites test decoders.
    monkeypatch.setattr(check, "differences", lambda case, random: None)
    monkeypatch.setattr(check, "decoder_cases", lambda config, random: [])
    found = check.check(check.Check(base="tiny", device="cpu", threads=2))
    assert (found["threads"], check.failed(found)) == (2, [])
