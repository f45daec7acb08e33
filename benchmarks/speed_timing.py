"""Time of calls that take turns, and the memory that one of them needs at most."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

# Seconds.
_SOON = 0.5
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each call; in every round each has its turn, so that they share a load.

    A call that is soon over is made twice, and the second one counts: nobody pays for what another
    left in the caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken = timed(call, device, clock)
            seconds[name].append(timed(call, device, clock) if taken < _SOON else taken)
    return {name: statistics.median(times) for name, times in seconds.items()}


def timed(
    call: Callable[[], object],
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one call, by the wall's clock or by another."""
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.synchronize(device)
    start = clock()
    call()
    if is_cuda:
        torch.cuda.synchronize(device)
    return clock() - start


def peak_megabytes(call: Callable[[], object], device: str = "cpu") -> float | None:
    """What a call needs at most beyond what there was before; None where nothing tells."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not sys.platform.startswith("linux"):
        return None
    # What was freed goes back to the system, and the high-water mark down to what is left.
    ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    before = _kilobytes("VmRSS")
    call()
    return max(0.0, (_kilobytes("VmHWM") - before) / 1024)


def _kilobytes(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


def available_bytes(device: str = "cpu") -> float:
    """Memory that is free; infinity where nothing tells."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    path = Path("/proc/meminfo")
    if not path.exists():
        return float("inf")
    line = next(x for x in path.read_text().splitlines() if x.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024
