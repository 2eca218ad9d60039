"""Harvest, training, evaluation and steering on the GPU against the CPU, and how quick they are (`tests/gpu.sh`)."""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import torch

from prism import data, models, training
from prism import evaluation as ev
from prism import interventions as iv
from prism.models import get_spec, load_model, load_sae
from prism.models.fetching import is_fetched
from prism.sae import SaeConfig
from prism.sae.architectures import ARCHITECTURES

FAILED: list[str] = []


def check(name: str, here, there, rtol: float, atol: float = 1e-4) -> None:
    """Prints how far the GPU is from the CPU, and remembers where it is too far."""
    here, there = np.asarray(here, float), np.asarray(there, float)
    ok = here.shape == there.shape and np.allclose(there, here, rtol=rtol, atol=atol)
    apart = np.abs(there - here).max() / max(np.abs(here).max(), 1e-9) if here.shape == there.shape else np.nan
    print(f"{'ok ' if ok else 'BAD'}  {name:<44} largest difference {apart:.1e} of the largest value", flush=True)
    if not ok:
        FAILED.append(name)


def on(where: str) -> None:
    os.environ["PRISM_DEVICE"], os.environ["PRISM_DTYPE"] = where, "float32"


def compare(name: str, task, rtol: float, atol: float = 1e-4) -> None:
    """A task's numbers on the CPU and on the GPU."""
    found = []
    for where in ("cpu", "cuda"):
        on(where)
        found.append(task())
    check(name, *found, rtol, atol)


def setting(texts: int = 20):
    spec = get_spec("mini")
    sae = load_sae(spec)
    model = load_model(spec, sae)
    return model, sae, data.tokenize(data.load_texts()["text"].tolist()[:texts], model.tokenizer, spec.context)


def harvest(hook: str):
    model, _, batch = setting()
    assert next(model.parameters()).device.type == os.environ["PRISM_DEVICE"]
    return models.kept_activations(model, hook, batch)


def evaluate():
    model, sae, batch = setting()
    found = ev.evaluate(model, sae, batch)
    return found.l0, found.explained_variance, found.ce_clean, found.delta_ce, found.mean_ablation_cost, found.kl


def losses(architecture: str):
    x = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    monitor = training.Monitor()
    config = training.TrainConfig(tokens=60_000, batch=1_000, dead_after=5_000, resample_every=5_000)
    training.train(x, SaeConfig(64, 512, architecture, k=8), config, monitor)
    return [row["loss"] for row in monitor.rows]


def steered():
    model, sae, batch = setting()
    hook, prompts = sae.cfg.metadata.hook_name, batch[:4].tokens[:, :8]
    changes = (
        None,
        iv.add(sae.W_dec[7], 20.0),
        iv.changes.clamp(sae, 7, 30.0),
        iv.project_out(sae.W_dec[7], mean=sae.b_dec),
    )
    runs = (iv.generate(model, prompts, 12, hook if c else None, c, temperature=0.0) for c in changes)
    return torch.cat([run.log_probs for run in runs])


def speeds() -> None:
    """Tokens and training steps a second on the GPU."""
    os.environ["PRISM_DEVICE"] = "cuda"
    names = ["mini"] + ["smollm2"] * is_fetched(models.fetching.SMOLLM2_WHEEL)
    for name in names:
        spec = get_spec(name)
        hook, tokens = spec.sae().hook_name, torch.randint(17, 4_000, (256, spec.context))
        for dtype in ("float32", "bfloat16"):
            os.environ["PRISM_DTYPE"] = dtype
            model = load_model(spec, bulk=True)
            list(models.harvest(model, tokens[:32], hook, progress=False))
            start = time.perf_counter()
            list(models.harvest(model, tokens, hook, progress=False))
            print(
                f"     {name} to {hook}, {next(model.parameters()).dtype}: "
                f"{tokens.numel() / (time.perf_counter() - start):,.0f} tokens/s",
                flush=True,
            )
    x = torch.randn(40_960, 768)
    for d_sae in (4_096, 24_576):
        trainer = training.loop.Trainer(
            SaeConfig(768, d_sae, "batch_topk", k=32), training.TrainConfig(batch=4_096), x, device="cuda"
        )
        for step in range(25):
            if step == 5:
                torch.cuda.synchronize()
                start = time.perf_counter()
            trainer.take(x[:4_096])
        torch.cuda.synchronize()
        speed = 20 / (time.perf_counter() - start)
        print(f"     BatchTopK, 768 × {d_sae:,}, batch 4,096: {speed:.1f} steps/s", flush=True)


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was tried")
        return 1
    torch.backends.cuda.matmul.allow_tf32 = False
    print(torch.cuda.get_device_name(0), "torch", torch.__version__, flush=True)
    for hook in ("blocks.2.hook_resid_pre", "blocks.3.mlp.hook_post", "blocks.1.attn.hook_z"):
        compare(f"harvest {hook}", lambda hook=hook: harvest(hook), 1e-3, 1e-2)
    compare("evaluate", evaluate, 2e-3)
    for architecture in ARCHITECTURES:
        compare(f"training losses, {architecture}", lambda a=architecture: losses(a), 2e-2)
    compare("steering, log-probabilities", steered, 1e-2, 1e-2)
    speeds()
    print("all agree" if not FAILED else f"{len(FAILED)} differ: {', '.join(FAILED)}")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
