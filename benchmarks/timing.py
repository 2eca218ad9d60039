"""Medians of interleaved runs, and peak memory, for the tables of `make bench`."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import statistics
import sys
import time
from collections.abc import Callable

RUNS = 5


def peak_so_far() -> float:
    """Peak memory of this process so far (MB)."""
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def peak_memory(way: Callable[[], object]) -> float:
    """Peak memory of one run above what was there before it (MB), in a forked child; NaN on Windows."""
    if not hasattr(os, "fork"):
        return math.nan
    with contextlib.suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, or the run would reuse it unseen
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        before = peak_so_far()
        way()
        os.write(writing, str(peak_so_far() - before).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        added = float(pipe.read())
    os.waitpid(child, 0)
    return added


def interleaved(ways: dict[str, Callable[[], object]]) -> tuple[dict[str, float], dict[str, object]]:
    """Median CPU seconds and last result of each way; they take turns, so that a busy moment hits all of them."""
    times, results = {name: [] for name in ways}, {}
    for _ in range(RUNS):
        for name, way in ways.items():
            start = time.process_time()
            results[name] = way()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}, results


def print_table(title: str, seconds: dict[str, float], memory: dict[str, float], n: int) -> None:
    """One line a way; speed-ups are over the first."""
    slowest = next(iter(seconds.values()))
    print(f"\n{title}; one thread, median of {RUNS} interleaved runs\n")
    print(f"{'way':<30} {'CPU s':>8} {'per s':>9} {'speed-up':>9} {'peak MB':>8}")
    for name, value in seconds.items():
        print(f"{name:<30} {value:>8.2f} {n / value:>9,.0f} {slowest / value:>8.1f}× {memory[name]:>8,.0f}", flush=True)
