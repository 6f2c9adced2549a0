"""The ladder of trust: every operation x implementation x (output, every gradient) against numpy, on drawn sizes."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import operations
from minillm.lab.trust import against_numpy, by_ratio, differences, here
from minillm.operations import FAST, PLAIN, TRITON, backend
from tests.strategies import FOR_KERNELS, FOR_ROUNDING, OPERATIONS, cases, randoms
from tests.tolerances import assert_good

CPU, GPU = torch.device("cpu"), torch.device("cuda" if torch.cuda.is_available() else "cpu")
NO_OPERATIONS = {"BACKENDS", "IGNORED", "Prefix", "backend", "bound", "current_backend"}
dtypes = st.sampled_from((torch.float32, torch.bfloat16))
# Triton's interpreter takes its time: a fifth of the examples that the others have.
few = settings(max_examples=max(settings.default.max_examples // 5, 1))


def with_a_file_in(room):
    """Operations that have an implementation there, by its text: without triton a kernel's file cannot be imported."""
    home = Path(minillm.__file__).parent / room
    files = {name: home / f"{file}.py" for name, (file, _) in OPERATIONS.items()}
    return [name for name, path in files.items() if path.exists() and f"\ndef {name}(" in path.read_text("utf-8")]


def test_every_operation_is_under_test():
    assert set(operations.__all__) - NO_OPERATIONS == set(OPERATIONS)


every_fast_one = pytest.mark.parametrize("name", with_a_file_in("fast"))
every_torch_one = pytest.mark.parametrize(
    ("name", "by"), [(name, PLAIN) for name in OPERATIONS] + [(name, FAST) for name in with_a_file_in("fast")]
)


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data(), random=randoms)
def test_numpys_gradients_are_those_of_differences(name, data, random):
    assert_good(differences(data.draw(cases(name)), random), "numpy vs differences, float64")


@every_torch_one
@given(data=st.data(), random=randoms)
def test_torch_equals_numpy_in_float64(name, by, data, random):
    assert_good(against_numpy(data.draw(cases(name)), random, by), f"numpy vs torch ({by}), float64")


@every_torch_one
@given(data=st.data(), dtype=st.sampled_from((torch.float64, torch.float32, torch.bfloat16)), random=randoms)
def test_torch_rounds_and_does_nothing_else(name, by, dtype, data, random):
    with backend(by):
        found = here(data.draw(cases(name, FOR_ROUNDING)), random, dtype, CPU)
    assert_good(found, f"numpy vs torch ({by}), {dtype}")


@every_fast_one
@given(data=st.data(), dtype=dtypes, random=randoms)
def test_the_fast_form_is_as_near_to_numpy_as_the_formula(name, dtype, data, random):
    found = by_ratio(data.draw(cases(name, FOR_ROUNDING)), random, dtype, CPU, FAST)
    assert_good(found, f"numpy vs the fast form, {dtype}")


@pytest.mark.parametrize("name", with_a_file_in("kernels"))
@few
@given(data=st.data(), dtype=dtypes, random=randoms)
def test_the_kernel_is_as_near_to_numpy_as_the_fast_form(name, dtype, data, random):
    pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")
    found = by_ratio(data.draw(cases(name, FOR_KERNELS)), random, dtype, GPU, TRITON)
    assert found is not None, f"no kernel took part in {name}"
    assert_good(found, f"numpy vs the kernel, {dtype}")
