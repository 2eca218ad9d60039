"""Speed and memory of a harvest, a feature scan and an evaluation, beside the usual ways and, for two, their own limit.

`python benchmarks/bench_harvest.py` takes ten minutes, four without the real model. `--full` scans 200,000 vectors
once, beside the limit. Seconds are CPU seconds of one thread, so that other work on the machine counts less.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import datasets
import numpy as np
import pandas as pd
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from timing import RUNS, interleaved, peak_memory, peak_so_far, print_table
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from prism import models
from prism.data import DATA, corpus_batch, first_sequences, load_corpus
from prism.evaluation import evaluate
from prism.features import encode_activations
from prism.features.encoding import ENCODE_TOKENS
from prism.models import SMOLLM2
from prism.models.fetching import SMOLLM2_WHEEL, is_fetched

SEQUENCES, CONTEXT, LAYER = 16, 128, 6
D_IN, D_SAE, L0, TOP = 768, 24_576, 50, 20
VECTORS, FULL, LOOP_FEATURES = 4_096, 200_000, 64


@torch.no_grad()
def main() -> None:
    """Both tables, or with `--full` the long scan."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="sae_lens")
    if "--full" in sys.argv:
        return full_scan()
    plain = random_gpt2()
    model = bridge_of(random_gpt2())
    bench_harvest(f"a GPT-2 small with random weights, {SEQUENCES} sequences", model, plain, LAYER, SEQUENCES)
    bench_scan()
    if not is_fetched(SMOLLM2_WHEEL):
        print("\nharvest and evaluation of smollm2: skipped, it is not on this machine (prism fetch smollm2)")
        return
    model = models.load_model(SMOLLM2)
    plain = AutoModelForCausalLM.from_pretrained(SMOLLM2.folder, dtype=torch.float32).eval()
    bench_harvest("smollm2, 4 sequences", model, plain, 15, 4)
    bench_evaluate(model)


def bench_harvest(title: str, model: TransformerBridge, plain: PreTrainedModel, layer: int, sequences: int) -> None:
    """One hook's activations."""
    hook, d_in, vocab = f"blocks.{layer}.hook_resid_pre", model.cfg.d_model, model.cfg.d_vocab
    tokens = torch.randint(17, vocab, (sequences, CONTEXT), generator=torch.Generator().manual_seed(0))
    store = activations_store(model, tokens, hook)

    def cached(**options) -> Tensor:
        return model.run_with_cache(tokens, **options)[1][hook]

    ways = {
        "prism.models.harvest": lambda: torch.cat(list(models.harvest(model, tokens, hook))),
        "run_with_cache": cached,
        "… of one name": lambda: cached(names_filter=hook),
        "… + stop_at_layer": lambda: cached(names_filter=hook, stop_at_layer=layer + 1),
        "SAELens ActivationsStore": lambda: store.get_raw_llm_batch()[0].view(sequences, CONTEXT, d_in),
        "transformers, hidden states": lambda: plain.base_model(tokens, output_hidden_states=True).hidden_states[layer],
    }
    if model.cfg.d_model == D_IN:
        ways["matrix products alone"] = products_alone(tokens.numel())
    memory = {name: peak_memory(way) for name, way in ways.items()}
    seconds, results = interleaved(ways)
    expected = results["run_with_cache"]
    for name in list(ways)[
        : 5 if model.cfg.d_model != D_IN else 6
    ]:  # smollm2's weights are processed when it is loaded
        error = (results[name] - expected).norm() / expected.norm()
        assert error <= 1e-5, f"{name} differs by {error:.1e} of the norm"
    print_table(f"{hook} of {title} of {CONTEXT} tokens", seconds, memory, tokens.numel())


