"""torch.compile supports operations with kernels: one graph that contains the kernel, with the same results."""

import json
import os
import subprocess
import sys
from functools import cache

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")


# All tests in one worker, which compiles once.
pytestmark = pytest.mark.xdist_group("torch.compile")


@cache
def found():
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    command = [sys.executable, "-m", "tests.kernels.compiled"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_a_compiled_program_has_the_same_results_and_no_graph_break():
    assert found()["kernel"] == ["minillm::norm"]
    assert found()["forced"]
    assert found()["chosen"]


def test_a_whole_decoder_is_one_graph_even_if_blocks_are_recomputed():
    assert found()["decoders"] == {"fast": True, "triton": True}


def test_another_backend_is_another_program():
    assert found()["by backend"] == ["plain", "fast", "triton"], "and none is recompiled"


def test_one_program_serves_all_sizes_with_the_same_choice():
    answers, programs = found()["by sizes"]
    assert answers == [True, True, True, False, False, True]
    assert programs == 3, "one for the first size, and then one for each choice with symbolic sizes"
