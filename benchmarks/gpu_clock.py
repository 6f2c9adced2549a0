"""Timing on a GPU, and the GPU's own limits: no kernel is faster than its memory or its matrix products.

The time between two events in the GPU's queue is measured, so that Python's overhead does not count on any side. A
large product before each call keeps the GPU busy while the call is put into the queue, and evicts the data of the
previous call from the cache.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Call = Callable[[], Any]

WARM_UP = 3
SQUARE = 8192
"""The size of the matrices whose product keeps the GPU busy: 134 MB each in bfloat16, larger than the cache."""
COPIED = 1 << 30
"""Bytes of the copy that measures the memory bandwidth."""


class CudaClock:
    def __init__(self, device: torch.device):
        self.device, self.cache_bytes = device, torch.cuda.get_device_properties(device).L2_cache_size
        self.busy = torch.randn(3, SQUARE, SQUARE, device=device, dtype=torch.bfloat16)

    def in_turns(self, sides: Mapping[str, Sequence[Call]], rounds: int) -> dict[str, list[float]]:
        """The seconds of every call: in a round each side has one, on its next input.

        A warm-up compiles everything first.
        """
        for calls in sides.values():
            for turn in range(WARM_UP):
                calls[turn % len(calls)]()
        events = {name: [] for name in sides}
        for turn in range(rounds):
            for place, (name, calls) in enumerate(sides.items()):
                # The sides share the inputs, but no two of them use the same input in one round.
                events[name].append(self._queue(calls[(turn + place) % len(calls)]))
        torch.cuda.synchronize(self.device)
        return {name: [start.elapsed_time(end) / 1e3 for start, end in pairs] for name, pairs in events.items()}

    def _queue(self, call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.mm(self.busy[0], self.busy[1], out=self.busy[2])
        start.record()
        call()
        end.record()
        return start, end


def ceilings(clock: Any, rounds: int, square: int = SQUARE, copied: int = COPIED) -> dict[str, float]:
    """The limits of this machine in this run: bytes/s of a copy, FLOP/s of a product in each precision."""
    here, there = (torch.zeros(copied, dtype=torch.uint8, device=clock.device) for _ in range(2))
    work: dict[str, tuple[int, Call]] = {"copy": (2 * copied, lambda: there.copy_(here))}
    for dtype, side in ((torch.bfloat16, square), (torch.float32, square // 2)):
        left, right = torch.randn(2, side, side, dtype=dtype, device=clock.device)
        work[str(dtype).removeprefix("torch.")] = 2 * side**3, lambda left=left, right=right: left @ right
    found = clock.in_turns({name: [call] for name, (_, call) in work.items()}, rounds)
    return {name: work[name][0] / statistics.median(seconds) for name, seconds in found.items()}
