"""What `data/smollm2` is made of: SAEs trained on real text, a corpus that the model wrote, and the data card."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from prism.build.real_text import Activations, Rows, held_out_tokens, training_tokens
from prism.data import TokenBatch, token_table
from prism.evaluation import Sums, evaluate_all
from prism.features import encode_activations
from prism.models import activations_at, get_spec, load_model, ordinary
from prism.sae import SaeConfig, to_saelens
from prism.training import RollingBuffer, Run, TrainConfig, metadata_of, train_together

CHUNK, ROWS = 65_536, 272  # activations in a chunk; rows of 256 that surely hold so many without massive tokens
SPEC = get_spec("smollm2")
END = 0  # id of <|endoftext|>

STUDY_BLOCKS, STUDY_L0, STUDY_KINDS = (10, 15, 20, 25), (24, 48), ("batch_topk", "matryoshka")
STUDY_ROUNDS, STUDY_PASSES = 6, 3


def residual(block: int) -> str:
    """The residual stream before a block."""
    return f"blocks.{block}.hook_resid_pre"


def study(corpus: Path, work: Path) -> pd.DataFrame:
    """Which block, architecture and L0 the default SAE should have: one stream, sixteen small runs, one table."""
    model = load_model(SPEC, bulk=True)
    rows = Rows(training_tokens(corpus, model.tokenizer, SPEC.folder, work), ROWS, SPEC.context, END)
    activations = Activations(model, rows, [residual(block) for block in STUDY_BLOCKS], CHUNK)
    config = TrainConfig(dead_after=200_000)
    runs = {
        f"{block}-res {kind} {k}": Run(residual(block), SaeConfig(576, 8 * 576, kind, k=k), config)
        for block in STUDY_BLOCKS for kind in STUDY_KINDS for k in STUDY_L0
    }  # fmt: skip
    buffer = RollingBuffer(activations, STUDY_PASSES)
    trained = train_together(buffer, runs, STUDY_ROUNDS, work / "study", progress="study")
    del buffer
    saes = {}
    for name, sae in trained.items():
        limit = activations.limits[runs[name].hook_name]
        metadata = metadata_of(sae, config, SPEC, runs[name].hook_name, STUDY_ROUNDS * CHUNK, massive_norm=limit)
        saes[name] = to_saelens(sae, metadata)
    table = measure(saes, held_out_tokens(corpus, model.tokenizer))
    table.to_csv(work / "study.csv", index=False)
    return table


def measure(saes: dict, tokens: dict, test_rows: int = 800, ce_rows: int = 32) -> pd.DataFrame:
    """A row an SAE: quality on held-out text, and the share of living features whose top 20 tokens are one token."""
    model, found = load_model(SPEC), []
    test = Rows(tokens, test_rows, SPEC.context, END, seed=2).batch()
    small = Rows(tokens, ce_rows, SPEC.context, END, seed=3).batch()
    bulk, hooks = load_model(SPEC, bulk=True), {sae.cfg.metadata.hook_name for sae in saes.values()}
    caught: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}
    for tokens_ in tqdm(test.tokens.split(10), desc="test"):
        for hook, x in activations_at(bulk, tokens_, hooks).items():
            caught[hook].append(x.half())
    for name, sae in saes.items():
        x = torch.cat(caught[sae.cfg.metadata.hook_name])
        keep = test.keep & (x.float().norm(dim=-1) <= sae.cfg.metadata.massive_norm)
        table = token_table(TokenBatch(test.tokens, keep), model.tokenizer)
        x = x[keep].float()
        features = encode_activations(sae, [x], table)
        best = features.statistics(k=20)
        alive = best.counts >= 20
        ids = table["token_id"].to_numpy()[best.top_rows[alive]]
        sums = Sums(sae.cfg.d_in, sae.cfg.d_sae)
        for part in x[:: max(1, len(x) // 50_000)].split(2_048):
            f = sae.encode(part)
            sums.add(part, sae.decode(f), f)
        quality = evaluate_all(model, {name: sae}, ordinary(model, sae, small), with_kl=False)[name]
        found.append({
            "SAE": name, "l0": features.l0, "explained_variance": sums.measures()["explained_variance"],
            "delta_ce": quality.delta_ce, "ce_recovered_mean": quality.ce_recovered_mean,
            "never_fired": int((best.counts == 0).sum()), "fewer_than_20": int((best.counts < 20).sum()),
            "single_token": float((ids == ids[:, :1]).all(1).mean()), "test_tokens": features.n_tokens,
        })  # fmt: skip
        print(found[-1], flush=True)
    return pd.DataFrame(found)
