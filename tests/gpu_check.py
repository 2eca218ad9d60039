"""Harvest, training, evaluation and steering on the GPU against the CPU, and how quick they are (`tests/gpu.sh`)."""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

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


def ours(d_sae: int, dtype: str, batch: int = 4_096) -> training.loop.Trainer:
    """A BatchTopK trainer on the GPU; with bfloat16 it screens."""
    os.environ["PRISM_DTYPE"] = dtype
    config = training.TrainConfig(batch=batch, tokens=100 * batch)
    sae = SaeConfig(768, d_sae, "batch_topk", k=32)
    return training.loop.Trainer(sae, config, activations(batch), device="cuda")


def theirs(d_sae: int, batch: int = 4_096) -> SAETrainer:
    """SAELens' trainer with autocast on."""
    config = BatchTopKTrainingSAEConfig(d_in=768, d_sae=d_sae, k=32, normalize_activations="none", device="cuda")
    settings = SAETrainerConfig(
        total_training_samples=100 * batch,
        train_batch_size_samples=batch,
        lr=1e-3,
        lr_end=1e-5,
        lr_warm_up_steps=5,
        lr_decay_steps=25,
        dead_feature_window=1_000,
        autocast=True,
        device="cuda",
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(settings, BatchTopKTrainingSAE(config).to("cuda"), iter(()))


def activations(n: int) -> torch.Tensor:
    """Sparse mixtures of 2,000 directions, which an SAE can find, of mean norm √768."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2_000, 768, generator=generator)
    x = torch.rand(n, 2_000, generator=generator) * (torch.rand(n, 2_000, generator=generator) < 0.01) @ directions
    return x * 768**0.5 / x.norm(dim=1).mean()


def screened_losses(dtype: str) -> list[float]:
    trainer, x = ours(4_096, dtype, 1_000), activations(20_000)
    found = [trainer.take(rows)["loss"] for rows in x.split(1_000)]
    assert trainer.quick.batches["screened" if dtype == "bfloat16" else "float32"], trainer.quick.batches
    return found


def steps() -> None:
    """Steps a second, peak memory, and explained variance after 100 equal steps: ours in both formats, SAELens'."""
    held, x = activations(4_096 + 40_960).split([4_096, 40_960])
    for d_sae in (24_576, 131_072):
        for name, dtype in (
            ("prism, screened", "bfloat16"),
            ("prism, float32", "float32"),
            ("SAELens, autocast", None),
        ):
            torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
            trainer = theirs(d_sae) if dtype is None else ours(d_sae, dtype)
            for step in range(100):
                if step == 20:
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                rows = x.split(4_096)[step % 10].cuda()
                if dtype is None:
                    with torch.enable_grad():
                        trainer._train_step(trainer.sae, rows)
                else:
                    trainer.take(rows)
            torch.cuda.synchronize()
            speed, peak = 80 / (time.perf_counter() - start), torch.cuda.max_memory_allocated() / 1e9
            with torch.no_grad():
                if dtype is not None:
                    training.loop.calibrate(trainer.sae.eval(), x[:4_096].cuda() * trainer.scale)
                scale = getattr(trainer, "scale", 1.0)
                share = ev.explained_variance(held, trainer.sae(held.cuda() * scale).cpu() / scale)
            print(f"     {name:<18} 768 × {d_sae:,}: {speed:.1f} steps/s, {peak:.1f} GB, EV {share:.3f}", flush=True)


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
    check("losses with a screen", screened_losses("float32"), screened_losses("bfloat16"), 1e-2)
    speeds()
    steps()
    print("all agree" if not FAILED else f"{len(FAILED)} differ: {', '.join(FAILED)}")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
