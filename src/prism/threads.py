"""How many threads PyTorch runs, and what they do while they wait: set before it is loaded, where that is possible."""

from __future__ import annotations

import math
import os
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
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(bound, _share())))


def _share() -> float:
    """The container's limit in cores, in either version of Linux's control groups; infinite without one."""
    try:
        quota, period = (CGROUPS / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="utf-8").strip()
                for name in ("quota", "period")
            )
        except OSError:
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):  # 'max': no limit
        return math.inf


def share_the_machine() -> None:
    """Let waiting threads sleep soon, and start no more than there are cores for them; what the reader has set stays.

    By default OpenMP's threads wait spinning, 300,000 turns long. Beside another busy process that takes the time of
    the very thread that they wait for.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:  # read when PyTorch is loaded, here or in a child
        os.environ["GOMP_SPINCOUNT"] = SPINS
    if "OMP_NUM_THREADS" in os.environ:
        return
    if "torch" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    else:
        torch = sys.modules["torch"]
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
