"""The norm in CUDA C++ equals numpy's: on a GPU, or with its source compiled for a CPU, one thread per CUDA thread."""

import ctypes
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.kernels.cuda import norm as cuda
from minillm.lab.check_operations import operation_case
from tests.kernels.against_numpy import DEVICE, assert_the_kernel_is_right, dtypes, examples, opcheck
from tests.strategies import randoms

HOST = Path(__file__).parent / "cuda_on_a_host"
LAUNCH = re.compile(r"(\w+<[\w, ]+>)<<<(\w+), (\w+), 0, stream>>>\(")
COMPILER = shutil.which("g++")
NVCC = shutil.which("nvcc")
KERNELS = 16  # both passes, in two types, in packs or not, of 8 or 32 numbers a thread


def source_for_a_host():
    """The same source without the <<<...>>> of its launches, which are not C++."""
    text, launches = LAUNCH.subn(r"start(\1, \2, \3, ", (cuda.HERE / "norm.cu").read_text())
    assert launches == 2
    return text


class OnAHost:
    """The launchers with the interface of `binding.cpp`, for CPU tensors."""

    def __init__(self):
        with TemporaryDirectory() as directory:
            source, library = Path(directory, "norm.cpp"), Path(directory, "norm.so")
            source.write_text(source_for_a_host())
            command = [COMPILER, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f"-I{HOST}"]
            done = subprocess.run([*command, source, "-o", library], capture_output=True, text=True)
            if "barrier" in done.stderr and "No such file" in done.stderr:
                pytest.skip("this compiler has no barriers of C++20")
            assert done.returncode == 0, done.stderr
            self.library = ctypes.CDLL(str(library))

    def forward(self, hidden, weight, out, inverse, eps, stream):
        rows, width = ctypes.c_int64(inverse.numel()), weight.numel()
        ends = rows, width, ctypes.c_float(eps), hidden.dtype == torch.bfloat16, None
        assert self.library.rms_norm_forward(*pointers(hidden, weight, out, inverse), *ends) == 0

    def backward(self, dout, hidden, weight, inverse, dhidden, weight_sums, stripe, stream):
        sizes = map(ctypes.c_int64, (inverse.numel(), stripe, weight_sums.shape[0]))
        ends = *sizes, weight.numel(), hidden.dtype == torch.bfloat16, None
        given = pointers(dout, hidden, weight, inverse, dhidden, weight_sums)
        assert self.library.rms_norm_backward(*given, *ends) == 0


def pointers(*tensors):
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


@cache
def on_a_host():
    return OnAHost()


@pytest.fixture(autouse=True)
def launchers(request, monkeypatch):
    """Compiled by nvcc on a machine with a GPU, else for the host."""
    if torch.cuda.is_available():
        if NVCC is None:
            pytest.skip("there is no nvcc, which compiles CUDA C++")
    elif COMPILER is None:
        pytest.skip("there is no g++, which would compile the kernels for a CPU")
    else:
        monkeypatch.setattr(cuda, "compiled", on_a_host)


@pytest.fixture
def in_place_of_tritons(monkeypatch):
    monkeypatch.setattr("minillm.kernels.norm.rms_norm", cuda.rms_norm)
    monkeypatch.setattr(cuda, "STRIPES", 2)  # so that a block has several rows, and the last block fewer


# Widths that are multiples of the packs of both types, one or none; more than 8 elements per thread, packed or not.
widths = st.sampled_from((1, 4, 7, 8, 61, 64, 264, 576, 2056, 2051))
rows = st.one_of(st.tuples(st.sampled_from((0, 1, 2, 5))), st.just((3, 2)))


@pytest.mark.usefixtures("in_place_of_tritons")
@examples
@given(rows, widths, st.sampled_from((1e-5, 0.3)), dtypes, randoms)
def test_the_norm_in_cuda_equals_numpys(rows, width, eps, dtype, random):
    hidden, weight = random.normal(size=(*rows, width)), random.normal(size=width)
    assert_the_kernel_is_right(operation_case("norm", "rms_norm", hidden=hidden, weight=weight, eps=eps), random, dtype)


