"""Passes of the real model: the bridge beside the stripped pass, in float32 and bfloat16, and a splice's whole and
resumed pass.

`python benchmarks/bench_passes.py` takes some minutes with one thread and then two; it needs `prism fetch smollm2`.
Seconds are wall-clock, since threads are compared; keep the machine quiet.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import lru_cache, partial
from unittest import mock

import torch
from timing import RUNS, peak_memory

from prism import evaluation as ev
from prism.device import bulk_dtype, dtype_name
from prism.fast import stripped
from prism.models import SMOLLM2, load_model
from prism.models.fetching import SMOLLM2_WHEEL, is_fetched

SEQUENCES, LAYER, SPLICED = 8, 15, (7, 15, 23)


@torch.no_grad()
def main() -> None:
    """Both tables for one thread and for two; a line where the model was not fetched."""
    if not is_fetched(SMOLLM2_WHEEL):
        print("\npasses of smollm2: skipped, it is not on this machine (prism fetch smollm2)")
        return
    before = torch.get_num_threads()
    model = load_model(SMOLLM2)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        harvest_table(model, threads)
        splice_table(model, threads)
    torch.set_num_threads(before)


def in_turn(ways: dict[str, Callable[[], object]], runs: int = RUNS) -> dict[str, float]:
    """Median wall-clock seconds of each way; they take turns."""
    times = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


@lru_cache
def in_format(dtype: torch.dtype):
    """The model in a number format, whatever this processor would choose."""
    with mock.patch.dict("os.environ", {"PRISM_DTYPE": dtype_name(dtype)}):
        return load_model(SMOLLM2, bulk=True)


def some_tokens(sequences: int) -> torch.Tensor:
    """Random tokens behind BOS: what they say costs nothing."""
    tokens = torch.randint(17, 49_152, (sequences, SMOLLM2.context), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return tokens


def by_bridge(model, tokens: torch.Tensor, hook_name: str) -> torch.Tensor:
    """The bridge's own pass, stopped after the hook's block."""
    caught = []
    model.run_with_hooks(
        tokens, fwd_hooks=[(hook_name, lambda x, hook: caught.append(x))], stop_at_layer=LAYER + 1, return_type=None
    )
    return caught[0]


def harvest_table(model, threads: int) -> None:
    """The residual stream before block 15: two ways in two number formats."""
    hook, tokens, low = f"blocks.{LAYER}.hook_resid_pre", some_tokens(SEQUENCES), in_format(torch.bfloat16)
    few = tokens if bulk_dtype() == torch.bfloat16 else tokens[:1]  # without matrix units for it, it takes for ever
    exact, caught = by_bridge(model, tokens, hook), stripped(model).activations(tokens, [hook])[hook]
    error = (caught - exact).norm() / exact.norm()
    assert error < 1e-5, f"the stripped pass differs by {error:.1e} of the norm"
    ways, sizes = {}, {}
    for kind, ids in ((model, tokens), (low, few)):
        name = dtype_name(kind.cfg.dtype)
        ways[f"bridge, {name}"] = partial(by_bridge, kind, ids, hook)
        ways[f"stripped pass, {name}"] = partial(stripped(kind).activations, ids, [hook])
        sizes |= {f"bridge, {name}": ids.numel(), f"stripped pass, {name}": ids.numel()}
    seconds, memory = in_turn(ways), {name: peak_memory(way) for name, way in ways.items()}
    print(f"\n{hook} of smollm2, {SEQUENCES} × {SMOLLM2.context} tokens, {threads} thread(s), median of {RUNS} runs\n")
    print(f"{'way':<30} {'tokens':>8} {'tokens/s':>9} {'speed-up':>9} {'peak MB':>8}")
    slowest = sizes["bridge, float32"] / seconds["bridge, float32"]
    for name, value in seconds.items():
        speed = sizes[name] / value
        print(f"{name:<30} {sizes[name]:>8,} {speed:>9,.0f} {speed / slowest:>8.2f}× {memory[name]:>8,.0f}", flush=True)


def splice_table(model, threads: int) -> None:
    """The cross-entropy of a splice: a whole pass through the bridge, and one that resumes at the hook."""
    tokens = some_tokens(2)
    keep = torch.arange(SMOLLM2.context).expand(tokens.shape) > 0
    mask = keep[:, :-1] & keep[:, 1:]
    hooks = {layer: f"blocks.{layer}.hook_resid_pre" for layer in SPLICED}
    seen = ev.Predictions(model, tokens, list(hooks.values()))
    change = lambda x: 0.9 * x  # noqa: E731
    ways = {}
    for layer, hook in hooks.items():
        ways[f"block {layer}: whole, bridge"] = lambda hook=hook: ev.predictions.sequence_nats(
            ev.predictions.splice(model, tokens, hook, keep, change), tokens, mask
        )
        ways[f"block {layer}: resumed"] = lambda hook=hook: seen.nats(seen.changed(hook, keep, change), mask)
    seconds, memory = in_turn(ways), {name: peak_memory(way) for name, way in ways.items()}
    print(f"\ncross-entropy of a splice in smollm2, 2 × {SMOLLM2.context} tokens, {threads} thread(s)\n")
    print(f"{'way':<30} {'s':>8} {'factor':>9} {'peak MB':>8}")
    for name, value in seconds.items():
        whole = seconds[f"{name.partition(':')[0]}: whole, bridge"]
        print(f"{name:<30} {value:>8.2f} {whole / value:>8.2f}× {memory[name]:>8,.0f}", flush=True)


if __name__ == "__main__":
    main()
