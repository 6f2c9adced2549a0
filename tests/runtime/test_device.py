"""Where the arithmetic runs."""

import numpy as np
import pytest
import torch

from minillm import InputError
from minillm.runtime.device import autocast, best_precision, keep_freed_memory, peak_memory, pick_device, use_threads


def test_a_device_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(InputError, match=r"there is no device 'tpu' here; there is: .*cpu"):
        pick_device("tpu")
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cuda", "mps", "cpu")


def test_threads_are_as_many_as_are_asked_for_and_one_at_least():
    assert use_threads(2) == 2 == torch.get_num_threads()
    assert use_threads() == 2
    with pytest.raises(InputError, match="threads is 0; it must be at least 1"):
        use_threads(0)


def test_precision_is_float32_or_bfloat16_and_autocast_follows_it():
    cpu = torch.device("cpu")
    assert best_precision(cpu) in ("float32", "bfloat16")
    x = torch.ones(2, 2)
    with autocast(cpu, "bfloat16"):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(cpu, "float32"):
        assert (x @ x).dtype == torch.float32


def test_bfloat16_is_chosen_only_where_torch_uses_the_instructions_for_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for capability, precision in (("AVX512", "bfloat16"), ("AVX2", "float32"), ("DEFAULT", "float32")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert best_precision(torch.device("cpu")) == precision
    assert best_precision(torch.device("mps")) == "float32"


def test_the_peak_counts_what_was_freed_again():
    before = peak_memory(torch.device("cpu"))
    if before is None:
        pytest.skip("this system does not tell a process its peak memory")
    np.ones(before + 64_000_000, dtype=np.uint8)
    assert peak_memory(torch.device("cpu")) >= before + 64_000_000


def test_keeping_freed_memory_is_harmless_everywhere():
    keep_freed_memory()
