"""A kernel's rung of the ladder of trust, for cases that hypothesis draws: on a GPU, or interpreted."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")

from minillm.lab.check_operations import operation_case
from minillm.lab.trust import by_kernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

dtypes = st.sampled_from((torch.float32, torch.bfloat16))
# Primes, odd numbers, powers of two and their neighbours: blocks that are full, nearly empty or just overrun.
widths = st.sampled_from((1, 2, 3, 7, 16, 17, 31, 37, 61, 64, 97, 127, 128))
rows = st.sampled_from((0, 1, 2, 3, 5, 13, 67))

# The interpreter takes its time: a fifth of the examples that others have.
examples = settings(max_examples=max(settings.default.max_examples // 5, 1))


def assert_the_kernel_is_right(file, name, random, dtype, **arguments):
    """The output and every gradient of an operation's kernel, by the error-ratio rule."""
    case = operation_case(file, name, **arguments)
    measured = by_kernel(case, random, dtype, DEVICE)
    assert measured is not None, f"no kernel took part in {name}"
    assert measured.good, f"{measured.part} of {name} is off by {measured.error:.1e} (limit {measured.limit:.1e})"


def opcheck(operation, *arguments):
    """torch's own check of a registered operation: schema, autograd, fake tensors, torch.compile's tracing."""
    found = torch.library.opcheck(operation, arguments)
    assert set(found.values()) == {"SUCCESS"}
