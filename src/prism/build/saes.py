"""The embedded SAEs: one shared harvest of activations, then SAELens' own trainer for each SAE.

Three quarters of the training use TopK (Gao et al. 2024: quick, and its auxiliary loss keeps features alive), the last
quarter, in which the learning rate falls to zero, BatchTopK (Bussmann et al. 2024): `k` features a token *on average*.
SAELens saves the result as JumpReLU with one threshold, so that a token may use as many features as it needs.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sae_lens import __version__ as sae_lens_version
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from prism.build.pretrain import Batches, PretrainConfig

SAMPLED_SHARE = 0.25  # of the SAEs' training text is the embedded corpus (a quarter of what the mixture weighs)


@dataclass(frozen=True)
class SaeConfig:
    """Settings of one SAE's training."""

    name: str
    hook_name: str
    d_in: int
    d_sae: int
    k: int = 32  # active features a token
    samples: int = 4_000_000  # activations trained on
    batch: int = 2_048  # activations a step
    lr: float = 1.2e-3
    dead_steps: int = 120  # steps without firing after which the auxiliary loss revives a feature
    seed: int = 0


def sae_configs(d_model: int, samples: int = 4_000_000) -> dict[str, SaeConfig]:
    """The embedded family: three depths, MLP output and neurons, and three widths at the default layer."""
    resid = "blocks.2.hook_resid_pre"
    rows = [
        SaeConfig("2-res", resid, d_model, 16 * d_model, samples=samples),
        SaeConfig("1-res", "blocks.1.hook_resid_pre", d_model, 16 * d_model, samples=samples),
        SaeConfig("3-res", "blocks.3.hook_resid_pre", d_model, 16 * d_model, samples=samples),
        SaeConfig("2-mlp-out", "blocks.2.hook_mlp_out", d_model, 16 * d_model, samples=samples),
        SaeConfig("2-mlp-post", "blocks.2.mlp.hook_post", 4 * d_model, 8 * d_model, samples=samples),
        SaeConfig("2-res-x4", resid, d_model, 4 * d_model, samples=samples),
        SaeConfig("2-res-x32", resid, d_model, 32 * d_model, samples=samples),
    ]
    return {row.name: row for row in rows}


