"""Speeds side by side in one run (`make bench`): harvest and feature scan, our SAE training step and others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import bench_harvest
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

from prism.sae import SaeConfig, make_sae
from prism.training import sparse_gradients

RUNS = 5
D_IN, BATCH, K = 768, 2_048, 32  # GPT-2 small's residual stream


def main() -> None:
    """All tables, on one thread."""
    torch.set_num_threads(1)
    bench_harvest.main()
    for d_sae in (4_096, 24_576):
        bench_training(d_sae)


def bench_training(d_sae: int) -> None:
    """One optimiser step of a TopK SAE: SAELens' trainer, autograd on our class, our quick path, and the limit.

    The limit is the encoder's product alone, which every one of them needs.
    """
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0))
    slow, quick = (make_sae(SaeConfig(D_IN, d_sae, "topk", k=K)).train() for _ in range(2))
    theirs = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D_IN, d_sae=d_sae, k=K, normalize_activations="none"))
    settings = SAETrainerConfig(total_training_samples=10**6, train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-3,
                                lr_warm_up_steps=0, lr_decay_steps=0, dead_feature_window=1000,
                                logger=LoggingConfig(log_to_wandb=False))  # fmt: skip
    trainer = SAETrainer(settings, theirs, iter([]))
    adams = {sae: torch.optim.Adam(sae.parameters(), lr=1e-3, fused=True) for sae in (slow, quick)}

    def by_autograd() -> None:
        adams[slow].zero_grad()
        with torch.enable_grad():
            slow.loss(x).backward()
        adams[slow].step()

    def by_entries() -> None:
        sparse_gradients(quick, x)
        adams[quick].step()

    def by_saelens() -> None:
        with torch.enable_grad():
            trainer._train_step(theirs, x)

    ways = {
        "SAELens": by_saelens,
        "autograd on prism.sae": by_autograd,
        "prism.training": by_entries,
        "encoder product alone": lambda: quick.pre_activations(x),
    }
    title = f"\nTopK training step, d_in {D_IN}, d_sae {d_sae:,}, batch {BATCH:,}, k {K}, one thread"
    _table(title, _interleaved(ways), BATCH, slowest="SAELens")


@torch.no_grad()
def _interleaved(ways: dict[str, Callable]) -> dict[str, float]:
    """Median seconds of each way; the ways take turns so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # the first run of each also makes its buffers
    for _ in range(RUNS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _table(title: str, seconds: dict[str, float], n_tokens: int, slowest: str) -> None:
    print(f"{title}; median of {RUNS} interleaved runs\n")
    print(f"{'way':<30} {'seconds':>8} {'tokens/s':>10} {'speed-up':>9}")
    for name, value in seconds.items():
        print(f"{name:<30} {value:>8.3f} {n_tokens / value:>10,.0f} {seconds[slowest] / value:>8.1f}×")


if __name__ == "__main__":
    main()
