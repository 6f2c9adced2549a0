"""Every kernel compiles for its GPUs: it spills no registers, fits into shared memory and uses tensor cores."""

import json
import os
import subprocess
import sys

import pytest

from tests.kernels import against_numpy  # noqa: F401  skips where triton is missing
from tests.kernels.specimens import SPECIMENS

# Bytes of shared memory that one block may take (CUDA C++ Programming Guide, table of compute capabilities).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}


def compile_specimen(name):
    """In its own process, because the interpreter is chosen when triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "tests.kernels.ahead_of_time", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECIMENS)
def test_a_kernel_compiles_for_gpus_that_are_not_available(name):
    rows = compile_specimen(name)
    assert {row["architecture"] for row in rows} == set(SHARED_MEMORY)
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["shared"] <= SHARED_MEMORY[row["architecture"]], row
        if row["dtype"] == "bfloat16":
            assert bool(row["tensor_cores"]) == (row["kernel"] in SPECIMENS[name].multiplies), row
    assert set(SPECIMENS[name].multiplies) <= {row["kernel"] for row in rows}
