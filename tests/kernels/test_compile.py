"""torch.compile supports operations with kernels: one graph that contains the kernel, with the same results."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")


@pytest.mark.slow
def test_compiled_programs_keep_the_kernels_the_results_and_the_choice_of_implementation():
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    command = [sys.executable, "-m", "tests.kernels.compiled"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["kernel"] == ["minillm::norm"]
    assert found["forced"], "an operation, without a graph break"
    assert found["chosen"], "three operations, one of which casts"
    assert found["decoders"] == {"fast": True, "triton": True}, "one graph, even if blocks are recomputed"
    assert found["by backend"] == ["plain", "fast", "triton"], "another backend is another program; none is recompiled"
    answers, programs = found["by sizes"]
    assert answers == [True, True, True, False, False, True]
    assert programs == 3, "one for the first size, and then one for each choice with symbolic sizes"
