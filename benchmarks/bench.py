"""How much a harvest saves: one hook, stopping at its layer, against a cache of every activation (`make bench`)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from prism import models

SEQUENCES, RUNS = 32, 5


def main() -> None:
    """Times the ways to get one hook's activations, in turn, and prints their medians."""
    torch.set_num_threads(1)
    spec = models.get_spec()
    model = models.load_model(spec)
    hook = spec.sae().hook_name
    layer = spec.sae().layer
    tokens = torch.randint(0, model.cfg.d_vocab, (SEQUENCES, spec.context), generator=torch.Generator().manual_seed(0))

    def by_filter(**options) -> torch.Tensor:
        return model.run_with_cache(tokens, names_filter=hook, **options)[1][hook]

    ways = {
        "whole cache": lambda: model.run_with_cache(tokens)[1][hook],
        "names_filter": lambda: by_filter(),
        "names_filter + stop_at_layer": lambda: by_filter(stop_at_layer=layer + 1),
        "prism.models.harvest": lambda: torch.cat(list(models.harvest(model, tokens, hook))),
    }
    expected = ways["whole cache"]()
    for name, way in ways.items():
        torch.testing.assert_close(way(), expected, msg=lambda text, name=name: f"{name} differs: {text}")
    _table(f"{spec.name}, {hook}, {tokens.numel():,} tokens, one thread", _interleaved(ways), tokens.numel())


@torch.no_grad()
def _interleaved(ways: dict[str, Callable]) -> dict[str, float]:
    """Median seconds of each way; the ways take turns so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(RUNS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _table(title: str, seconds: dict[str, float], n_tokens: int) -> None:
    print(f"{title}; median of {RUNS} interleaved runs\n")
    print(f"{'way':<30} {'seconds':>8} {'tokens/s':>10} {'speed-up':>9}")
    slowest = seconds["whole cache"]
    for name, value in seconds.items():
        print(f"{name:<30} {value:>8.3f} {n_tokens / value:>10,.0f} {slowest / value:>8.1f}×")


if __name__ == "__main__":
    main()
