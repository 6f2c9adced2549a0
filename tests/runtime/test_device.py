"""Devices, threads, precision and memory."""

import numpy as np
import pytest
import torch

from minillm import InputError
from minillm.runtime.device import autocast, best_precision, keep_freed_memory, peak_memory, pick_device, use_threads


def test_a_device_that_is_not_available_raises():
    with pytest.raises(InputError, match=r"no device 'tpu' on this machine; available: .*cpu"):
        pick_device("tpu")
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cuda", "mps", "cpu")


def test_threads_can_be_set_and_are_at_least_one():
    assert use_threads(2) == 2 == torch.get_num_threads()
    assert use_threads() == 2
    for count in (0, 100_000):
        with pytest.raises(InputError, match=f"threads must be at least 1 and at most [0-9]+, got {count}"):
            use_threads(count)


def test_precision_is_float32_or_bfloat16_and_autocast_follows_it():
    cpu, x = torch.device("cpu"), torch.ones(2, 2)
    assert best_precision(cpu) in ("float32", "bfloat16")
    for precision in ("bfloat16", "float32"):
        with autocast(cpu, precision):
            assert (x @ x).dtype == getattr(torch, precision)


def test_bfloat16_is_chosen_only_if_torch_uses_the_instructions_for_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for capability, precision in (("AVX512", "bfloat16"), ("AVX2", "float32"), ("DEFAULT", "float32")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert best_precision(torch.device("cpu")) == precision
    assert best_precision(torch.device("mps")) == "float32"


def test_the_peak_includes_memory_that_was_freed():
    before = peak_memory(torch.device("cpu"))
    if before is None:
        pytest.skip("this system does not report a process's peak memory")
    np.ones(before + 64_000_000, dtype=np.uint8)
    assert peak_memory(torch.device("cpu")) >= before + 64_000_000


def test_keeping_freed_memory_works_on_every_system():
    keep_freed_memory()
