"""Who computes: torch, unless a kernel is forced or was measured to be quicker; and on a CPU asking costs nothing."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from minillm import InputError, ops
from minillm.adapt import LoRA, PrefixTuning
from minillm.kernels import _measured
from minillm.lab.trust import OurKernels
from minillm.ops.linear_cross_entropy import linear_cross_entropy
from minillm.ops.norm import rms_norm
from tests.decoders import STYLES, random_decoder

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def triton():
    return pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")


def computed_by_a_kernel(dtype=torch.float32):
    with OurKernels() as kernels:
        rms_norm(torch.ones(2, 3, device=DEVICE, dtype=dtype), torch.ones(3, device=DEVICE, dtype=dtype), 1e-5)
    return kernels.seen == ["minillm::norm"]


def test_a_backend_is_forced_inside_alone_and_the_innermost_wins(triton):
    assert not computed_by_a_kernel()
    with ops.backend("triton"):
        assert computed_by_a_kernel()
        with ops.backend("torch"):
            assert not computed_by_a_kernel()
        assert computed_by_a_kernel()
    assert not computed_by_a_kernel()


def test_what_was_chosen_before_is_restored_after_an_exception(triton):
    with ops.backend("triton"):
        with pytest.raises(KeyError), ops.backend("torch"):
            raise KeyError
        with pytest.raises(InputError), ops.backend("cuda"):
            pass
        assert computed_by_a_kernel()
    assert not computed_by_a_kernel()


def test_double_precision_is_left_to_torch(triton):
    with ops.backend("triton"):
        assert not computed_by_a_kernel(torch.float64)
        assert computed_by_a_kernel(torch.bfloat16)


def test_there_is_no_other_backend_and_none_without_triton(monkeypatch):
    with pytest.raises(InputError, match="no backend 'cuda'; there are: torch, triton"), ops.backend("cuda"):
        pass
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'minillm\[kernels\]'"), ops.backend("triton"):
        pass


ROWS = {
    ("this GPU", "rms_norm", torch.bfloat16): [((64, 128), 1.3), ((4096, 128), 0.8), ((64, 4096), 2.0)],
    ("this GPU", "layer_norm", torch.bfloat16): [((64, 128), 1.0)],
}


@pytest.fixture
def measured(monkeypatch):
    """What was measured, on a GPU that torch says is there."""

    def on(gpu, rows):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name=gpu))
        monkeypatch.setattr(_measured, "MEASURED", rows)
        _measured._remembered.cache_clear()

    yield on
    _measured._remembered.cache_clear()


def chosen(operation, *sizes, dtype=torch.bfloat16):
    with FakeTensorMode():
        tensor = torch.empty(1, device="cuda", dtype=dtype)
    return ops.by_kernel(operation, tensor, *sizes)


@pytest.mark.parametrize(
    ("sizes", "quicker"),
    [
        ((64, 128), True), ((4096, 128), False), ((500, 128), True), ((524, 128), False), ((0, 1), True),
        ((4096, 5000), False), ((2000, 4096), True), ((10**6, 10**6), False), ((1, 10**6), True),
    ],
)  # fmt: skip
def test_the_nearest_sizes_that_were_measured_decide(sizes, quicker, measured):
    """Half way between 64 and 4096 stand 512 rows: an eighth of the one, eight times the other."""
    measured("this GPU", ROWS)
    assert chosen("rms_norm", *sizes) is quicker


def test_what_was_not_measured_is_left_to_torch(measured):
    measured("this GPU", ROWS)
    assert chosen("rms_norm", 64, 128)
    assert not chosen("layer_norm", 64, 128), "as quick is not quicker"
    assert not chosen("add_rms_norm", 64, 128)
    assert not chosen("rms_norm", 64, 128, dtype=torch.float32)
    assert not chosen("rms_norm", 64), "sizes of another meaning"
    with ops.backend("torch"):
        assert not chosen("rms_norm", 64, 128)
    measured("another GPU", ROWS)
    assert not chosen("rms_norm", 64, 128)
    measured("this GPU", {})
    assert not chosen("rms_norm", 64, 128)


def test_the_file_of_what_was_measured_can_be_read():
    assert all(times > 0 for rows in _measured._read().values() for _, times in rows)


class Dispatched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def dispatched():
    """Every operation of forward passes and backward passes: plain, under LoRA and behind a prefix, and of the loss."""
    with Dispatched() as modes:
        for style in ("figure 1", "GPT-2", "Llama"):
            decoder = random_decoder(STYLES[style]).float()
            ids = torch.arange(10).view(2, 5)
            for model in (decoder, LoRA(decoder, r=2, alpha=2, targets="all-linear"), PrefixTuning(decoder, 3)):
                model(ids).sum().backward()
            hidden = decoder.features(ids).flatten(0, 1)
            linear_cross_entropy(hidden, decoder.head.weight, ids.flatten()).backward()
    return modes.names


def test_on_a_cpu_kernels_cost_no_operation(monkeypatch):
    """With the choice, with torch forced, without the package of the kernels, and with nobody asking: the same list."""
    lists = [dispatched()]
    with ops.backend("torch"):
        lists.append(dispatched())
    monkeypatch.setitem(sys.modules, "minillm.kernels", None)
    lists.append(dispatched())
    for file in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"minillm.ops.{file.name}")
        if hasattr(module, "by_kernel"):
            monkeypatch.setattr(module, "by_kernel", lambda *_: False)
    lists.append(dispatched())
    assert len(lists[0]) > 1000
    assert not any(name.startswith("minillm::") for name in lists[0])
    assert all(names == lists[0] for names in lists)


PROGRAM = """
import json, sys, torch, minillm
from minillm import ops
decoder = minillm.Decoder(minillm.DecoderConfig.tiny())
decoder(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
with ops.backend("torch"):
    decoder(torch.zeros(1, 3, dtype=torch.long))
print(json.dumps([name for name in sys.modules if name.startswith(("triton", "minillm.kernels"))]))
"""


def test_a_cpu_imports_no_kernel():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
