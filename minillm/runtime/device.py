"""Where the arithmetic runs: the device, the precision of its matrix products, and the memory behind it."""

import ctypes
import platform
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from minillm.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def pick_device(name: str = "auto") -> torch.device:
    """`auto`, the best there is, or the device of that name. Raises InputError where there is none of it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available.get(name.split(":")[0]):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise InputError(f"there is no device {name!r} here; there is: {there}")
    return torch.device(name)


def use_threads(count: int | None = None) -> int:
    """Compute on so many CPU threads, or on as many as torch finds; returns how many. Raises InputError below 1."""
    count = torch.get_num_threads() if count is None else count
    if count < 1:
        raise InputError(f"threads is {count}; it must be at least 1")
    torch.set_num_threads(count)
    return count


def best_precision(device: torch.device) -> str:
    """bfloat16 where the device multiplies it natively and torch makes use of that, else float32.

    A CPU that could is not enough: ATEN_CPU_CAPABILITY limits which of its instructions torch uses.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        native = device.type == "cpu" and can and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "bfloat16" if native else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Matrix products in bfloat16 and everything else as it is; for float32, nothing at all."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def keep_freed_memory() -> None:
    """Have glibc keep what a tensor frees for the next one. For the main program, as it changes the whole process.

    By default every array above some size is mapped page by page from the kernel, each time: an RMS norm's
    backward pass over 16 x 40 x 576 numbers took 6.1 ms so and 0.4 ms when the memory was kept.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def peak_memory(device: torch.device) -> int | None:
    """The most memory that this process has held at once, in bytes: on a GPU its tensors, else its resident pages.

    None where the system does not say (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the parent's pages too, from before this program was executed
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
