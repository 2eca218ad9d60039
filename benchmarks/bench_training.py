"""Speed and memory of one SAE training step beside those of other libraries, autograd's, and the encoder product alone;
what a screen in bfloat16 looks at; and whether speed costs quality.

`python benchmarks/bench_training.py` takes about 40 minutes, `--quick` five, `--equal` only compares quality (20
minutes). Seconds are CPU seconds of one thread. `pip install --no-deps eai-sparsify==1.3.3 schedulefree simple-parsing
docstring-parser natsort dictionary-learning` adds the libraries that are not needed for anything else.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from timing import interleaved, peak_memory, print_table

from prism import models
from prism.data import corpus_batch, load_corpus
from prism.evaluation import explained_variance
from prism.fast import SparseGradients
from prism.sae import SaeConfig, dense_gradients, make_sae
from prism.sae.architectures import ARCHITECTURES
from prism.training import TrainConfig, train
from prism.training.loop import update

D_IN, BATCH, K, WIDTHS = 768, 4_096, 32, (4_096, 24_576)
L0 = {"relu": 60, "gated": 60, "jumprelu": 60}  # active features a token, where k does not say
EQUAL_TOKENS, EQUAL_WIDTH, LRS = 2_000_000, 3_072, (3e-4, 1e-3, 3e-3)


@torch.no_grad()
def main() -> None:
    """All tables. `--quick` leaves out the wide SAEs and the comparison of quality."""
    torch.set_num_threads(1)
    if "--equal" not in sys.argv:
        for d_sae in WIDTHS[:1] if "--quick" in sys.argv else WIDTHS:
            for architecture in ARCHITECTURES:
                step_table(architecture, d_sae)
    if "--quick" not in sys.argv:
        equal_tokens()


def step_table(architecture: str, d_sae: int) -> None:
    """One optimiser step on the same activations, ours and others'; and the product that every way needs."""
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0))
    config = SaeConfig(D_IN, d_sae, architecture, k=K)
    start = start_bias(config, x)
    ways = {
        "prism, screened": prism_step(config, x, start, "screened"),
        "prism, float32": prism_step(config, x, start, "float32"),
        "autograd on prism.sae": prism_step(config, x, start, "autograd") if d_sae == WIDTHS[0] else None,
        "SAELens": saelens_step(architecture, d_sae, x),
        "SAELens, autocast": saelens_step(architecture, d_sae, x, autocast=True),
        "sparsify": sparsify_step(d_sae, x) if architecture == "topk" else None,
        "dictionary-learning": dictionary_learning_step(architecture, d_sae, x),
        "product alone, float32": encoder_product(config, x, torch.float32),
        "product alone, bfloat16": encoder_product(config, x, torch.bfloat16),
    }
    ways = {name: way for name, way in ways.items() if way is not None}
    memory = {name: peak_memory(way) for name, way in ways.items()}
    seconds, _ = interleaved(ways)
    title = f"{architecture}, d_in {D_IN}, d_sae {d_sae:,}, batch {BATCH:,}, L0 {L0.get(architecture, K)}"
    print_table(title, seconds, memory, BATCH)


def start_bias(config: SaeConfig, x: torch.Tensor) -> float:
    """The encoder bias under which as many features are active at the start as `L0` says."""
    if config.architecture not in L0:
        return 0.0
    pre = make_sae(config).pre_activations(x[:256]).flatten()
    return -pre.kthvalue(pre.numel() - 256 * L0[config.architecture]).values.item()


def prism_step(config: SaeConfig, x: torch.Tensor, bias: float, way: str) -> Callable[[], None]:
    """Gradients, Adam, and decoder rows at norm 1."""
    sae = make_sae(config).train()
    sae.b_enc.data.fill_(bias + (0.1 if config.architecture == "jumprelu" else 0.0))  # its first threshold
    adam = torch.optim.Adam(sae.parameters(), lr=1e-6, fused=True)  # so small that L0 stays what it is
    dead, quick = torch.tensor([], dtype=torch.long), SparseGradients(sae, BATCH, way == "screened")
    gradients = quick if way != "autograd" else lambda *arguments: dense_gradients(sae, *arguments)

    def step() -> None:
        gradients(x, dead, 1e-3)
        update(sae, adam, 1e-6)

    return step


