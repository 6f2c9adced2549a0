"""Ways to break the kernels, and to choose a wrong one, which the tests must notice; as in `tests/mutations.py`."""

from tests.mutations import Mutation

LOSS = ("kernels/linear_cross_entropy.py", "kernels/test_linear_cross_entropy.py")
FEED_FORWARD = ("kernels/feed_forward.py", "kernels/test_feed_forward.py")
POSITIONS = ("kernels/positions.py", "kernels/test_positions.py")
CHOICE = "kernels/test_choice.py"


def _mutation(what, where, old, new):
    file, test = where
    return Mutation(what, file, old, new, test)


def _fenced(where):
    """Only the test that puts fences around new memory: without them, what is written there may crash Python."""
    file, test = where
    return file, f"{test}::test_nothing_is_written_beyond_the_last"


KERNEL_MUTATIONS = [
    _mutation("a higher maximum that forgets the sum so far", LOSS, "total * tl.exp(top - higher) +", "total +"),
    _mutation("words beyond the vocabulary", LOSS, 'tl.where(place < vocabulary, z, float("-inf"))', "z"),
    _mutation("a label left with its share", LOSS, "tl.where(place == label, share - 1.0, share)", "share"),
    _mutation("a label that no one misses", LOSS, 'other=float("nan")', "other=0.0"),
    _mutation("a slope that does not know its loss's", LOSS, "slope, factor[None],", "slope, factor[None] ** 0,"),
    _mutation("a weight that learns from the last chunk", LOSS, "torch.addmm(total, left.f", "torch.mm(left.f"),
    _mutation(
        "a weight's slope summed in half precision",
        LOSS,
        "torch.addmm(total, left.float(), right.float(), out=total)",
        "total.copy_(torch.addmm(total, left.float(), right.float()).bfloat16())",
    ),
    _mutation("chunks that are not counted", LOSS, "stride * dtype.itemsize", "0"),
    _mutation("slopes beyond the row", _fenced(LOSS), "element_ty), mask=place < stride)", "element_ty))"),
    _mutation(
        "numbers beyond the last", _fenced(FEED_FORWARD), "y.to(out.dtype.element_ty), mask=place < count)", "y)"
    ),
    _mutation("a gelu whose slope has no cube", FEED_FORWARD, "(3.0 * z * z * CUBE + 1.0) * SLOPE", "SLOPE"),
    _mutation("a gate that is a constant", FEED_FORWARD, "(1.0 + z * rest * steepness)", "1.0"),
    _mutation("a factor that passes what the gate stops", FEED_FORWARD, "(slope * z * share)", "(slope * z)"),
    _mutation("a gelu that multiplies by its gate", FEED_FORWARD, "slope *= x", "slope += x"),
    _mutation("a gradient that turns on", POSITIONS, "s = -s", "s = s"),
    _mutation("angles of the first row for all", POSITIONS, "sin + batch * stride_sb", "sin + 0 * stride_sb"),
    _mutation(
        "heads beyond the last", _fenced(POSITIONS), "there = (row < rows) & (pair < half)", "there = pair < half"
    ),
    _mutation("an output in the input's strides", POSITIONS, "*out.stride()", "*vectors.stride()"),
    _mutation(
        "a table's gradient that is lost",
        ("ops/positions.py", POSITIONS[1]),
        " and not (cos.requires_grad or sin.requires_grad)",
        "",
    ),
    Mutation("a backend that outlives an exception", "ops/__init__.py", "_forced = before", "pass", CHOICE),
    Mutation(
        "a question that a CPU goes on to answer",
        "ops/__init__.py",
        "if _forced is None and not tensor.is_cuda:",
        "if False:",
        CHOICE,
    ),
    Mutation(
        "sizes that are only too large to be near",
        "kernels/_measured.py",
        "max(max(one, 1) / max(other, 1), max(other, 1) / max(one, 1))",
        "max(one, 1) / max(other, 1)",
        CHOICE,
    ),
    Mutation("a draw that is won", "kernels/_measured.py", "times_as_quick > 1", "times_as_quick >= 1", CHOICE),
    Mutation(
        "sizes that are remembered while a program is traced",
        "kernels/_measured.py",
        "_remembered = lru_cache(maxsize=4096)(_won)",
        "_won = _remembered = lru_cache(maxsize=4096)(_won)",
        "kernels/test_compile.py",
    ),
    Mutation(
        "a kernel that takes no part",
        "ops/norm.py",
        'if by_kernel("rms_norm", hidden,',
        'if False and by_kernel("rms_norm", hidden,',
        "lab/test_check_kernels.py",
    ),
    Mutation(
        "kernels that nobody checks", "lab/check.py", "by_kernel(case, random, dtype, device)", "None",
        "lab/test_check_kernels.py",
    ),
]  # fmt: skip
