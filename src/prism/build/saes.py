"""The embedded SAEs: one shared harvest of activations, then `prism.training` for each SAE."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from prism.build.pretrain import Batches, PretrainConfig
from prism.data import corpus_batch, training_documents
from prism.device import as_float16
from prism.evaluation import evaluate
from prism.models import FAMILY, ModelSpec, SaeSpec, activations_at, load_model, metadata_of, random_model
from prism.models.saes import TARGET_L0, held_out_batch, member_configs, training_activations
from prism.sae import SaeConfig, SparseAutoencoder, save_saelens, to_saelens
from prism.training import Monitor, TrainConfig, train

SAMPLED_SHARE = 0.25  # of the SAEs' training text is the embedded corpus (a quarter of what the mixture weighs)
WIDTHS = {"2-res-x4": 4, "2-res-x32": 32, "2-mlp-post": 8}  # features a channel of the model; of the others 16


def embedded_config(sae: SaeSpec, d_model: int) -> SaeConfig:
    """Shape of one of `mini`'s embedded SAEs."""
    d_in = 4 * d_model if sae.hook_name.endswith("mlp.hook_post") else d_model
    return SaeConfig(d_in, WIDTHS.get(sae.name, 16) * d_model)


@torch.no_grad()
def harvest_all(
    model: TransformerBridge,
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
    fingerprint = float(sum(p.double().abs().sum() for p in model.parameters()))
    streams = {kind: [len(ids), zlib.crc32(np.ascontiguousarray(ids))] for kind, ids in tokens.items()}
    key = {"n": n, "hooks": hooks, "model": f"{fingerprint:.6f}", "context": context, "shares": shares} | streams
    files = {hook: out / f"{hook}.npy" for hook in hooks}
    key_path = out / "key.json"
    if not (key_path.is_file() and json.loads(key_path.read_text(encoding="utf-8")) == key):
        key_path.unlink(missing_ok=True)
        arrays = {
            hook: np.lib.format.open_memmap(files[hook], "w+", np.float16, (n, d_in)) for hook, d_in in hooks.items()
        }
        config = PretrainConfig(batch=32, context=context, tokens=2.0 * n, seed=1)
        batches, filled = Batches(tokens, config, end, shares), 0
        bar = tqdm(total=n, unit="tok", unit_scale=True, desc="harvest")
        for step in range(config.steps):
            caught = activations_at(model, batches(step), hooks)
            take = min(n - filled, config.batch * (context - 1))
            for hook, array in arrays.items():
                part = as_float16(caught[hook][:, 1:].reshape(-1, array.shape[1])[:take])
                if part.dtype != torch.float16:
                    raise ValueError(
                        f"activations at '{hook}' do not fit float16, the format of these files (largest: "
                        f"{float(part.abs().max()):.3g}); train on them without files"
                    )
                array[filled : filled + take] = part.numpy()
            filled += take
            bar.update(take)
            if filled == n:
                break
        bar.close()
        key_path.write_text(json.dumps(key), encoding="utf-8")
    return {hook: np.load(path, mmap_mode="r") for hook, path in files.items()}


def train_embedded(
    activations: np.ndarray, sae: SaeSpec, settings: SaeConfig, spec: ModelSpec, out: Path
) -> SparseAutoencoder:
    """Train one SAE on harvested activations `[samples, d_in]` and save it in SAELens' format, as float16."""
    config = TrainConfig(tokens=len(activations))
    trained = train(activations, settings, config, Monitor(sae.name))
    text = "the training mixture of mini and its embedded corpus, BOS positions left out"
    metadata = metadata_of(trained, config, spec, sae.hook_name, len(activations), text)
    save_saelens(trained, out / sae.name, metadata)
    return trained


FRONT_L0 = (16, 32, 64)  # where the architectures are compared
FAMILY_TOKENS = 2_000_000
EVALUATION_TOKENS = 60_000


def train_family(spec: ModelSpec, out: Path, members: Collection[str] = tuple(FAMILY)) -> pd.DataFrame:
    """The SAEs that notebooks compare, and the front of the architectures: trained, measured, written to `out`.

    The members at the family's L0 are saved; of the others on the front only the measures are kept, in `front.csv`.

    Args:
        members: names in `FAMILY`; all of them by default.
    """
    out.mkdir(parents=True, exist_ok=True)
    model, hook = load_model(spec), spec.sae().hook_name
    batch = held_out_batch(spec, model.tokenizer, EVALUATION_TOKENS)
    total = int(corpus_batch(training_documents(spec.corpus), model.tokenizer, spec.context).keep.sum())
    rows = []
    for name, member in ((name, FAMILY[name]) for name in members):
        activations = training_activations(spec, hook, total, member.random_model)
        reads = random_model(spec) if member.random_model else model
        for target in FRONT_L0 if name == member.sae.get("architecture", "batch_topk") else (TARGET_L0,):
            sae, config = member_configs(name, activations.shape[1], FAMILY_TOKENS, target)
            trained = train(activations, sae, config, Monitor(f"{name}, L0 {target}"))
            metadata = metadata_of(trained, config, spec, hook, len(activations))
            if target == TARGET_L0:
                save_saelens(trained, out / name, metadata)
            found = evaluate(reads, to_saelens(trained, metadata), batch, with_kl=False)
            left_out = ("density", "kl", "per_sequence", "delta_ce_interval", "mean_ablation_interval")
            row = {measure: value for measure, value in vars(found).items() if measure not in left_out}
            low, high = found.delta_ce_interval
            rows.append({"member": name, "target_l0": target, **row, "delta_ce_low": low, "delta_ce_high": high})
            pd.DataFrame(rows).to_csv(out / "front.csv", index=False)
    return pd.DataFrame(rows)
