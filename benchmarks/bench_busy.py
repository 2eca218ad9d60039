"""What a busy neighbour costs, by what OpenMP's threads do while they wait.

`python benchmarks/bench_busy.py` takes about 15 minutes on two cores; keep the machine quiet otherwise. Each run is a
process of its own: training steps of an SAE and passes of the embedded model, with as many threads as there are cores.
The neighbour is a process that never rests, on one thread; with `--threads` it is another such run, which has as many.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

RUNS, STEPS = 5, 12
POLICIES = {
    "as it was": {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None},
    "spin 10,000 times": {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "10000"},
    "spin 1,000 times": {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": None},
}


def work() -> None:
    """The work: prints its wall-clock seconds."""
    import torch

    from prism import models
    from prism.data import tokenize
    from prism.sae import SaeConfig
    from prism.training import TrainConfig
    from prism.training.loop import Trainer

    model = models.load_model(models.get_spec("mini"))
    batch = tokenize(["a text like any other, " * 10] * 24, model.tokenizer, 128)
    x = torch.randn(2_048, 576, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(SaeConfig(576, 4_608), TrainConfig(), x)
    trainer.take(x)
    start = time.perf_counter()
    for _ in range(STEPS):
        trainer.take(x)
        with torch.no_grad():
            for _ in range(4):
                model(batch.tokens)
    print(time.perf_counter() - start)


def one_run(policy: dict[str, str | None]) -> float:
    """Seconds of the work in a fresh process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environment |= {key: value for key, value in policy.items() if value is not None}
    code = "import torch, bench_busy; bench_busy.work()"  # PyTorch first, so that the policy stays what it is here
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """One table: alone and beside a neighbour, the policies in turn."""
    other = ["-c", "while True: pass"]
    if "--threads" in sys.argv:
        other = ["-c", "import torch\nx = torch.randn(2000, 2000)\nwhile True: x @ x"]
    seconds = {(name, busy): [] for name in POLICIES for busy in (False, True)}
    for _ in range(RUNS):
        for busy in (False, True):
            neighbour = subprocess.Popen([sys.executable, *other]) if busy else None
            for name, policy in POLICIES.items():
                seconds[name, busy].append(one_run(policy))
            if neighbour:
                neighbour.kill()
                neighbour.wait()
    before = statistics.median(seconds["as it was", False])
    print(f"{STEPS} training steps and {4 * STEPS} passes, {RUNS} runs in turn; seconds as median (from – to)\n")
    print(f"{'threads that wait':<20} {'alone':>22} {'beside a neighbour':>24} {'alone, × before':>16} {'× alone':>13}")
    for name in POLICIES:
        alone, busy = seconds[name, False], seconds[name, True]
        texts = [f"{statistics.median(runs):.2f} ({min(runs):.2f} – {max(runs):.2f})" for runs in (alone, busy)]
        ratios = statistics.median(alone) / before, statistics.median(busy) / statistics.median(alone)
        print(f"{name:<20} {texts[0]:>22} {texts[1]:>24} {ratios[0]:>16.2f} {ratios[1]:>13.2f}", flush=True)


if __name__ == "__main__":
    main()
