"""Mutations of the kernels and of their choice, which the tests must detect; as in `tests/mutations.py`."""

from tests.mutations import Mutation, mutation, only

LOSS = ("kernels/linear_cross_entropy.py", "kernels/test_linear_cross_entropy.py")
LORA = ("kernels/lora.py", "kernels/test_lora.py")
FEED_FORWARD = ("kernels/feed_forward.py", "kernels/test_feed_forward.py")
POSITIONS = ("kernels/positions.py", "kernels/test_positions.py")
CHOICE = "test_choice.py"
CUDA = ("kernels/cuda/norm.cu", "kernels/test_cuda.py")


def _fenced(where):
    """Only the test with fences around new memory: without them a write out of bounds may crash Python."""
    return only(where, "test_nothing_is_written_out_of_bounds")


def _suite(where, name):
    """The test of every operation's kernel, for this one."""
    return where[0], f"test_operations.py::test_the_kernel_is_as_near_to_numpy_as_the_fast_form[{name}]"


GELU, SWIGLU = _suite(FEED_FORWARD, "gelu"), _suite(FEED_FORWARD, "swiglu")
ROTARY = _suite(POSITIONS, "rotary")
# fmt: off
KERNEL_MUTATIONS = [
    mutation("a higher maximum that forgets the sum so far", LOSS, "total * tl.exp(top - higher)", "total"),
    mutation("logits beyond the vocabulary", LOSS, "tl.where(place < vocabulary, z, float('-inf'))", "z"),
    mutation("a loss rounded at the size of the logits", only(LOSS, "test_the_loss_of_a_certain_prediction_is_exact"),
        "highest - chosen + tl.log(total)", "highest + tl.log(total) - chosen"),
    mutation("a label without its - 1", LOSS, "tl.where(place == label, p - 1.0, p)", "p"),
    mutation("an invalid label that is not detected", only(LOSS, "test_a_label_out_of_range_makes_the_loss_nan"),
        "float('nan')", "0.0"),
    mutation("a gradient without the loss's own", LOSS, "factor[None]", "factor[None] ** 0"),
    mutation("a weight trained on the last chunk alone", LOSS,
        "torch.addmm(total, left.float(), right.float(), out=total)",
        "torch.mm(left.float(), right.float(), out=total)"),
    mutation("a weight's gradient summed in half precision", LOSS,
        "torch.addmm(total, left.float(), right.float(), out=total)",
        "total.copy_(torch.addmm(total, left.float(), right.float()).bfloat16())"),
    mutation("chunks that are not counted", LOSS, "stride * dtype.itemsize", "0"),
    mutation("gradients beyond the row", _fenced(LOSS),
        "tl.store(logits + place, dz.to(logits.dtype.element_ty), mask=place < stride)",
        "tl.store(logits + place, dz.to(logits.dtype.element_ty))"),
    mutation("an unscaled update", _suite(LORA, "lora"), "total * scale", "total"),
    mutation("rows with the first adapter", _suite(LORA, "lora_by_row"), "down += member * rank * inner", "pass"),
    mutation("stripes that overlap", LORA, "tl.minimum(first + stripe, tokens)", "tokens"),
    mutation("an adapter trained on every row", _suite(LORA, "lora_by_row"),
        "tl.load(adapter + part // stripes, mask=mine, other=-1) == member",
        "tl.load(adapter + part // stripes, mask=mine) < 9"),
    mutation("gradients of ranks beyond the last", _fenced(LORA),
        "(row < tokens)[:, None] & (rank_place < rank)[None, :]", "(row < tokens)[:, None]"),
    mutation("an output beyond the last", _fenced(LORA),
        "tl.store(out + place, update.to(out.dtype.element_ty), mask=valid)",
        "tl.store(out + place, update.to(out.dtype.element_ty))"),
    mutation("stripes beyond their columns", _fenced(LORA),
        "tl.store(sums + place, total, mask=(rank_place < rank)[:, None] & (column < columns)[None, :])",
        "tl.store(sums + place, total)"),
    mutation("a gradient of B beyond its columns", _fenced(LORA), "(column >= inner) & (column < columns)",
        "column >= inner"),
    mutation("an input gradient from the update alone", _suite(LORA, "lora"), "needed[0] and weight is not None",
        "False"),
    mutation("elements beyond the last", _fenced(FEED_FORWARD),
        "tl.store(out + place, y.to(out.dtype.element_ty), mask=place < count)", "tl.store(out + place, y)"),
    mutation("a gelu whose gradient has no cube", GELU, "(3.0 * z * z * CUBE + 1.0) * LINEAR", "LINEAR"),
    mutation("a gate that is a constant", SWIGLU, "1.0 + z * rest * derivative", "1.0"),
    mutation("a factor's gradient without the gate's sigmoid", SWIGLU, "dy * z * sigmoid", "dy * z"),
    mutation("a swiglu that adds its factor", SWIGLU, "dy *= x", "dy += x"),
    mutation("a gradient that rotates forward", ROTARY, "-s", "s"),
    mutation("angles of the first row for all", POSITIONS, "batch * stride_sb", "0 * stride_sb"),
    mutation("heads beyond the last", _fenced(POSITIONS), "(row < rows) & (pair < half)", "pair < half"),
    mutation("an output in the input's strides", POSITIONS, "out.stride", "vectors.stride"),
    mutation("a table's gradient that is lost", ("operations.py", POSITIONS[1]),
        "by_kernel('rotary', vectors, lambda: (vectors.numel(),)) and not (cos.requires_grad or sin.requires_grad)",
        "by_kernel('rotary', vectors, lambda: (vectors.numel(),))"),
    Mutation("a backend that outlives an exception", "operations.py", "_choice.name = before", "pass", CHOICE),
    Mutation("a choice that is computed on a CPU", "operations.py", "name is None and not tensor.is_cuda", "False",
        CHOICE),
    Mutation("a distance that ignores smaller sizes", "kernels/_measured.py",
        "product * max(max(one, 1) / max(other, 1), max(other, 1) / max(one, 1))",
        "product * max(one, 1) / max(other, 1)", CHOICE),
    Mutation("a kernel chosen when it is only as fast", "kernels/_measured.py", "speedup > 1", "speedup >= 1", CHOICE),
    Mutation("cached sizes while a program is traced", "kernels/_measured.py",
        "_remembered = lru_cache(maxsize=4096)(_won)", "_won = _remembered = lru_cache(maxsize=4096)(_won)",
        "kernels/test_compile.py"),
    Mutation("a kernel that is never called", "operations.py",
        "by_kernel('rms_norm', hidden, lambda: (hidden.shape[:-1].numel(), hidden.shape[-1]))",
        "False and by_kernel('rms_norm', hidden, lambda: (hidden.shape[:-1].numel(), hidden.shape[-1]))",
        "lab/test_check_kernels.py"),
    Mutation("kernels that are not checked", "lab/check.py", "by_ratio(case, random, dtype, device)", "None",
        "lab/test_check_kernels.py"),
    mutation("a warp that adds up half of its threads", CUDA, "int distance = WARP / 2;", "int distance = WARP / 4;"),
    mutation("a block that is one warp", CUDA, "warp < int(blockDim.x) / WARP", "warp < 1"),
    mutation("a pack that is summed in one column", CUDA, "* PACK + i % PACK;", "* PACK;"),
    mutation("a stripe that runs into the next", CUDA, "row < first + stripe && row < rows", "row < rows"),
    mutation("a gradient along the row itself", CUDA, "(dnormed - wide(x[i].at[j]) * scale * along)", "(dnormed)"),
]  # fmt: skip