def bench_evaluate(model: TransformerBridge) -> None:
    """L0, explained variance, and what splicing costs, of an SAE on texts."""
    sae = models.load_sae(SMOLLM2)
    hook = sae.cfg.metadata.hook_name
    texts = load_corpus(SMOLLM2.corpus, n_documents=12)
    batch = first_sequences(corpus_batch(texts, model.tokenizer, CONTEXT), 8 * CONTEXT)
    store = activations_store(model, batch.tokens, hook)
    theirs = EvalConfig(
        batch_size_prompts=len(batch.tokens),
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=1,
        compute_ce_loss=True,
        compute_kl=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    ways = {
        "prism.evaluation.evaluate": lambda: evaluate(model, sae, batch),
        "SAELens run_evals": lambda: run_evals(sae, store, model, ActivationScaler(), theirs),
    }
    memory = {name: peak_memory(way) for name, way in ways.items()}
    seconds, _ = interleaved(ways)
    print_table(f"an SAE of smollm2 on {batch.n_tokens} tokens", seconds, memory, batch.n_tokens)


def random_gpt2() -> GPT2LMHeadModel:
    """GPT-2 small's shape, random weights."""
    torch.manual_seed(0)
    return GPT2LMHeadModel._from_config(GPT2Config(), attn_implementation="eager").eval().requires_grad_(False)


def bridge_of(hf_model: GPT2LMHeadModel) -> TransformerBridge:
    """As `models.load_model` would boot it."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "model")
    with tempfile.TemporaryDirectory() as folder:
        hf_model.config.save_pretrained(folder)
        model = TransformerBridge.boot_transformers(folder, hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    return model.eval().requires_grad_(False)


def activations_store(model: TransformerBridge, tokens: Tensor, hook: str) -> ActivationsStore:
    """SAELens' own harvester on the same tokens, from memory; it reads the sequences once for each run."""
    rows = datasets.Dataset.from_dict({"tokens": tokens.repeat(3 * (RUNS + 2), 1).tolist()})
    return ActivationsStore(
        model,
        rows,
        False,
        hook,
        None,
        CONTEXT,
        model.cfg.d_model,
        n_batches_in_buffer=2,
        total_training_tokens=tokens.numel(),
        store_batch_size_prompts=len(tokens),
        train_batch_size_tokens=tokens.numel(),
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        disable_concat_sequences=False,
    )


def products_alone(n_tokens: int) -> Callable[[], None]:
    """The matrix products of the blocks below the hook, without anything between them."""
    x, wide = torch.randn(n_tokens, D_IN), torch.randn(n_tokens, 4 * D_IN)
    to_qkv, to_out, up, down = (torch.randn(a * D_IN, b * D_IN) for a, b in ((1, 3), (1, 1), (1, 4), (4, 1)))
    heads = torch.randn(12 * n_tokens // CONTEXT, CONTEXT, D_IN // 12)
    pattern = torch.randn(len(heads), CONTEXT, CONTEXT)

    def run() -> None:
        for _ in range(LAYER):
            x @ to_qkv, heads @ heads.mT, pattern @ heads, x @ to_out, x @ up, wide @ down

    return run


def bench_scan() -> None:
    """Count, sum, maximum and top tokens of every feature of an SAE, from vectors to numbers."""
    sae, x, table = scan_inputs(VECTORS)
    sampled = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(0))[:LOOP_FEATURES].tolist()
    loop = f"loop, {LOOP_FEATURES} features scaled up"
    ways = {
        "prism.features": lambda: encode_activations(sae, [x], table).statistics(TOP),
        "… in float32": lambda: in_float32(lambda: encode_activations(sae, [x], table).statistics(TOP)),
        "dense blocks": lambda: dense_scan(sae, x),
        loop: lambda: [one_feature(sae, x, feature) for feature in sampled],
        "encoder products alone": lambda: encoder_products(sae, x),
    }
    memory = {name: peak_memory(way) for name, way in ways.items()}
    seconds, results = interleaved(ways)
    ours, (counts, sums, best) = results["prism.features"], results["dense blocks"]
    exact = results["… in float32"]
    assert np.array_equal(exact.counts, counts) and np.array_equal(exact.top_values, best.T)
    assert np.abs(ours.counts - counts).sum() <= 1e-4 * counts.sum()  # rounding decides on what is just above zero
    np.testing.assert_allclose(ours.top_values, best.T, atol=1e-4)
    np.testing.assert_allclose(ours.sums, sums, rtol=1e-3, atol=1e-3)
    seconds[loop] = [value * D_SAE / LOOP_FEATURES for value in seconds[loop]]
    title = f"scan of {VECTORS:,} vectors of {D_IN}, d_sae {D_SAE:,}, L0 {ours.counts.sum() / VECTORS:.0f}"
    print_table(title, seconds, memory, VECTORS)


def in_float32(way: Callable[[], object]) -> object:
    """Something done without a screen in bfloat16."""
    with mock.patch.dict("os.environ", {"PRISM_DTYPE": "float32"}):
        return way()


def full_scan() -> None:
    """The scan at full length, once: every tenth of it in turn with its limit, so that both meet the same machine."""
    sae, x, table = scan_inputs(FULL)
    limit = 0.0

    def in_turn() -> Iterator[Tensor]:
        nonlocal limit
        for part in x.split(FULL // 10):
            start = time.process_time()
            encoder_products(sae, part)
            limit += time.process_time() - start
            yield part

    before, start = peak_so_far(), time.process_time()
    encode_activations(sae, in_turn(), table).statistics(TOP)
    total, added = time.process_time() - start - limit, peak_so_far() - before
    print(
        f"scan of {FULL:,} vectors: {total:.1f} s, products alone {limit:.1f} s, ratio {limit / total:.2f}, "
        f"peak memory above the vectors {added:,.0f} MB"
    )


def scan_inputs(n: int) -> tuple[StandardSAE, Tensor, pd.DataFrame]:
    """An SAE whose bias lets about `L0` features fire, random vectors, and a token table for them."""
    generator = torch.Generator().manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE)).requires_grad_(False).eval()
    torch.nn.init.normal_(sae.W_enc, std=D_IN**-0.5, generator=generator)
    x = torch.randn(n, D_IN, generator=generator)
    pre = (x[:256] @ sae.W_enc).flatten()
    sae.b_enc.fill_(-pre.kthvalue(pre.numel() - 256 * L0).values.item())
    zeros = np.zeros(n, np.int32)
    return sae, x, pd.DataFrame({"text": zeros, "position": np.arange(n), "token_id": zeros, "token": "a"})


