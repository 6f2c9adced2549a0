"""Ways to choose a wrong program, or none, all of which the tests must notice; as in `tests/mutations.py`."""

from tests.mutations import Mutation

CHOICE = "kernels/test_choice.py"


def _in_cuda(what, old, new):
    return Mutation(what, "kernels/cuda/norm.cu", old, new, "kernels/test_cuda.py")


KERNEL_MUTATIONS = [
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
    _in_cuda("a warp that adds up half of its threads", "int distance = WARP / 2;", "int distance = WARP / 4;"),
    _in_cuda("a block that is one warp", "warp < int(blockDim.x) / WARP", "warp < 1"),
    _in_cuda("a pack that is summed in one column", "* PACK + i % PACK;", "* PACK;"),
    _in_cuda("a stripe that runs into the next", "row < first + stripe && row < rows", "row < rows"),
    _in_cuda("a slope along the row itself", "(through - wide(x[i].at[j]) * scale * along) * scale", "through * scale"),
]  # fmt: skip