@torch.no_grad()
def harvest_all(
    model,
    tokens: dict[str, np.ndarray],
    hooks: dict[str, int],
    out: Path,
    n: int,
    end: int,
    context: int,
    shares: dict[str, float],
) -> dict[str, np.ndarray]:
    """Activations of several hooks on the training mixture, from one pass, as float16 files `[n, d_in]`.

    BOS positions are left out. The files are kept and reused while the model and the size stay the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    fingerprint = float(sum(p.double().abs().sum() for p in model.original_model.parameters()))
    streams = {kind: [len(ids), zlib.crc32(np.ascontiguousarray(ids))] for kind, ids in tokens.items()}
    key = {"n": n, "hooks": hooks, "model": f"{fingerprint:.6f}", "context": context, "shares": shares} | streams
    files = {hook: out / f"{hook}.npy" for hook in hooks}
    key_path = out / "key.json"
    if not (key_path.is_file() and json.loads(key_path.read_text()) == key):
        key_path.unlink(missing_ok=True)
        arrays = {
            hook: np.lib.format.open_memmap(files[hook], "w+", np.float16, (n, d_in)) for hook, d_in in hooks.items()
        }
        stop = 1 + max(int(hook.split(".")[1]) for hook in hooks)
        config = PretrainConfig(batch=32, context=context, tokens=2.0 * n, seed=1)
        batches, filled = Batches(tokens, config, end, shares), 0
        bar = tqdm(total=n, unit="tok", unit_scale=True, desc="harvest")
        for step in range(config.steps):
            caught: dict[str, torch.Tensor] = {}
            model.run_with_hooks(
                batches(step),
                fwd_hooks=[(hook, keep_activation(caught, hook)) for hook in hooks],
                stop_at_layer=stop,
                return_type=None,
            )
            take = min(n - filled, config.batch * (context - 1))
            for hook, array in arrays.items():
                array[filled : filled + take] = caught[hook][:, 1:].reshape(-1, array.shape[1])[:take].half().numpy()
            filled += take
            bar.update(take)
            if filled == n:
                break
        bar.close()
        key_path.write_text(json.dumps(key))
    return {hook: np.load(path, mmap_mode="r") for hook, path in files.items()}


def keep_activation(caught: dict[str, torch.Tensor], name: str):
    """A hook that keeps its activation under a name."""

    def catch(activation: torch.Tensor, hook) -> None:
        caught[name] = activation

    return catch


def batches_of(activations: np.ndarray, config: SaeConfig, scale: float) -> Iterator[torch.Tensor]:
    """Random batches without replacement, epoch after epoch, scaled."""
    rng = np.random.default_rng(config.seed)
    while True:
        order = rng.permutation(len(activations))
        for start in range(0, len(order) - config.batch + 1, config.batch):
            rows = np.sort(order[start : start + config.batch])
            yield torch.from_numpy(activations[rows].astype(np.float32)) * scale


def train_sae(activations: np.ndarray, config: SaeConfig) -> BatchTopKTrainingSAE:
    """Train one TopK SAE with SAELens; the input is scaled to mean norm sqrt(d_in), then the scale folded in.

    Args:
        activations: `[samples, d_in]`.

    Returns:
        The SAE with its global threshold, which SAELens saves as JumpReLU.
    """
    torch.manual_seed(config.seed)
    sample = torch.from_numpy(activations[:: max(1, len(activations) // 20_000)].astype(np.float32))
    scale = float(config.d_in**0.5 / sample.norm(dim=1).mean())
    source = batches_of(activations, config, scale)
    shape = {"d_in": config.d_in, "d_sae": config.d_sae, "normalize_activations": "none"}
    first = TopKTrainingSAE(TopKTrainingSAEConfig(k=config.k, **shape))
    first.b_dec.data = (sample * scale).mean(0)
    last_steps = config.samples // config.batch // 4
    first_steps = config.samples // config.batch - last_steps
    _fit(first, source, config, steps=first_steps, warm_up=min(100, first_steps // 4), decay=0)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=float(config.k), **shape))
    sae.load_state_dict(first.state_dict(), strict=False)
    sae.topk_threshold.fill_(_threshold(first, sample * scale))
    _fit(sae, source, config, steps=last_steps, warm_up=0, decay=last_steps)
    sae.fold_activation_norm_scaling_factor(scale)
    return sae


def _fit(sae, source: Iterator[torch.Tensor], config: SaeConfig, steps: int, warm_up: int, decay: int) -> None:
    """Run SAELens' trainer for some steps."""
    settings = SAETrainerConfig(
        total_training_samples=steps * config.batch,
        train_batch_size_samples=config.batch,
        lr=config.lr,
        lr_end=config.lr / 20,
        lr_warm_up_steps=warm_up,
        lr_decay_steps=decay,
        dead_feature_window=config.dead_steps,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(settings, sae, source).fit()


@torch.no_grad()
def _threshold(sae: TopKTrainingSAE, sample: torch.Tensor) -> float:
    """The one threshold under which `k` features a token fire on average over a sample `[samples, d_in]`."""
    hidden = sae.encode_with_hidden_pre(sample)[1].relu().flatten()
    return hidden.kthvalue(hidden.numel() - sae.cfg.k * len(sample)).values.item()


def save_sae(sae: BatchTopKTrainingSAE, config: SaeConfig, context: int, out: Path) -> None:
    """Write an SAE in SAELens' format with float16 weights and complete metadata."""
    sae.cfg.metadata = SAEMetadata(
        sae_lens_version=sae_lens_version,
        model_name="mini",
        hook_name=config.hook_name,
        hook_head_index=None,
        context_size=context,
        prepend_bos=True,
        exclude_special_tokens=False,  # end tokens between documents were trained on, position 0 was not
        model_from_pretrained_kwargs={},
        training_samples=config.samples,
        training_data="the training mixture of mini and its embedded corpus, BOS positions left out",
    )
    folder = out / config.name
    temporary = out / f".{config.name}.part"
    weights, cfg = sae.save_inference_model(temporary)
    half = {name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}
    save_file(half, weights)
    settings = json.loads(Path(cfg).read_text()) | {"dtype": "float16"}
    Path(cfg).write_text(json.dumps(settings, indent=1) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for file in (weights, cfg):
        os.replace(file, folder / Path(file).name)
    for leftover in temporary.iterdir():
        leftover.unlink()
    temporary.rmdir()
