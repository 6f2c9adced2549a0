"""The choice of an implementation (plain, fast or kernel): forced, by thread, by measurement, at no cost on a CPU."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib import import_module
from itertools import product
from threading import Barrier, Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from minillm import InputError, backend, operations
from minillm.adapt import LoRA, PrefixTuning
from minillm.config import DecoderConfig
from minillm.fast import attention as fast_attention
from minillm.kernels import _measured
from minillm.lab.check_operations import FROZEN, operation_cases
from minillm.ops import attention as plain_attention
from tests.decoders import STYLES, random_decoder
from tests.strategies import OPERATIONS, implemented_in

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def triton():
    return pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")


class Dispatched(TorchDispatchMode):
    """Records the names of the operations that torch dispatches, in order."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def under(name):
    return backend(name) if name else nullcontext()


def computed_by(dtype=torch.float32):
    with Dispatched() as seen:
        operations.gelu(torch.ones(3, device=DEVICE, dtype=dtype))
    if any(name.startswith("minillm::") for name in seen.names):
        return "triton"
    return "fast" if "aten::gelu" in seen.names else "plain"


def test_a_backend_is_forced_inside_its_block_and_the_innermost_wins(triton):
    assert computed_by() == "fast"
    for outer, inner in product(operations.BACKENDS, repeat=2):
        with backend(outer):
            assert computed_by() == operations.current_backend() == outer
            with backend(inner):
                assert computed_by() == inner
            assert computed_by() == outer
    assert computed_by() == "fast"
    assert operations.current_backend() is None


def test_the_kernels_do_not_compute_in_float64(triton):
    with backend("triton"):
        assert computed_by(torch.float64) == "fast"
        assert computed_by(torch.bfloat16) == "triton"


def test_the_backend_is_restored_after_an_exception_and_an_unknown_or_missing_one_is_refused(monkeypatch):
    monkeypatch.setattr("minillm.operations.find_spec", lambda name: None)
    with backend("plain"):
        with pytest.raises(KeyError), backend("fast"):
            raise KeyError
        with pytest.raises(InputError, match="one of plain, fast, triton, got 'cuda'"), backend("cuda"):
            pass
        with pytest.raises(InputError, match=r"pip install 'minillm\[kernels\]'"), backend("triton"):
            pass
        assert computed_by() == "plain"
    assert computed_by() == "fast"


def test_each_thread_has_a_backend_of_its_own():
    barrier, found = Barrier(3, timeout=60), {}

    def compute(name):
        with under(name):
            barrier.wait()
            found[name] = computed_by()
            barrier.wait()

    with backend("plain"):
        threads = [Thread(target=compute, args=(name,)) for name in ("plain", "fast", None)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {"plain": "plain", "fast": "fast", None: "fast"}
        assert computed_by() == "plain"


@pytest.mark.parametrize(
    ("forward", "backward"), [("plain", None), ("plain", "fast"), ("fast", "plain"), (None, "plain")]
)
def test_recomputed_blocks_use_the_backend_of_the_forward_pass(forward, backward, monkeypatch):
    called = []
    for name, module in (("plain", plain_attention), ("fast", fast_attention)):

        def recorded(*sides, name=name, right=module.attention, **options):
            called.append(name)
            return right(*sides, **options)

        monkeypatch.setattr(module, "attention", recorded)
    decoder = random_decoder(STYLES["Llama"]).train()
    decoder.recompute = True
    with under(forward):
        loss = decoder(torch.tensor([[3, 1, 4]])).sum()
    with under(backward):
        loss.backward()
    assert called == 4 * [forward or "fast"], "two blocks, forward and recomputed"


ROWS = {
    ("this GPU", "rms_norm", torch.bfloat16): [((64, 128), 1.3), ((4096, 128), 0.8), ((64, 4096), 2.0)],
    ("this GPU", "layer_norm", torch.bfloat16): [((64, 128), 1.0)],
}


@pytest.fixture
def measured(monkeypatch):
    """Sets the speedups that were measured and the name of the GPU."""

    def on(gpu, rows):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name=gpu))
        monkeypatch.setattr(_measured, "MEASURED", rows)
        _measured._remembered.cache_clear()

    yield on
    _measured._remembered.cache_clear()


def chosen(operation, *sizes, dtype=torch.bfloat16):
    with FakeTensorMode():
        tensor = torch.empty(1, device="cuda", dtype=dtype)
    return operations.by_kernel(operation, tensor, lambda: sizes)


