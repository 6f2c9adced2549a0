"""Ways to break the kernels, all of which the tests must notice; as in `tests/mutations.py`."""

from tests.mutations import Mutation

LOSS = ("kernels/linear_cross_entropy.py", "kernels/test_linear_cross_entropy.py")
FEED_FORWARD = ("kernels/feed_forward.py", "kernels/test_feed_forward.py")
POSITIONS = ("kernels/positions.py", "kernels/test_positions.py")


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
]
