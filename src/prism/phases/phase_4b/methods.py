"""What phase 4b reads and computes: learning rates, SAEs cut down to one L0, kin of a feature, SAELens' trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE, LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from scipy.stats import binom

from prism.data import DATA, token_table, tokenize
from prism.features import encode_features
from prism.manifest import intact
from prism.models import SMOLLM2, ModelSpec
from prism.sae import SparseAutoencoder, save_saelens
from prism.training import TrainConfig
from prism.training.sources import ArraySource
from prism.visualization.style import ULTRALOW

RATES = DATA / "smollm2" / "rates.csv"  # made by `prism.build smollm2`, as its data card says
COLUMNS = ["architecture", "lr", "l0", "explained_variance"]
AT_ONCE = 2_048  # tokens that are encoded at once


def learning_rates(spec: ModelSpec) -> pd.DataFrame:
    """What each architecture reached at each learning rate that was tried for it; no row where none was recorded."""
    return pd.read_csv(intact(RATES)) if spec is SMOLLM2 else pd.DataFrame(columns=COLUMNS)


@torch.no_grad()
def cut_down(sae, x: Float[torch.Tensor, "tokens d_in"], levels: Sequence[float]) -> pd.DataFrame:
    """What an SAE still explains when only its strongest activations, over all tokens together, are kept.

    Args:
        sae: its decoder rows have one length, so that a stronger activation changes the reconstruction more.
        x: activations.
        levels: active features a token that are left; one above the SAE's own L0 changes nothing.

    Returns:
        One row a level: `l0` and `explained_variance`.

    Raises:
        ValueError: a level that leaves no activation.
    """
    if min(levels) * len(x) < 1:
        raise ValueError(f"a level of {min(levels)} leaves nothing of {len(x)} tokens; take at least {1 / len(x):.2g}")
    fired = torch.cat([f[f > 0] for f in map(sae.encode, x.split(AT_ONCE))]).sort(descending=True).values
    cuts = [fired[min(round(level * len(x)), len(fired)) - 1] for level in levels]
    left, residual = [0] * len(cuts), [0.0] * len(cuts)
    for part in x.split(AT_ONCE):
        f = sae.encode(part)
        for i, cut in enumerate(cuts):
            kept = f * (f >= cut)
            left[i] += int((kept > 0).sum())
            residual[i] += (part - sae.decode(kept)).double().pow(2).sum().item()
    total = (x - x.double().mean(0)).pow(2).sum().item()
    return pd.DataFrame(
        {"l0": [n / len(x) for n in left], "explained_variance": [1 - error / total for error in residual]}
    )


def ultralow_bound(silent: int, n_tokens: int, density: float = ULTRALOW) -> int:
    """How many features can be rarer than a density, at 95 %, when so many are silent.

    A feature with that density or less is silent on `n_tokens` with a probability of `(1 − density)^n` at least, so a
    cluster of them would show as silent features.

    Args:
        silent: features that never fired; n_tokens: tokens that were read; density: firings per token.

    Returns:
        The largest number under which `silent` or fewer silent ones have a probability of 5 % or more.

    >>> ultralow_bound(0, 8_000), ultralow_bound(10, 8_000)
    (0, 11)
    """
    quiet, bound = (1 - density) ** n_tokens, silent
    while binom.cdf(silent, bound + 1, quiet) >= 0.05:
        bound += 1
    return bound


def kin(saes: Mapping[str, object], home: str, feature: int, n: int = 2) -> pd.DataFrame:
    """Of each SAE the features whose decoder rows point most nearly where one of the home SAE points.

    Args:
        saes: name -> SAE; home: the one that the feature is of.
        n: nearest features of each.

    Returns:
        `n` rows an SAE, the home one first, the nearest first: `sae`, `feature` and `cosine`.
    """
    unit = {name: torch.nn.functional.normalize(sae.W_dec.detach(), dim=1) for name, sae in saes.items()}
    found = []
    for name in (home, *(other for other in saes if other != home)):
        near = (unit[name] @ unit[home][feature]).topk(n)
        found += [(name, int(i), float(cosine)) for cosine, i in zip(near.values, near.indices, strict=True)]
    return pd.DataFrame(found, columns=["sae", "feature", "cosine"])


def last_values(
    model, saes: Mapping[str, object], texts: Sequence[str], features: Sequence[tuple[str, int]], context: int
) -> pd.DataFrame:
    """What features do on the *last* token of each text: a row a text, a column an (SAE, feature)."""
    batch = tokenize(list(texts), model.tokenizer, context)
    table = token_table(batch, model.tokenizer)
    last = table.groupby("text").tail(1).index
    encoded = {name: encode_features(model, saes[name], batch, table) for name in dict(features)}
    columns = pd.MultiIndex.from_tuples(features, names=["sae", "feature"])
    values = np.stack([encoded[name].column(i)[last] for name, i in features], axis=1)
    return pd.DataFrame(values, index=list(texts), columns=columns)


def keeps_all(by_sign: pd.DataFrame) -> pd.Series:
    """Which features (rows) fire before every sign (columns) at half of their largest mean or more."""
    return (by_sign.min(axis=1) >= by_sign.max(axis=1) / 2) & (by_sign.max(axis=1) > 0)


def through_saelens(sae: SparseAutoencoder, metadata: SAEMetadata) -> SAE:
    """An SAE written to a folder, and read back by SAELens."""
    with tempfile.TemporaryDirectory() as folder:
        save_saelens(sae, Path(folder) / "sae", metadata)
        return SAE.load_from_disk(Path(folder) / "sae", dtype="float32")


def saelens_trained(x: Float[torch.Tensor, "tokens d_in"], d_sae: int, k: int, config: TrainConfig) -> SAE:
    """A TopK trained by SAELens' own trainer on the same activations, at our learning rate and with our batches.

    Warm-up, decay, end rate and the start of `b_dec` are set like ours; its weights' start, its optimiser's other
    settings and its auxiliary loss are its own. Inputs are scaled as ours are, and unscaled after.
    """
    scale, steps = float(x.shape[1] ** 0.5 / x.norm(dim=1).mean()), config.steps
    settings = SAETrainerConfig(
        total_training_samples=config.tokens,
        train_batch_size_samples=config.batch,
        lr=config.lr,
        lr_end=config.lr / 100,
        lr_warm_up_steps=max(1, steps // 20),
        lr_decay_steps=max(1, steps // 4),
        dead_feature_window=max(1, config.dead_after // config.batch),
        logger=LoggingConfig(log_to_wandb=False),
    )
    torch.manual_seed(config.seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=d_sae, k=k, normalize_activations="none"))
    sae.b_dec.data = x.mean(0) * scale
    trainer = SAETrainer(settings, sae, iter([]))
    for batch in ArraySource(x.numpy() * scale, config.batch, config.seed).batches():
        if trainer.n_training_samples >= config.tokens:
            break
        trainer._train_step(sae, batch)
        trainer.n_training_samples += len(batch)
    with torch.no_grad():
        sae.b_enc /= scale
        sae.b_dec /= scale
    return sae.eval()