@pytest.mark.parametrize(
    ("sizes", "faster"),
    [
        ((64, 128), True), ((4096, 128), False), ((500, 128), True), ((524, 128), False), ((0, 1), True),
        ((4096, 5000), False), ((2000, 4096), True), ((10**6, 10**6), False), ((1, 10**6), True),
    ],
)  # fmt: skip
def test_the_nearest_measured_sizes_decide(sizes, faster, measured):
    """On a logarithmic scale 512 rows are half way between 64 and 4096."""
    measured("this GPU", ROWS)
    assert chosen("rms_norm", *sizes) is faster


def test_a_kernel_is_used_only_where_it_was_measured_to_be_faster(measured):
    measured("this GPU", ROWS)
    assert chosen("rms_norm", 64, 128)
    assert not chosen("layer_norm", 64, 128), "a speedup of 1 is not enough"
    assert not chosen("gelu", 64, 128)
    assert not chosen("rms_norm", 64, 128, dtype=torch.float32)
    assert not chosen("rms_norm", 64), "another number of sizes"
    for name in ("plain", "fast"):
        with backend(name):
            assert not chosen("rms_norm", 64, 128)
    for gpu, rows in (("another GPU", ROWS), ("this GPU", {})):
        measured(gpu, rows)
        assert not chosen("rms_norm", 64, 128)


def test_the_file_of_measured_speedups_is_valid():
    assert all(speedup > 0 for rows in _measured._read().values() for _, speedup in rows)


def dispatched(case):
    """The operations of the forward and backward pass in float32; a frozen matrix needs no gradient."""
    tensors = {name: torch.from_numpy(array.copy()) for name, array in case.inputs.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float().requires_grad_(not (case.what in FROZEN and name == "weight"))
    with Dispatched() as seen:
        out = case.run(tensors, torch.float32, torch.device("cpu"))
        if out.requires_grad:
            out.sum().backward()
    return seen.names


def test_on_a_cpu_the_choice_adds_no_torch_operation(monkeypatch):
    """Compared with the implementation itself, called in its place."""
    for case in operation_cases(DecoderConfig.tiny(), np.random.default_rng(0)):
        file, name = OPERATIONS[case.what][0], case.what
        plain = getattr(import_module(f"minillm.ops.{file}"), name)
        fast = getattr(import_module(f"minillm.fast.{file}"), name) if name in implemented_in("fast") else plain
        for forced, implementation in (("plain", plain), ("fast", fast), (None, fast)):
            with under(forced):
                found = dispatched(case)
            with monkeypatch.context() as patch:
                patch.setattr(operations, name, implementation)
                assert found == dispatched(case), f"{name}, {forced}"
            assert not any(of_torch.startswith("minillm") for of_torch in found)


def dispatched_by_decoders():
    """The operations of forward and backward passes: of the decoder, with LoRA, with a prefix, and of the loss."""
    with Dispatched() as seen:
        for style in ("figure 1", "GPT-2", "Llama"):
            decoder = random_decoder(STYLES[style]).float()
            ids = torch.arange(10).view(2, 5)
            for model in (decoder, LoRA(decoder, r=2, alpha=2, targets="all-linear"), PrefixTuning(decoder, 3)):
                model(ids).sum().backward()
            hidden = decoder.features(ids).flatten(0, 1)
            operations.linear_cross_entropy(hidden, decoder.head.weight, ids.flatten()).backward()
    return seen.names


def test_on_a_cpu_the_kernels_add_no_operation_to_a_decoder(monkeypatch):
    """The same list by default, with the fast implementations forced, and without the package of the kernels."""
    lists = [dispatched_by_decoders()]
    with backend("fast"):
        lists.append(dispatched_by_decoders())
    monkeypatch.setitem(sys.modules, "minillm.kernels", None)
    lists.append(dispatched_by_decoders())
    assert len(lists[0]) > 1000
    assert not any(name.startswith("minillm::") for name in lists[0])
    assert all(names == lists[0] for names in lists)


PROGRAM = """
import json, sys, torch, minillm
decoder = minillm.Decoder(minillm.DecoderConfig.tiny())
decoder(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
for name in ("plain", "fast"):
    with minillm.backend(name):
        decoder(torch.zeros(1, 3, dtype=torch.long))
print(json.dumps([name for name in sys.modules if name.startswith(("triton", "minillm.kernels"))]))
"""


def test_a_cpu_imports_no_kernel():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
