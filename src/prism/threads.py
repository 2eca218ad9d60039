"""How many threads PyTorch runs, and what they do while they wait: set before it is loaded, where that is possible."""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
SPINS = "1000"  # measured (benchmarks/bench_busy.py): alone as quick as by default, beside a neighbour nearly as quick
# as threads that sleep at once; those are a sixth slower alone


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its container's share of time is worth.

    PyTorch looks at the first alone. In a container with 2 cores' time on a machine of 64 it starts 64 threads, which
    then wait for one another.
    """
    return max(1, int(min(_bound(), _share())))


def _bound() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share() -> float:
    """The container's limit in cores, in either version of Linux's control groups; infinite without one."""
    own = _read(Path("/proc/self/cgroup")).rpartition("0::/")[2].split("\n")[0]
    folders = [CGROUPS, *(CGROUPS.joinpath(*own.split("/")[: n + 1]) for n in range(own.count("/") + 1) if own)]
    limits = [_read(folder / "cpu.max") for folder in folders]
    limits.append(" ".join(_read(CGROUPS / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")))
    return min(map(_cores, limits))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cores(limit: str) -> float:
    """'<quota> <period>' in cores; infinite if it is no such thing, or 'max' or -1, which mean no limit."""
    try:
        quota, period = map(int, limit.split())
        return quota / period if quota > 0 else math.inf
    except (ValueError, ZeroDivisionError):
        return math.inf


def share_the_machine() -> None:
    """Let waiting threads sleep soon, and start no more than there are cores for them; what the reader has set stays.

    By default OpenMP's threads wait spinning, 300,000 turns long. Beside another busy process that takes the time of
    the very thread that they wait for.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:  # read when PyTorch is loaded, here or in a child
        os.environ["GOMP_SPINCOUNT"] = SPINS
    if re.match(r"\s*[1-9]", os.environ.get("OMP_NUM_THREADS", "")):  # anything else OpenMP passes over
        return
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    elif usable_cores() < _bound():  # else PyTorch finds the right number by itself, and so do processes of ours
        os.environ["OMP_NUM_THREADS"] = str(usable_cores())
