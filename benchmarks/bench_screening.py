"""What a screen in bfloat16 looks at in a real run, against the exact product: what it misses, and does for nothing.

`python benchmarks/bench_screening.py` takes about four minutes on the real model (`prism fetch smollm2`), less on the
embedded one. Every tenth step of a short training run is checked, entry by entry, in float64.
"""

from __future__ import annotations

import torch
from timing import print_lines

from prism import models
from prism.data import corpus_batch, load_corpus
from prism.fast.screening import Screen
from prism.sae import SaeConfig
from prism.sae.architectures import ARCHITECTURES
from prism.training import TrainConfig
from prism.training.loop import Trainer

TOKENS, WIDTH, BATCH, STEPS, EVERY, K = 20_000, 4_608, 2_048, 100, 10, 32


@torch.no_grad()
def main() -> None:
    """One line an architecture."""
    spec = models.get_spec()
    model, hook = models.load_model(spec), spec.sae().hook_name
    x = models.kept_activations(
        model, hook, corpus_batch(load_corpus(spec.corpus), model.tokenizer, spec.context, TOKENS)
    )
    print(f"\na screen in bfloat16 on {hook} of {spec.name}, {WIDTH:,} features, every {EVERY}th of {STEPS} steps\n")
    rows = [run(architecture, x) for architecture in ARCHITECTURES]
    print_lines(rows)


def run(architecture: str, x: torch.Tensor) -> dict[str, object]:
    """A short training run, and what its screen would have missed."""
    config = TrainConfig(tokens=STEPS * BATCH, batch=BATCH, target_l0=K)
    trainer = Trainer(SaeConfig(x.shape[1], WIDTH, architecture, k=K), config, x)
    trainer.quick = type(trainer.quick)(trainer.sae, BATCH, screened=True)
    screen = Screen(WIDTH, x.shape[1], BATCH, BATCH)
    seen = {"entries": 0, "below the truth": 0, "active": 0, "active, missed": 0, "margin": [], "largest error": 0.0}
    for step in range(STEPS):
        rows = x[torch.randint(len(x), (BATCH,), generator=torch.Generator().manual_seed(step))]
        if step % EVERY == 0:
            look(trainer, screen, rows * trainer.scale, seen)
        trainer.take(rows)
    ways = trainer.quick.batches
    return {
        "architecture": architecture,
        "entries": f"{seen['entries']:,}",
        "bound below the truth": seen["below the truth"],
        "active": f"{seen['active']:,}",
        "missed": seen["active, missed"],
        "margin": f"{sum(seen['margin']) / len(seen['margin']):.3f}",
        "largest error": f"{seen['largest error']:.3f}",
        "batches screened": ways["screened"],
        "float32": ways["float32"],
        "no bound": ways["no bound"],
        "again": ways["looked at again"],
    }


def look(trainer: Trainer, screen: Screen, x: torch.Tensor, seen: dict) -> None:
    """Compare one batch's bounds with the exact product, and what is active with what reaches its bar."""
    sae, rule = trainer.sae, trainer.quick.rule
    floor, centred = rule.floor(), x - sae.b_dec
    screen.load(sae.encoder, sae.b_enc - floor)
    assert screen.covers(centred)
    bounds, over = screen.bounds(slice(0, len(x)))
    exact = centred.double() @ sae.encoder.double().T + (sae.b_enc - floor).double()
    plain = (screen.x[: len(x), : screen.d_in].double() @ screen.W[:, : screen.d_in].double().T) + (sae.b_enc - floor)
    active = sae.encode(x) > 0
    bar = 0.0 if trainer.quick.low is None else trainer.quick.low
    bar = rule.bar(bounds, over, bar)
    seen["entries"] += exact.numel()
    seen["below the truth"] += int((bounds.double() < exact * torch.where(exact > 0, 1 - 2.0**-8, 1 + 2.0**-8)).sum())
    seen["active"] += int(active.sum())
    if trainer.quick.low is None or float(sae.encode(x)[active].min()) >= trainer.quick.low:  # the guess held
        seen["active, missed"] += int((active & (bounds < bar)).sum())
    seen["margin"].append(float(over.mean()) / 2.25)
    seen["largest error"] = max(seen["largest error"], float((plain - exact).abs().max()))


if __name__ == "__main__":
    main()
