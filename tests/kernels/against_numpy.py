"""A kernel against numpy, the last rung of the ladder of trust: on a GPU, or interpreted."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")

from minillm.lab.trust import by_ratio
from tests.tolerances import assert_good

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

dtypes = st.sampled_from((torch.float32, torch.bfloat16))
# The interpreter is slow: a fifth of the usual number of examples.
examples = settings(max_examples=max(settings.default.max_examples // 5, 1))


def assert_the_kernel_is_right(case, random, dtype):
    """The output and every gradient of an operation's kernel, by the error-ratio rule."""
    found = by_ratio(case, random, dtype, DEVICE)
    assert found is not None, f"no kernel was called by {case.what}"
    assert_good(found, f"numpy vs the kernel, {dtype}")


def opcheck(operation, *arguments):
    """torch's own check of a registered operation: schema, autograd, fake tensors, torch.compile's tracing."""
    found = torch.library.opcheck(operation, arguments)
    assert set(found.values()) == {"SUCCESS"}
