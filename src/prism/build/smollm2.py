"""What `data/smollm2` is made of: a study, SAEs trained on real text, a corpus that the model wrote, and their card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from prism.build.baselines import kind_bits
from prism.build.cards import write
from prism.build.real_text import Activations, Rows, held_out_tokens, training_tokens
from prism.build.smollm2_card import card
from prism.build.writing import write_corpus
from prism.data import TokenBatch, corpus_batch, load_texts, token_table
from prism.device import as_float16, bulk_dtype
from prism.evaluation import bits_per_byte, evaluate_all, text_bits
from prism.evaluation.metrics import explained_share
from prism.features import encode_activations
from prism.models import (
    FAMILY,
    ModelSpec,
    activations_at,
    get_spec,
    is_massive,
    load_model,
    metadata_of,
    random_model,
    residual_hook,
)
from prism.models.saes import member_configs
from prism.sae import SaeConfig, save_saelens, to_saelens
from prism.training import TrainConfig
from prism.training.together import RollingBuffer, Run, train_together

RARELY = {"dead_after": 200_000, "resample_every": 200_000}  # activations


@dataclass(frozen=True)
class Plan:
    """Sizes of everything; the defaults are what `data/smollm2` was made with."""

    chunk: int = 65_536  # activations harvested at once
    rows: int = 272  # sequences that surely hold so many without massive tokens
    study_blocks: tuple[int, ...] = (10, 15, 20, 25)
    study_l0: tuple[int, ...] = (24, 48)
    study_rounds: int = 6  # chunks in all
    study_passes: int = 3  # times that each activation is trained on
    block: int = 15  # of the default SAE
    others: tuple[int, ...] = (7, 23)  # of the further ones of the residual stream
    width: int = 8  # features a channel; the neurons' SAE has a quarter of it
    l0: int = 48
    rounds: int = 34  # of the default SAE and the family
    passes: int = 8
    deep_rounds: int = 8  # of the further ones
    deep_passes: int = 6
    family_width: int = 2
    family_every: int = 8  # batches, of which the family takes one
    random_rounds: int = 7  # of the SAE of the model with random weights: as many activations as the family's
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # learning rates that are tried for each architecture
    rate_rounds: int = 3
    corpus_tokens: int = 520_000  # that are left of what is sampled
    test_rows: int = 800  # held out, for what needs no logits
    ce_rows: int = 40  # of those, for the cross-entropies
    corpus_rows: int = 300  # of the embedded corpus, for the same
    corpus_ce_rows: int = 16
    bits_bytes: int = 20_000  # held-out text of each kind, for the model's bits per byte
    config: TrainConfig = field(default_factory=lambda: TrainConfig(dead_after=200_000))


class Build:
    """One build: every step reads what the earlier ones left in `work`, and goes on where it was interrupted.

    Args:
        corpus: folder of `KIND.txt[.xz]`; work: for tokens and checkpoints; out: becomes `data/smollm2`.
    """

    def __init__(self, corpus: Path, work: Path, out: Path, spec: ModelSpec | None = None, plan: Plan | None = None):
        self.text, self.work, self.out = corpus, work, out
        self.spec, self.plan = spec or get_spec("smollm2"), plan or Plan()

    @cached_property
    def model(self):
        """The model, in the number format of bulk work."""
        return load_model(self.spec, bulk=True)

    @cached_property
    def rows(self) -> Rows:
        """Training text."""
        tokens = training_tokens(self.text, self.model.tokenizer, self.spec.folder, self.work)
        return Rows(tokens, self.plan.rows, self.spec.context, self.model.tokenizer.bos_token_id)

    @cached_property
    def held_out(self) -> dict:
        """Text that nothing was trained on, by kind."""
        return held_out_tokens(self.text, self.model.tokenizer)

    def test_batch(self, n_rows: int, seed: int) -> TokenBatch:
        """Rows of held-out text."""
        tokenizer = self.model.tokenizer
        return Rows(self.held_out, n_rows, self.spec.context, tokenizer.bos_token_id, seed).batch()

    def hook(self, block: int, site: str = "hook_resid_pre") -> str:
        """A hook of a block."""
        return f"blocks.{block}.{site}"

    def train(self, name: str, runs: Mapping[str, Run], rounds: int, passes: int, model=None) -> dict:
        """Train some SAEs on one stream; name -> SAE in SAELens' format, its metadata complete."""
        stream = Activations(model or self.model, self.rows, {run.hook_name for run in runs.values()}, self.plan.chunk)
        buffer = RollingBuffer(stream, passes, self.plan.config.batch)
        trained = train_together(buffer, runs, rounds, self.work / name, progress=name)
        found = {}
        for key, sae in trained.items():
            run = runs[key]
            steps = -(-sum(map(buffer.steps, range(rounds))) // run.every)
            config = replace(run.config, tokens=steps * buffer.batch, batch=buffer.batch)
            limit = stream.limits[residual_hook(run.hook_name)]
            text = f"{rounds * self.plan.chunk:,} tokens of nine kinds of real text and of chats, see the data card"
            found[key] = sae, metadata_of(sae, config, self.spec, run.hook_name, 0, text, limit)
        return found

    def study(self) -> None:
        """Which block, architecture and L0 the default SAE should have: small runs on one stream, and a table."""
        plan, d_in = self.plan, self.model.cfg.d_model
        runs = {
            f"{block}-res {kind} {k}": Run(self.hook(block), SaeConfig(d_in, plan.width * d_in, kind, k=k), plan.config)
            for block in plan.study_blocks
            for kind in ("batch_topk", "matryoshka")
            for k in plan.study_l0
        }
        trained = self.train("study", runs, plan.study_rounds, plan.study_passes)
        table = pd.DataFrame(self.measure({name: to_saelens(*pair) for name, pair in trained.items()}))
        write(self.out / "study.csv", table.round(5).to_csv(index=False))

    def measure(
        self, saes: Mapping[str, object], test: TokenBatch | None = None, small: TokenBatch | None = None
    ) -> list[dict]:
        """A row an SAE: its quality, and the share of living features whose top 20 tokens are all one.

        Args:
            test: text for what needs no logits; small: for the cross-entropies. By default both are held-out real text.
        """
        test, small = test or self.test_batch(self.plan.test_rows, 2), small or self.test_batch(self.plan.ce_rows, 3)
        found = []
        hooks = {sae.cfg.metadata.hook_name for sae in saes.values()}
        caught = harvest_all(self.model, test, {*hooks, *map(residual_hook, hooks)})
        quality = evaluate_all(load_model(self.spec), dict(saes), small, with_kl=False)
        for name, sae in saes.items():
            x, table = ordinary_rows(caught, sae, test, self.model.tokenizer)
            features = encode_activations(sae, x.float().split(8_192), table, np.ones(len(table), bool))
            best = features.statistics(k=20)
            alive = best.counts >= 20
            ids = table["token_id"].to_numpy()[best.top_rows[alive]]
            one = quality[name]
            found.append(
                {
                    "SAE": name,
                    "l0": features.l0(),
                    "explained_variance": explained(sae, x),
                    "delta_ce": one.delta_ce,
                    "delta_ce_low": one.delta_ce_interval[0],
                    "delta_ce_high": one.delta_ce_interval[1],
                    "ce_clean": one.ce_clean,
                    "ce_recovered_mean": one.ce_recovered_mean,
                    "never_fired": int((best.counts == 0).sum()),
                    "d_sae": sae.cfg.d_sae,
                    "median_density": float(pd.Series(features.density()[best.counts > 0]).median()),
                    "single_token": float((ids == ids[:, :1]).all(1).mean()) if len(ids) else float("nan"),
                    "tokens": len(x),
                    "massive": test.n_tokens - len(x),
                }
            )
        return found

    def once(self, name: str, make: Callable, *what):
        """`make(*what)`, as JSON kept in `work`: a card that was interrupted goes on there."""
        path = self.work / f"{name}.json"
        if not path.is_file():
            write(path, json.dumps(make(*what)))
        return json.loads(path.read_text(encoding="utf-8"))

    def default(self) -> None:
        """The default SAE, and the family beside it on the same stream."""
        plan, d_in = self.plan, self.model.cfg.d_model
        wide = Run(self.hook(plan.block), SaeConfig(d_in, plan.width * d_in, k=plan.l0), plan.config)
        runs = {f"{plan.block}-res": wide} | self.family_runs()
        self.save(self.train("default", runs, plan.rounds, plan.passes))

    def further(self) -> None:
        """Other depths, and the MLP's output and neurons at the default block."""
        plan, d_in, d_mlp = self.plan, self.model.cfg.d_model, self.model.cfg.d_mlp
        wide, narrow = (
            SaeConfig(d, d_sae, k=plan.l0) for d, d_sae in ((d_in, plan.width * d_in), (d_mlp, plan.width * d_mlp // 4))
        )
        runs = {f"{block}-res": Run(self.hook(block), wide, plan.config) for block in plan.others} | {
            f"{plan.block}-mlp-out": Run(self.hook(plan.block, "hook_mlp_out"), wide, plan.config),
            f"{plan.block}-mlp-post": Run(self.hook(plan.block, "mlp.hook_post"), narrow, plan.config),
        }
        self.save(self.train("further", runs, plan.deep_rounds, plan.deep_passes))

    def random(self) -> None:
        """The family's SAE of the model with random weights."""
        runs = self.family_runs(random=True)
        self.save(self.train("random", runs, self.plan.random_rounds, self.plan.passes, random_model(self.spec)))

    def family_runs(self, random: bool = False) -> dict[str, Run]:
        """The SAEs that notebooks compare, or that of random weights: of one width and L0, each at its best rate."""
        plan, d_in, rates, runs = self.plan, self.model.cfg.d_model, self.rates(), {}
        for name, member in FAMILY.items():
            if member.random_model != random:
                continue
            sae, config = member_configs(name, d_in, 1, plan.l0, plan.family_width)
            config = replace(config, lr=rates[sae.architecture], **RARELY)
            every = 1 if random else plan.family_every
            runs[f"family/{name}"] = Run(self.hook(plan.block), sae, config, every)
        return runs

    def rates(self) -> dict[str, float]:
        """Architecture -> learning rate with the best explained variance on held-out text, after a short run each.

        Runs that miss the wanted L0 by more than a fifth do not count, unless all do. The table is kept.
        """
        path, plan = self.out / "rates.csv", self.plan
        if not path.is_file():
            runs = {}
            for name, member in FAMILY.items():
                if member.training or member.random_model or "seed" in member.sae:
                    continue
                for lr in plan.rates:
                    sae, config = member_configs(name, self.model.cfg.d_model, 1, plan.l0, plan.family_width)
                    runs[f"{name} {lr:g}"] = Run(self.hook(plan.block), sae, replace(config, lr=lr, **RARELY))
            trained = self.train("rates", runs, plan.rate_rounds, plan.passes)
            test = self.test_batch(plan.ce_rows, seed=4)
            caught, rows = harvest_all(self.model, test, {self.hook(plan.block)}), []
            for key, pair in trained.items():
                sae = to_saelens(*pair)
                x, _ = ordinary_rows(caught, sae, test, self.model.tokenizer)
                l0 = float(torch.cat([(sae.encode(part.float()) > 0).sum(1) for part in x.split(2_048)]).float().mean())
                rows.append((key.split()[0], float(key.split()[1]), l0, explained(sae, x)))
            columns = ["architecture", "lr", "l0", "explained_variance"]
            write(path, pd.DataFrame(rows, columns=columns).round(5).to_csv(index=False))
        table = pd.read_csv(path)
        near = (table["l0"] / plan.l0 - 1).abs() < 0.2
        table["near"] = near
        best = table.sort_values(["near", "explained_variance"]).groupby("architecture").tail(1)
        return dict(zip(best["architecture"], best["lr"], strict=True))

    def save(self, trained: Mapping[str, tuple]) -> None:
        """Write SAEs into `out/saes`, in SAELens' format, float16."""
        for name, (sae, metadata) in trained.items():
            save_saelens(sae, self.out / "saes" / name, metadata)

    def corpus(self) -> None:
        """The corpus that the model wrote; what was dropped goes into `work`."""
        model = AutoModelForCausalLM.from_pretrained(self.spec.folder, dtype=bulk_dtype()).eval()
        counts = write_corpus(
            model, self.model.tokenizer, self.out / "corpus.parquet", self.work / "corpus", self.plan.corpus_tokens
        )
        write(self.out / "corpus.json", json.dumps(counts))

    def card(self) -> None:
        """Measure the SAEs on real text and on the corpus, the model beside `mini`, and write the data card."""
        model, saes = load_model(self.spec), {}
        for folder in sorted((self.out / "saes").glob("**/cfg.json")):
            name = folder.parent.relative_to(self.out / "saes").as_posix()
            if name != "family/random-model":  # of another model
                saes[name] = SAE.load_from_disk(folder.parent, dtype="float32").eval().requires_grad_(False)
        corpus = pd.read_parquet(self.out / "corpus.parquet").sample(frac=1.0, random_state=0)
        batches = [
            corpus_batch(corpus, model.tokenizer, self.spec.context, rows * 200)
            for rows in (self.plan.corpus_rows, self.plan.corpus_ce_rows)
        ]
        tables = {
            name: pd.DataFrame(self.once(f"measured-{name}", self.measure, saes, *some))
            for name, some in (("real", ()), ("corpus", batches))
        }
        bits, own = {}, {}
        for spec in (self.spec, get_spec("mini")):
            bits[spec.name] = self.once(f"bits-{spec.name}", _kind_bits, spec, self.text, self.plan.bits_bytes)
            own[spec.name] = self.once(f"own-bits-{spec.name}", _text_bits, spec)
        dropped = json.loads((self.out / "corpus.json").read_text(encoding="utf-8"))
        read = {
            name: pd.read_csv(self.out / f"{name}.csv") if (self.out / f"{name}.csv").is_file() else None
            for name in ("study", "readers", "rates", "label_scores")
        }
        write(self.out / "README.md", card(tables, bits, own, corpus, dropped, read, self.plan))
        measured = {name: table.to_dict("records") for name, table in tables.items()}
        write(self.out / "measurements.json", json.dumps(measured | {"bits_per_byte": bits, "texts": own}, indent=1))


def harvest_all(model, batch: TokenBatch, hooks) -> dict[str, torch.Tensor]:
    """Activations of several hooks on a whole batch, `[batch, pos, d_in]`, from one pass; float16 if they fit."""
    parts: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}
    for tokens in tqdm(batch.tokens.split(10), desc="held-out text", unit="batch"):
        for hook, x in activations_at(model, tokens, parts).items():
            parts[hook].append(as_float16(x))
    return {hook: torch.cat(each) for hook, each in parts.items()}


def ordinary_rows(caught: Mapping[str, torch.Tensor], sae, batch: TokenBatch, tokenizer):
    """An SAE's input on the kept tokens that are not massive, and their table."""
    hook_name = sae.cfg.metadata.hook_name
    norms = caught[residual_hook(hook_name)].float().norm(dim=-1)
    keep = batch.keep & ~is_massive(norms, sae.cfg.metadata.massive_norm)
    return caught[hook_name][keep], token_table(TokenBatch(batch.tokens, keep), tokenizer)


@torch.no_grad()
def explained(sae, x: torch.Tensor) -> float:
    """Explained variance over activations `[tokens, d_in]`."""
    mean, residual, total = x.double().mean(0), 0.0, 0.0
    for part in x.split(8_192):
        part = part.float()
        residual += float((part - sae.decode(sae.encode(part))).pow(2).sum(dtype=torch.float64))
        total += float((part - mean.float()).pow(2).sum(dtype=torch.float64))
    return explained_share(residual, total)


def _kind_bits(spec: ModelSpec, text: Path, size: int) -> dict[str, float]:
    """Bits per byte on held-out text, `size` bytes a kind."""
    model = AutoModelForCausalLM.from_pretrained(spec.folder, dtype=torch.float32).eval()
    return kind_bits(model, load_model(spec).tokenizer.backend_tokenizer, text, size)


def _text_bits(spec: ModelSpec) -> dict[str, float]:
    """Bits per byte on the 140 labelled texts, by category."""
    model = load_model(spec)
    texts = pd.concat([load_texts(split) for split in ("discover", "confirm")], ignore_index=True)
    found = text_bits(model, list(texts["text"]), spec.context).assign(category=texts["category"].to_numpy())
    return {name: bits_per_byte(part) for name, part in found.groupby("category", sort=False)}
