"""Threads that share the machine: how many there are, and that it is settled before PyTorch is loaded."""

import math
import os
import subprocess
import sys

import pytest

from prism import threads

SAYS = "import os, torch; print(os.environ.get('GOMP_SPINCOUNT'), torch.get_num_threads())"


def told(code: str, **environment: str) -> list[str]:
    """What a fresh interpreter prints."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "GOMP_"))}
    run = subprocess.run(
        [sys.executable, "-c", code], env=plain | environment, capture_output=True, text=True, check=True
    )
    return run.stdout.split()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu.max": "what\n"}, math.inf),
        ({"cpu.max": "100000 0\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n"}, math.inf),
        ({}, math.inf),
    ],
    ids=str,
)
def test_a_containers_limit(files, cores, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    assert threads._share() == cores
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert threads.usable_cores() == max(1, int(min(bound, cores)))


def test_the_limit_of_an_outer_group_holds(tmp_path, monkeypatch):
    own, read = "machine.slice/session/kernel", threads._read
    (tmp_path / own).mkdir(parents=True)
    (tmp_path / "machine.slice" / "cpu.max").write_text("100000 100000", encoding="utf-8")
    (tmp_path / own / "cpu.max").write_text("max 100000", encoding="utf-8")
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(threads, "_read", lambda path: f"0::/{own}\n" if path.name == "cgroup" else read(path))
    assert threads._share() == 1 and threads.usable_cores() == 1


def test_half_a_core_is_one_thread(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("50000 100000", encoding="utf-8")
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    assert threads.usable_cores() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds a process to cores")
def test_a_process_bound_to_one_core_runs_one_thread():
    assert told(f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); import prism; {SAYS}") == [
        "1000",
        "1",
    ]


def test_prism_comes_first_or_later():
    cores = str(threads.usable_cores())
    assert told(f"import prism; {SAYS}") == ["1000", cores]
    assert told(f"import torch, prism; {SAYS}") == ["1000", cores]


def test_what_the_reader_sets_stays():
    assert told(f"import prism; {SAYS}", OMP_NUM_THREADS="1", GOMP_SPINCOUNT="7") == ["7", "1"]
    assert told(f"import prism; {SAYS}", OMP_NUM_THREADS="")[1] == str(threads.usable_cores())
    assert told(f"import prism; {SAYS}", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE") == ["None", "1"]
    assert told("import torch; torch.set_num_threads(1); import prism; print(torch.get_num_threads())") == ["1"]
