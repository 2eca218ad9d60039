"""Speed and memory of one SAE training step beside SAELens' own, autograd's, and the encoder product alone.

`python benchmarks/bench_training.py` takes about ten minutes. Seconds are CPU seconds of one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from timing import interleaved, peak_memory, print_table

from prism import models
from prism.data import corpus_batch, load_corpus
from prism.evaluation import explained_variance
from prism.fast import SparseGradients
from prism.sae import SaeConfig, dense_gradients, make_sae
from prism.training import TrainConfig, train
from prism.training.loop import update

D_IN, BATCH, K, RELU_L0 = 768, 4_096, 32, (60, 120, 300)
EQUAL_TOKENS, EQUAL_WIDTH = 150_000, 3_072


@torch.no_grad()
def main() -> None:
    """All tables. `--quick` leaves out the wide SAEs and the comparison at equal tokens."""
    torch.set_num_threads(1)
    for d_sae in (4_096,) if "--quick" in sys.argv else (4_096, 24_576):
        for architecture in ("topk", "batch_topk"):
            step_table(architecture, d_sae)
        for l0 in RELU_L0 if d_sae == 4_096 else RELU_L0[:1]:
            step_table("relu", d_sae, l0)
    if "--quick" not in sys.argv:
        equal_tokens()


def step_table(architecture: str, d_sae: int, l0: int = K) -> None:
    """One optimiser step, four ways, on the same activations."""
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0))
    config = SaeConfig(D_IN, d_sae, architecture, k=K)
    bias = 0.0 if architecture != "relu" else relu_bias(config, x, l0)
    ways = {
        "SAELens": saelens_step(architecture, d_sae, x),
        "autograd on prism.sae": prism_step(config, x, bias, "dense"),
        "prism.training": prism_step(config, x, bias, "sparse"),
        "encoder product alone": encoder_product(config, x),
    }
    if (step := dictionary_learning_step(architecture, d_sae, x)) is not None:
        ways["dictionary-learning"] = step
    memory = {name: peak_memory(way) for name, way in ways.items()}
    seconds, _ = interleaved(ways)
    print_table(f"{architecture}, d_in {D_IN}, d_sae {d_sae:,}, batch {BATCH:,}, L0 {l0}", seconds, memory, BATCH)
    print(f"product alone / prism.training: {seconds['encoder product alone'] / seconds['prism.training']:.2f}")


def relu_bias(config: SaeConfig, x: torch.Tensor, l0: int) -> float:
    """The encoder bias under which `l0` features a token are active at the start."""
    pre = make_sae(config).pre_activations(x[:256]).flatten()
    return -pre.kthvalue(pre.numel() - 256 * l0).values.item()


def prism_step(config: SaeConfig, x: torch.Tensor, bias: float, way: str) -> Callable[[], None]:
    """Gradients, Adam, and decoder rows at norm 1."""
    sae = make_sae(config).train()
    sae.b_enc.data.fill_(bias)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-6, fused=True)  # so small that L0 stays what it is
    dead = torch.tensor([], dtype=torch.long)
    gradients = SparseGradients(sae, BATCH) if way == "sparse" else lambda *arguments: dense_gradients(sae, *arguments)

    def step() -> None:
        gradients(x, dead, 1e-3)
        update(sae, adam, 1e-6)

    return step


def saelens_step(architecture: str, d_sae: int, x: torch.Tensor) -> Callable[[], None]:
    """SAELens' own trainer, as it takes a step."""
    sae, trainer = saelens_trainer(architecture, x.shape[1], d_sae, 10**6, len(x), 1e-6)

    def step() -> None:
        with torch.enable_grad():
            trainer._train_step(sae, x)

    return step


def saelens_trainer(architecture: str, d_in: int, d_sae: int, tokens: int, batch: int, lr: float, source=()):
    """A SAELens training SAE and its trainer, with Adam and no schedule but a linear decay."""
    kinds = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": K, "use_sparse_activations": False}),
        "batch_topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": K}),
        "relu": (StandardTrainingSAE, StandardTrainingSAEConfig, {"l1_coefficient": 1e-3}),
    }
    cls, settings, options = kinds[architecture]
    sae = cls(settings(d_in=d_in, d_sae=d_sae, normalize_activations="none", **options))
    steps = max(1, tokens // batch)
    config = SAETrainerConfig(
        total_training_samples=tokens,
        train_batch_size_samples=batch,
        lr=lr,
        lr_end=lr / 100,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 4,
        dead_feature_window=1000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return sae, SAETrainer(config, sae, iter(source))


def encoder_product(config: SaeConfig, x: torch.Tensor) -> Callable[[], None]:
    """The one product that every way needs, into memory that is there."""
    sae, out = make_sae(config), torch.empty(BATCH, config.d_sae)
    return lambda: torch.addmm(sae.b_enc, x, sae.W_enc.T, out=out)


def dictionary_learning_step(architecture: str, d_sae: int, x: torch.Tensor) -> Callable[[], None] | None:
    """The trainers of `dictionary-learning`, where that is installed."""
    try:
        from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
        from dictionary_learning.trainers.standard import StandardTrainer
        from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
    except ImportError:
        return None
    shared = dict(steps=10**6, activation_dim=D_IN, dict_size=d_sae, layer=0, lm_name="", device="cpu", lr=1e-6)
    trainer = {
        "topk": lambda: TopKTrainer(**shared, k=K, dict_class=AutoEncoderTopK),
        "batch_topk": lambda: BatchTopKTrainer(**shared, k=K, dict_class=BatchTopKSAE),
        "relu": lambda: StandardTrainer(**shared, l1_penalty=1e-3, warmup_steps=0, sparsity_warmup_steps=None),
    }[architecture]()
    count = iter(range(10**6))

    def step() -> None:
        with torch.enable_grad():
            trainer.update(next(count), x)

    return step


def equal_tokens() -> None:
    """Whether speed costs quality: the same real activations, as many of them, both trainers from their own start."""
    spec = models.get_spec()
    model, hook = models.load_model(spec), spec.sae().hook_name
    batch = corpus_batch(load_corpus(spec.corpus), model.tokenizer, spec.context, EQUAL_TOKENS)
    x = models.kept_activations(model, hook, batch)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    held, x = x[:10_000], x[10_000:]
    d_in, config = x.shape[1], TrainConfig(tokens=len(x), batch=2_048)
    scale = d_in**0.5 / x.norm(dim=1).mean()
    x, held = x * scale, held * scale
    print(f"\nexplained variance at L0 {K} after {len(x):,} activations at {hook}, d_sae {EQUAL_WIDTH:,}")
    for architecture in ("topk", "batch_topk"):
        ours = train(x, SaeConfig(d_in, EQUAL_WIDTH, architecture, k=K), replace(config, seed=1))
        for lr in (1e-3, 3e-3):
            rows = [part for part in x.split(config.batch) if len(part) == config.batch]
            n = len(rows) * config.batch
            theirs, trainer = saelens_trainer(architecture, d_in, EQUAL_WIDTH, n, config.batch, lr)
            for part in rows:
                with torch.enable_grad():
                    trainer._train_step(theirs, part)
                trainer.n_training_samples += len(part)
            with torch.no_grad():
                print(f"{architecture:<12} SAELens, lr {lr:g}: {explained_variance(held, theirs(held)):.3f}")
        with torch.no_grad():
            print(f"{architecture:<12} prism, lr {config.lr:g}:   {explained_variance(held, ours(held)):.3f}")


if __name__ == "__main__":
    main()
