"""Every kernel compiled for GPUs that are not available: `python -m tests.kernels.ahead_of_time` prints a line each.

The launchers run as on a GPU, with their own blocks and options, but each launch only compiles (triton's `warmup`), for
the architecture of a fake driver. The compiler reports the same registers, spilled bytes, shared memory and tensor core
instructions as on the real machine.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ARCHITECTURES = (80, 90)
TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async)\S*")


class FakeDriver:
    """The methods of a driver that triton calls before a launch, for a GPU that is not available."""

    def __init__(self, architecture: int):
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(run: Any, architectures: Sequence[int]) -> list[dict[str, Any]]:
    """The compiled form of every kernel that `run` launches, for each architecture."""
    found = []
    launch = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        found.append(_described(self.fn.__name__, kernel))

    JITFunction.run = compile_only
    try:
        for architecture in architectures:
            driver.set_active(FakeDriver(architecture))
            run()
    finally:
        JITFunction.run = launch
    return found


def _described(name: str, kernel: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))
    return {
        "kernel": name, "architecture": kernel.metadata.target.arch, "registers": registers, "spilled": stack + local,
        "shared": kernel.metadata.shared, "tensor_cores": sorted(set(TENSOR_CORES.findall(kernel.asm["ptx"]))),
    }  # fmt: skip


def main(names: list[str]) -> None:
    from tests.kernels.specimens import SPECIMENS

    for name in names or SPECIMENS:
        # Single precision for the GPU with the smaller shared memory alone.
        for dtype, architectures in ((torch.bfloat16, ARCHITECTURES), (torch.float32, ARCHITECTURES[:1])):
            for row in compiled(lambda name=name, dtype=dtype: SPECIMENS[name].run(dtype), architectures):
                print(json.dumps({"specimen": name, "dtype": str(dtype).removeprefix("torch."), **row}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
