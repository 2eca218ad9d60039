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


def interleaved(ways: dict[str, Callable[[], object]]) -> tuple[dict[str, list[float]], dict[str, object]]:
    """CPU seconds of each way's runs, and its last result; they take turns, so that a busy moment hits all of them."""
    times, results = {name: [] for name in ways}, {}
    for _ in range(RUNS):
        for name, way in ways.items():
            start = time.process_time()
            results[name] = way()
            times[name].append(time.process_time() - start)
    return times, results


def print_table(title: str, seconds: dict[str, list[float]], memory: dict[str, float], n: int) -> None:
    """One line a way: its median, how many times the first way's it is (and within which bounds, run by run)."""
    first = next(iter(seconds.values()))
    print(f"\n{title}; one thread, median of {RUNS} interleaved runs\n")
    print(f"{'way':<30} {'CPU s':>8} {'per s':>9} {'× first':>8} {'from – to':>13} {'peak MB':>8}")
    for name, runs in seconds.items():
        times = [a / b for a, b in zip(runs, first, strict=True)]
        middle, spread = statistics.median(runs), f"{min(times):.2f} – {max(times):.2f}"
        print(
            f"{name:<30} {middle:>8.3f} {n / middle:>9,.0f} {middle / statistics.median(first):>8.2f} {spread:>13} "
            f"{memory[name]:>8,.0f}",
            flush=True,
        )


def print_lines(rows: list[dict[str, object]]) -> None:
    """A table of anything."""
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    print("  ".join(name.rjust(width) for name, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[name]).rjust(width) for name, width in widths.items()), flush=True)