def encoder_product(config: SaeConfig, x: torch.Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """The one product that every way needs, into memory that is there."""
    x, W, out = x.to(dtype), make_sae(config).W_enc.to(dtype), torch.empty(BATCH, config.d_sae, dtype=dtype)
    return lambda: torch.mm(x, W.T, out=out)


def saelens_step(architecture: str, d_sae: int, x: torch.Tensor, autocast: bool = False) -> Callable[[], None]:
    """SAELens' own trainer, as it takes a step."""
    sae, trainer = saelens_trainer(architecture, x.shape[1], d_sae, 10**6, len(x), 1e-6, autocast)

    def step() -> None:
        with torch.enable_grad():
            trainer._train_step(sae, x)

    return step


def saelens_trainer(
    architecture: str, d_in: int, d_sae: int, tokens: int, batch: int, lr: float, autocast: bool = False
):
    """A SAELens training SAE and its trainer, with Adam and no schedule but a linear decay."""
    widths = [d_sae // 16, d_sae // 8, d_sae // 4, d_sae // 2, d_sae]
    kinds = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": K, "use_sparse_activations": False}),
        "batch_topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": K}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"k": K, "matryoshka_widths": widths},
        ),
        "relu": (StandardTrainingSAE, StandardTrainingSAEConfig, {"l1_coefficient": 1e-3}),
        "gated": (GatedTrainingSAE, GatedTrainingSAEConfig, {"l1_coefficient": 1e-3}),
        "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, {"l0_coefficient": 1e-3}),
    }
    cls, settings, options = kinds[architecture]
    with contextlib.redirect_stderr(io.StringIO()):
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
        autocast=autocast,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return sae, SAETrainer(config, sae, iter(()))


def sparsify_step(d_sae: int, x: torch.Tensor) -> Callable[[], None] | None:
    """EleutherAI's sparsify, as its trainer takes a step (with Adam), where that is installed."""
    try:
        from sparsify import SparseCoder, SparseCoderConfig
    except ImportError:
        return None
    sae = SparseCoder(D_IN, SparseCoderConfig(num_latents=d_sae, k=K))
    adam = torch.optim.Adam(sae.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        with torch.enable_grad():
            sae.set_decoder_norm_to_unit_norm()
            sae(x).fvu.backward()
            sae.remove_gradient_parallel_to_decoder_directions()
            adam.step()
            adam.zero_grad()

    return step


def dictionary_learning_step(architecture: str, d_sae: int, x: torch.Tensor) -> Callable[[], None] | None:
    """The trainers of `dictionary-learning`, where that is installed."""
    try:
        from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
        from dictionary_learning.trainers.standard import StandardTrainer
        from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
    except ImportError:
        return None
    shared = dict(steps=10**6, activation_dim=D_IN, dict_size=d_sae, layer=0, lm_name="", device="cpu", lr=1e-6)
    trainers = {
        "topk": lambda: TopKTrainer(**shared, k=K, dict_class=AutoEncoderTopK),
        "batch_topk": lambda: BatchTopKTrainer(**shared, k=K, dict_class=BatchTopKSAE),
        "relu": lambda: StandardTrainer(**shared, l1_penalty=1e-3, warmup_steps=0, sparsity_warmup_steps=None),
    }
    if architecture not in trainers:
        return None
    trainer, count = trainers[architecture](), iter(range(10**6))

    def step() -> None:
        with torch.enable_grad():
            trainer.update(next(count), x)

    return step


def equal_tokens() -> None:
    """Whether speed costs quality: as many of the same real activations for both trainers, each at its best rate."""
    spec = models.get_spec()
    model, hook = models.load_model(spec), spec.sae().hook_name
    batch = corpus_batch(load_corpus(spec.corpus), model.tokenizer, spec.context, EQUAL_TOKENS // 10)
    x = models.kept_activations(model, hook, batch)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    held, x = x[:10_000], x[10_000:]
    d_in, config = x.shape[1], TrainConfig(tokens=EQUAL_TOKENS, batch=2_048)
    scale = d_in**0.5 / x.norm(dim=1).mean()
    x, held = x * scale, held * scale
    print(f"\nexplained variance at {hook}, d_sae {EQUAL_WIDTH:,}, L0 {K}: {EQUAL_TOKENS:,} of {len(x):,} activations")
    for architecture in ("topk", "batch_topk"):
        for lr in LRS:
            ours = train(x, SaeConfig(d_in, EQUAL_WIDTH, architecture, k=K), replace(config, lr=lr, seed=1))
            theirs, trainer = saelens_trainer(architecture, d_in, EQUAL_WIDTH, EQUAL_TOKENS, config.batch, lr)
            for step in range(config.steps):
                rows = torch.randint(len(x), (config.batch,), generator=torch.Generator().manual_seed(step))
                with torch.enable_grad():
                    trainer._train_step(theirs, x[rows])
                trainer.n_training_samples += config.batch
            ev = [explained_variance(held, sae(held)) for sae in (ours, theirs)]
            print(f"{architecture:<12} learning rate {lr:<8g} prism {ev[0]:.3f}   SAELens {ev[1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
