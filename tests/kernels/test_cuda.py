"""The norm in CUDA C++ equals numpy's: on a GPU, or with its source compiled for a CPU, one thread per CUDA thread."""

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

from minillm import InputError, operations
from minillm.kernels.cuda import norm as cuda
from minillm.lab.check_operations import operation_case
from minillm.lab.trust import by_ratio
from tests.kernels.against_numpy import DEVICE, dtypes, examples
from tests.strategies import randoms
from tests.tolerances import assert_good

HOST = Path(__file__).parent / "cuda_on_a_host"
LAUNCH = re.compile(r"(\w+<[\w, ]+>)<<<(\w+), (\w+), 0, stream>>>\(")
COMPILER = shutil.which("g++")
NVCC = shutil.which("nvcc")
KERNELS = 16  # both passes, in two types, in packs or not, of 8 or 32 numbers a thread


@cache
def on_a_host():
    """The launchers for CPU tensors, from the same source without its <<<...>>>, which are not C++."""
    text, launches = LAUNCH.subn(r"start(\1, \2, \3, ", cuda.SOURCE.read_text())
    assert launches == 2
    with TemporaryDirectory() as directory:
        source = Path(directory, "norm.cpp")
        source.write_text(text)
        try:
            return cuda.build([COMPILER, "-std=c++20", "-O1", "-fPIC", "-pthread", f"-I{HOST}"], source)
        except InputError as problem:
            if "barrier" in str(problem) and "No such file" in str(problem):
                pytest.skip("this compiler has no barriers of C++20")
            raise


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
def as_the_fast_form(monkeypatch):
    plain = operations.rms_norm
    monkeypatch.setattr(operations, "rms_norm", lambda **inputs: (cuda.rms_norm if under_fast() else plain)(**inputs))
    monkeypatch.setattr(cuda, "STRIPES", 2)  # so that a block has several rows, and the last block fewer


def under_fast():
    return operations.current_backend() == operations.FAST


# Widths that are multiples of the packs of both types, one or none; more than 8 elements per thread, packed or not.
widths = st.sampled_from((1, 4, 7, 8, 61, 64, 264, 576, 2056, 2051))
rows = st.one_of(st.tuples(st.sampled_from((0, 1, 2, 5))), st.just((3, 2)))


@pytest.mark.slow
@pytest.mark.usefixtures("as_the_fast_form")
@examples
@given(rows, widths, st.sampled_from((1e-5, 0.3)), dtypes, randoms)
def test_the_norm_in_cuda_equals_numpys(rows, width, eps, dtype, random):
    hidden, weight = random.normal(size=(*rows, width)), random.normal(size=width)
    case = operation_case("norm", "rms_norm", hidden=hidden, weight=weight, eps=eps)
    assert_good(by_ratio(case, random, dtype, DEVICE, operations.FAST), f"numpy vs the kernel, {dtype}")


@pytest.mark.parametrize("width", [7, 2056])
def test_rows_that_are_not_aligned_to_16_bytes_are_supported(width):
    hidden = torch.randn(5 * width + 1, device=DEVICE)[1:].view(5, width)
    weight = torch.randn(width, device=DEVICE)
    expected = torch.nn.functional.rms_norm(hidden, weight.shape, weight, 1e-5)
    assert torch.allclose(cuda.rms_norm(hidden, weight, 1e-5), expected, atol=1e-5)


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


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc, which compiles CUDA C++")
def test_nvcc_compiles_it_without_spills_and_with_wide_loads(tmp_path):
    assert cuda.build([NVCC, "-arch=sm_80", "-Xcompiler", "-fPIC"], cuda.SOURCE).rms_norm_forward
    ptx = tmp_path / "norm.ptx"
    subprocess.run([NVCC, "--ptx", "-arch=compute_80", cuda.SOURCE, "-o", ptx], check=True)
    kernels = re.findall(r"\.visible \.entry (\w+)\((.*?)\n\}", ptx.read_text(), re.S)
    assert len(kernels) == KERNELS
    for name, body in kernels:
        packed = "Li1E" not in name  # a pack of one number
        assert bool(re.search(r"ld\.global\.\w*\.?v4\.", body)) == packed, f"{name}: 16 bytes at a time"
        assert "shfl.sync.bfly" in body
        assert "bar.sync" in body
    targets = [word for one in (80, 90) for word in ("-gencode", f"arch=compute_{one},code=sm_{one}")]
    command = [NVCC, "-fatbin", *targets, "-Xptxas", "-v", cuda.SOURCE, "-o", tmp_path / "norm.fatbin"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert report.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 2 * KERNELS, report
