"""The device, the precision of its matrix products, CPU threads and memory."""

import ctypes
import os
import platform
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from minillm.errors import InputError, check_threads
from minillm.runtime.progress import detail


def pick_device(name: str = "auto") -> torch.device:
    """The named device, or the best one for `auto`. Raises InputError if it is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kinds = [kind for kind, found in available.items() if found]
    name = kinds[0] if name == "auto" else name
    if name.split(":")[0] not in kinds:
        raise InputError(f"no device {name!r} on this machine; available: {', '.join(kinds)}")
    return torch.device(name)


def use_threads(count: int | None = None) -> int:
    """Set the number of CPU threads (None: torch's choice) and return it. Raises InputError if `check_threads` does."""
    count = torch.get_num_threads() if count is None else count
    check_threads(count)
    torch.set_num_threads(count)
    return count


def best_precision(device: torch.device) -> str:
    """bfloat16 if the device multiplies it natively and torch uses these instructions, else float32."""
    precision, reason = precision_and_reason(device)
    detail(f"{precision}: {reason}")
    return precision


def precision_and_reason(device: torch.device) -> tuple[str, str]:
    """The best precision of a device, and why. On a CPU, ATEN_CPU_CAPABILITY limits the instructions of torch."""
    capability = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        if native and capability != "AVX512":
            return "float32", f"torch uses {capability} only, without the bfloat16 instructions of this CPU"
    else:
        native = False
    reason = "multiplies bfloat16 natively" if native else "has no fast bfloat16"
    return "bfloat16" if native else "float32", f"the {device.type} device {reason}"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """torch.autocast to bfloat16 if that is the precision, else no change."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def decomposable(matrix: Tensor) -> Tensor:
    """The matrix where torch computes its singular values: on the CPU instead of on MPS."""
    return matrix.cpu() if matrix.device.type == "mps" else matrix


def keep_freed_memory() -> None:
    """Tell glibc to reuse the memory of freed tensors. Affects the whole process: for the main program only.

    By default glibc maps every large array from the kernel again: the backward pass of an RMS norm over
    16 x 40 x 576 numbers took 6.1 ms so, and 0.4 ms with reused memory.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def memory() -> tuple[int, int]:
    """The bytes of the machine's memory and, on Linux, of what is available; 0 on Windows."""
    if sys.platform == "win32":
        return 0, 0
    total, status = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), Path("/proc/meminfo")
    found = re.search(r"MemAvailable: *(\d+)", status.read_text()) if status.exists() else None
    return total, int(found[1]) * 1024 if found else total


def peak_memory(device: torch.device) -> int | None:
    """The process's peak memory in bytes: allocated tensors on a GPU, else resident pages. None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the parent's pages from before exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