@pytest.mark.parametrize("width", [7, 2056])
def test_rows_that_are_not_aligned_to_16_bytes_are_supported(width):
    hidden = torch.randn(5 * width + 1, device=DEVICE)[1:].view(5, width)
    weight = torch.randn(width, device=DEVICE)
    expected = torch.nn.functional.rms_norm(hidden, weight.shape, weight, 1e-5)
    assert torch.allclose(cuda.rms_norm(hidden, weight, 1e-5), expected, atol=1e-5)


def test_the_norm_in_cuda_is_a_registered_torch_operation():
    hidden, weight = (torch.randn(shape, device=DEVICE, requires_grad=True) for shape in ((2, 3, 8), (8,)))
    opcheck(cuda._rms_norm, hidden, weight, 1e-5)


def test_unsupported_inputs_are_refused_in_a_sentence(monkeypatch):
    weight = torch.ones(3, device=DEVICE)
    with pytest.raises(InputError, match="both be float32 or both bfloat16"):
        cuda.rms_norm(torch.ones(2, 3, device=DEVICE, dtype=torch.bfloat16), weight, 1e-5)
    with pytest.raises(InputError, match="at most 8192"):
        cuda.rms_norm(torch.ones(2, 8193, device=DEVICE), torch.ones(8193, device=DEVICE), 1e-5)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="run on a GPU, and CUDA finds none"):
        cuda.compiled.__wrapped__()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="needs nvcc"):
        cuda.compiled.__wrapped__()


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc, which compiles CUDA C++")
def test_nvcc_compiles_it_without_spills_and_with_wide_loads(tmp_path):
    ptx = tmp_path / "norm.ptx"
    subprocess.run([NVCC, "--ptx", "-arch=compute_80", cuda.HERE / "norm.cu", "-o", ptx], check=True)
    kernels = re.findall(r"\.visible \.entry (\w+)\((.*?)\n\}", ptx.read_text(), re.S)
    assert len(kernels) == KERNELS
    for name, body in kernels:
        packed = "Li1E" not in name  # a pack of one number
        assert bool(re.search(r"ld\.global\.\w*\.?v4\.", body)) == packed, f"{name}: 16 bytes at a time"
        assert "shfl.sync.bfly" in body
        assert "bar.sync" in body
    targets = [word for one in (80, 90) for word in ("-gencode", f"arch=compute_{one},code=sm_{one}")]
    command = [NVCC, "-fatbin", *targets, "-Xptxas", "-v", cuda.HERE / "norm.cu", "-o", tmp_path / "norm.fatbin"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert report.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 2 * KERNELS, report


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU every test above goes through the binding")
def test_the_binding_passes_torchs_tensors_to_the_launchers(tmp_path):
    cpp_extension = pytest.importorskip("torch.utils.cpp_extension")
    if not cpp_extension.is_ninja_available():
        pytest.skip("there is no ninja, which torch compiles extensions with")
    source = tmp_path / "norm.cpp"
    source.write_text(source_for_a_host())
    bound = cpp_extension.load(
        "minillm_rms_norm_on_a_host", [str(source), str(cuda.HERE / "binding.cpp")], build_directory=str(tmp_path),
        extra_cflags=["-std=c++20", "-O1"], extra_include_paths=[str(HOST)],
    )  # fmt: skip
    hidden, dout, weight = torch.randn(5, 12), torch.randn(5, 12), torch.randn(12)
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for launchers in (bound, on_a_host()):
            given = [tensor.to(dtype) for tensor in (hidden, dout, weight)]
            out, dhidden = (torch.full((5, 12), torch.nan, dtype=dtype) for _ in range(2))
            inverse, sums = torch.full((5,), torch.nan), torch.full((3, 12), torch.nan)
            launchers.forward(given[0], given[2], out, inverse, 1e-5, 0)
            launchers.backward(given[1], given[0], given[2], inverse, dhidden, sums, 2, 0)
            found.append((out, inverse, dhidden, sums))
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
