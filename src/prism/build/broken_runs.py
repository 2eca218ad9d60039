"""Six small training runs with one planted fault each, and a healthy one: the logs of 'Diagnose the broken run'.

Every run is really trained, on the embedded model's activations and with the same seed. Three faults need help to show
on a model this small, and the table below says how they were planted: its BOS activations are no longer than others,
the trainer's own L1 term, weighted by decoder norms, cannot be cheated, and hardly a feature dies by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from prism.data import corpus_batch, corpus_documents, training_documents
from prism.models import ModelSpec, harvest, load_model
from prism.phases.phase_4.exercises import FAULTS, HEALTHY, KEY
from prism.sae import SaeConfig
from prism.sae.architectures import ReLU
from prism.training import TrainConfig
from prism.training.loop import Trainer
from prism.training.sources import ArraySource

HOOK = "blocks.2.hook_resid_pre"
HARVESTED = 200_000  # activations, of which a run reads each at least once
EVERY = 2  # steps between two rows of a log
SAE = SaeConfig(d_in=192, d_sae=768, architecture="relu", sparsity=2.0)  # ends at an L0 near 38
TRAINING = TrainConfig(tokens=300_000, batch=1_024, dead_after=30_000, resample_every=40_000)
# The shared settings say nothing of the fault, and lr and sparsity would say all of it: neither is in the log.
HIDDEN = ("lr", "sparsity")


class PlainL1(ReLU):
    """ReLU with the L1 term of the early papers, not weighted by decoder norms: larger rows then make it cheaper."""

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """`Σ_i f_i`, mean over tokens."""
        return f.sum(1).mean()


@dataclass(frozen=True)
class Run:
    """How a run differs from the healthy one."""

    training: dict = field(default_factory=dict)
    sparsity: float = SAE.sparsity
    plain_l1: bool = False
    bos: float = 0.0  # BOS left in, its activations times this (in larger models they are tens of times longer)
    in_order: bool = False  # text after text, kind after kind
    bias: float = 0.0  # start of the encoder's bias


RUNS: dict[str, Run] = dict(
    zip(
        (HEALTHY, *FAULTS),
        (
            Run(),
            Run(training={"lr": 0.015}),
            Run(sparsity=8.0),
            Run(training={"normalise_decoder": False}, plain_l1=True),
            Run(bos=30.0),
            Run(in_order=True),
            Run(training={"resample_every": 10**9}, bias=-0.7),  # most features never fire, and nothing wakes them
        ),
        strict=True,
    )
)


def write_logs(spec: ModelSpec, path: Path) -> None:
    """Train all runs and write their logs as one Parquet file, under letters: columns run, step, measures."""
    activations, bos = ordered_activations(spec)
    frames = []
    for name in (*KEY, HEALTHY):
        run = RUNS[KEY.get(name, HEALTHY)]
        log = pd.DataFrame(run_log(run, prepared(run, activations, bos), name))
        log.insert(0, "run", name)
        frames.append(log)
    frame = pd.concat(frames, ignore_index=True)
    exact = [c for c in frame if frame[c].dtype == "float64"]
    frame[exact] = frame[exact].map(lambda value: float(f"{value:.4g}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False, compression="zstd")


def ordered_activations(spec: ModelSpec) -> tuple[np.ndarray, Bool[np.ndarray, "tokens"]]:
    """Activations `[tokens, d_in]` in text order, kind after kind, BOS left in; and which of them are BOS."""
    model = load_model(spec)
    documents = corpus_documents(training_documents(spec.corpus), model.tokenizer, spec.context, HARVESTED)
    batch = corpus_batch(documents.sort_values("kind", kind="stable"), model.tokenizer, spec.context)
    real = batch.keep.clone()
    real[:, 0] = True
    stream = zip(harvest(model, batch.tokens, HOOK), real.split(32), strict=True)
    activations = np.concatenate([x[kept].numpy() for x, kept in stream])
    position = torch.arange(real.shape[1]).expand_as(real)[real]
    return activations, (position == 0).numpy()


def prepared(run: Run, activations: np.ndarray, bos: Bool[np.ndarray, "tokens"]) -> np.ndarray:
    """What a run trains on: BOS left out, or left in as long as the run asks for."""
    if not run.bos:
        return activations[~bos]
    return np.where(bos[:, None], np.float32(run.bos) * activations, activations)


def in_order(activations: np.ndarray, batch: int) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Batches without end, as the activations come."""
    while True:
        for first in range(0, len(activations) - batch + 1, batch):
            yield torch.from_numpy(activations[first : first + batch])


def run_log(run: Run, activations: np.ndarray, label: str) -> list[dict]:
    """Train one run by hand; returns every second step's measures."""
    config = replace(TRAINING, **run.training)
    settings = replace(SAE, sparsity=run.sparsity)
    source, rows = ArraySource(activations, config.batch, config.seed), []
    sae = PlainL1(settings) if run.plain_l1 else settings
    trainer = Trainer(sae, config, source.sample(), way="dense")
    trainer.sae.b_enc.data += run.bias
    stream = in_order(activations, config.batch) if run.in_order else source.batches()
    for step in tqdm(range(config.steps), desc=f"run {label}"):
        x = next(stream)
        taken = trainer.take(x)
        if step % EVERY == 0:
            row = {"step": step, **taken, **extra_measures(trainer, x)}
            rows.append({name: value for name, value in row.items() if name not in HIDDEN})
    return rows


@torch.no_grad()
def extra_measures(trainer: Trainer, x: Float[Tensor, "batch d_in"]) -> dict[str, float]:
    """What a monitor does not keep: decoder rows, active features' activation, lengths of the batch's inputs."""
    f, norm = trainer.sae.encode(x * trainer.scale), x.norm(dim=1)
    active = (f > 0).sum().clamp(min=1)
    return {
        "decoder_norm": trainer.sae.W_dec.norm(dim=1).mean().item(),
        "activation": (f.sum() / active).item(),
        "input_norm": norm.mean().item(),
        "largest_input_norm": norm.max().item(),
    }