def dense_scan(sae: StandardSAE, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The plain way: dense features block by block, with running totals and a running top 20."""
    counts, sums, best = torch.zeros(D_SAE, dtype=torch.int64), torch.zeros(D_SAE), torch.zeros(TOP, D_SAE)
    for chunk in x.split(ENCODE_TOKENS):
        features = sae.encode(chunk)
        counts += (features > 0).sum(0)
        sums += features.sum(0)
        best = torch.cat([best, features]).topk(TOP, dim=0).values
    return counts.numpy(), sums.numpy(), best.numpy()


def one_feature(sae: StandardSAE, x: Tensor, feature: int) -> tuple[int, float, Tensor]:
    """One feature's numbers over all vectors."""
    column = ((x - sae.b_dec) @ sae.W_enc[:, feature] + sae.b_enc[feature]).relu()
    return int((column > 0).sum()), float(column.sum()), column.topk(TOP).values


def encoder_products(sae: StandardSAE, x: Tensor) -> None:
    """The encoder's matrix products, which every way needs, into one buffer."""
    buffer = torch.empty(ENCODE_TOKENS, D_SAE)
    for chunk in x.split(ENCODE_TOKENS):
        torch.mm(chunk, sae.W_enc, out=buffer[: len(chunk)])


if __name__ == "__main__":
    main()
