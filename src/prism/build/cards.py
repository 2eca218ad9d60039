"""The data cards: measure what was built, and write it down beside the files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from prism.build.corpus import MIXTURE
from prism.build.sample import TEMPERATURE
from prism.evaluation import Evaluation, evaluate_all
from prism.files import write_text
from prism.models import get_spec, load_model, load_sae

CE_TOKENS = 30_000  # of the embedded corpus, for the cross-entropies of the SAE card
COST = "{delta_ce:.3f} [{delta_ce_low:.3f}, {delta_ce_high:.3f}]"  # in cross-entropy (nats), with its 95 % interval


def write(path: Path, text: str) -> None:
    """Write a text file, with one line break at its end."""
    write_text(path, text.rstrip() + "\n")


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write a file of JSON lines."""
    write(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def read_lines(path: Path) -> list[dict]:
    """What a file of JSON lines holds; nothing if there is none."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]


def markdown_table(frame: pd.DataFrame, columns: Mapping[str, str] | None = None) -> str:
    """A pipe table; the first column is the row's name.

    Args:
        columns: heading -> format of its cells, from the row's fields by name; by default all fields as they are.
    """
    rows = frame.astype(str).values.tolist()
    if columns:
        rows = [[cell.format(**row) for cell in columns.values()] for row in frame.to_dict("records")]
    head = list(map(str, columns or frame))
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def side_by_side(bits: Mapping[str, Mapping[str, float]], first: str) -> str:
    """Bits per byte of several models, one row a kind; `first` heads the column of kinds."""
    return markdown_table(pd.DataFrame(bits).map("{:.3f}".format).rename_axis(first).reset_index())


def model_card(measured: Mapping, shown: str) -> str:
    """Text of `data/model/README.md`.

    Args:
        measured: as `write_cards` has it; shown: samples.
    """
    bits = measured["bits_per_byte"]
    millions, everything = measured["trained_tokens"] / 1e6, measured["corpus_tokens"] / 1e6
    frame = pd.DataFrame(bits).T.rename_axis("kind").reset_index()
    frame["beats"] = np.where(frame["model"] < frame["5-gram"], "yes", "**no**")
    columns = {
        "kind": "{kind}",
        "mini": "{model:.3f}",
        "5-gram": "{5-gram:.3f}",
        "unigram": "{unigram:.3f}",
        "beats the 5-gram": "{beats}",
        "held-out bytes": "{bytes:,.0f}",
    }
    behind = [kind for kind, row in bits.items() if kind != "all" and row["model"] >= row["5-gram"]]
    verdict = (
        f"**Not yet good enough:** on {len(behind)} of {len(bits) - 1} kinds ({', '.join(behind)}) a 5-gram model "
        "predicts better. The 5-gram has counted every training token; mini has seen "
        f"{millions:.0f} million. The run is resumable and goes on."
        if behind
        else "mini beats the 5-gram on every kind."
    )
    return f"""# The embedded language model `mini`

A GPT-2 of {measured["shape"]}, trained from scratch by `python -m prism.build` on
{millions:.1f} million tokens of nine kinds of text. Weights are float16 safetensors in Hugging Face
format. Every training sequence began with the end-of-text token, so give it one in front (BOS).

It is a teaching model: it writes text that looks like its kind for a sentence or two and knows nothing. Its
training text includes social media with some profanity; samples can contain it.

## How good: bits per byte on held-out documents (lower is better)

{markdown_table(frame, columns)}

{verdict}

Both baselines are trained on the whole training text ({everything:.1f} million tokens): a unigram, and an
interpolated Kneser–Ney 5-gram over the same tokens. One document in a hundred of each kind is held out. Long documents
were cut into pieces before they were shuffled, so a held-out piece can come from the same source file as a training
piece; this helps all three models.

Training mixture (share of tokens): {", ".join(f"{kind} {share:.2f}" for kind, share in MIXTURE.items())}.

## Three samples of each kind

Temperature {TEMPERATURE}; the opening was written by us, the rest by the model.

{shown}
"""


def describe(model) -> str:
    """Size and shape of a GPT-2 in words."""
    c = model.config
    return (
        f"{model.num_parameters() / 1e6:.2f} million parameters ({c.n_layer} layers, {c.n_embd} dimensions, "
        f"{c.n_head} heads, context\n{c.n_positions} tokens, byte-level BPE with {c.vocab_size:,} tokens)"
    )


def samples(corpus: pd.DataFrame, width: int) -> str:
    """The first three documents of each kind, cut after `width` characters, as fenced blocks."""
    return "\n\n".join(
        f"*{kind}*\n\n~~~text\n{text[:width].replace('~~~', '~')}\n~~~"
        for kind in MIXTURE
        for text in corpus.loc[corpus["kind"] == kind, "text"].head(3)
    )


def measure_saes(model, saes: dict, batch, small) -> dict[str, dict[str, object]]:
    """All that the SAE card says, by SAE.

    Args:
        saes: name -> SAE of this model.
        batch: the whole embedded corpus, for densities, L0 and explained variance.
        small: a part of it, for the cross-entropies.
    """
    whole = evaluate_all(model, saes, batch, with_ce=False)
    ce = evaluate_all(model, saes, small, with_kl=False)
    return {name: _card_row(sae, whole[name], ce[name]) for name, sae in saes.items()}


def _card_row(sae, whole: Evaluation, ce: Evaluation) -> dict[str, object]:
    live = whole.density[whole.density > 0]
    counts, _ = np.histogram(np.log10(live).clip(-6, 0), bins=np.arange(-6, 0.5, 0.5))
    return {
        "hook": sae.cfg.metadata.hook_name,
        "d_sae": sae.cfg.d_sae,
        "samples": sae.cfg.metadata.training_samples,
        "l0": whole.l0,
        "explained_variance": whole.explained_variance,
        "ce_clean": ce.ce_clean,
        "ce_tokens": ce.n_tokens,
        "delta_ce": ce.delta_ce,
        "delta_ce_low": ce.delta_ce_interval[0],
        "delta_ce_high": ce.delta_ce_interval[1],
        "ce_recovered_mean": ce.ce_recovered_mean,
        "ce_recovered_zero": ce.ce_recovered_zero,
        "dead": whole.dead,
        "tokens": whole.n_tokens,
        "density_histogram": counts.tolist(),
    }


def sae_card(measured: dict[str, dict]) -> str:
    """Text of `data/saes/README.md`."""
    frame = pd.DataFrame(measured).T.rename_axis("SAE").reset_index()
    frame = frame.assign(millions=frame["samples"] / 1e6, share=frame["dead"] / frame["d_sae"])
    columns = {
        "SAE": "{SAE}",
        "hook": "{hook}",
        "features": "{d_sae:,}",
        "trained on": "{millions:.1f} M",
        "L0": "{l0:.1f}",
        "EV": "{explained_variance:.3f}",
        "ΔCE (nats, 95 %)": COST,
        "CE recovered (mean)": "{ce_recovered_mean:.3f}",
        "CE recovered (zero)": "{ce_recovered_zero:.3f}",
        "dead": "{dead:,} ({share:.1%})",
    }
    edges = [f"{-6 + i / 2:.1f}" for i in range(12)]
    density = pd.DataFrame(frame["density_histogram"].tolist(), index=frame["SAE"], columns=edges).reset_index()
    first = next(iter(measured.values()))
    return f"""# The embedded SAEs

Sparse autoencoders of `mini` (BatchTopK with k = 32; saved as JumpReLU with one threshold that keeps 32 features
a token on average) in SAELens' on-disk format (float16): `SAE.load_from_disk("data/saes/2-res")` reads them
unchanged. Trained by `python -m prism.build saes` with `prism.training` on activations from the training mixture
and the embedded corpus, the first position of each sequence left out (*trained on* says how many); no weight
processing. `2-res` is the default. All seven start from one seed, so SAEs of one shape (`1-res`, `2-res`, `3-res`,
`2-mlp-out`) start from the same random weights: features of equal index in two of them are more alike than chance
(phase 6c measures by how much, and bars those pairs).

{markdown_table(frame, columns)}

Measured on the embedded corpus ({first["tokens"]:,} tokens; cross-entropies on {first["ce_tokens"]:,} of them,
clean CE {first["ce_clean"]:.3f} nats), BOS excluded, by the definitions in `prism.evaluation`. *Dead* means that it
never fired on these tokens.

## Density histogram: live features by log10 of the share of tokens on which they fire (lower edge of each bin)

{markdown_table(density)}
"""


def family_card(front: pd.DataFrame) -> str:
    """Text of `data/saes/family/README.md`."""
    columns = {
        "SAE": "{member}",
        "wanted L0": "{target_l0}",
        "L0": "{l0}",
        "EV": "{explained_variance}",
        "reconstruction bias": "{relative_reconstruction_bias}",
        "ΔCE (nats, 95 %)": COST,
        "silent features": "{dead}",
    }
    rounded = front.round({"l0": 1, "explained_variance": 3, "relative_reconstruction_bias": 3})
    first = front.iloc[0]
    return f"""# SAEs to compare

Every architecture of `prism.sae` at the default hook of `mini`, {first["d_sae"]:,} features each, two more seeds and
two controls: a decoder that stays random, and a model with random weights (measured on that model). Trained by
`python -m prism.build family` with `prism.training` on the same activations of the embedded corpus in the same order
(nine of ten documents), saved in SAELens' format (float16). The SAEs at wanted L0 32 are kept here; of the others
there are only the measures, in `front.csv`.

{markdown_table(rounded, columns)}

Measured on {first["n_tokens"]:,} tokens of the other documents. *Silent* means that it never fired on them.
"""


def corpus_card(corpus: pd.DataFrame) -> str:
    """Text of `data/corpus/README.md`."""
    grouped = corpus.assign(n=corpus["tokens"].map(len)).groupby("kind", sort=False)
    frame = grouped.agg(documents=("n", "size"), tokens=("n", "sum"), openings=("opening", "nunique")).reset_index()
    return f"""# The embedded corpus

{int(frame["tokens"].sum()):,} tokens **sampled from `mini` itself** (`sampled.parquet`): what the model writes, so
it is in-distribution by construction, and it carries nobody's licence. Temperature {corpus["temperature"].iloc[0]},
no top-k or top-p; each document begins with a short opening written for this project and ends at the model's end
token or at its context of 256 tokens. Columns: kind, opening, temperature, seed, text, tokens (ids without BOS).

{markdown_table(frame)}

The documents are not true, not checked, and now and then coarse. Do not train a model on them for anything but study.
"""


def write_cards(data: Path, corpus_dir: Path, train: dict[str, np.ndarray], trained_tokens: float) -> None:
    """Measure everything and write the data cards; `data/measurements.json` holds the same numbers."""
    from transformers import AutoModelForCausalLM

    from prism.build.baselines import bits_per_byte
    from prism.data import corpus_batch

    spec = get_spec("mini")
    bridge = load_model(spec)
    corpus = pd.read_parquet(data / "corpus" / "sampled.parquet")
    hf_model = AutoModelForCausalLM.from_pretrained(data / "model", dtype=torch.float32)
    shuffled = corpus.sample(frac=1.0, random_state=0)
    batch = corpus_batch(shuffled, bridge.tokenizer, spec.context)
    small = corpus_batch(shuffled, bridge.tokenizer, spec.context, n_tokens=min(CE_TOKENS, batch.n_tokens))
    saes = {name: load_sae(spec, name) for name in spec.saes if (data / "saes" / name / "cfg.json").is_file()}
    of_model = {
        "bits_per_byte": bits_per_byte(hf_model, bridge.tokenizer.backend_tokenizer, corpus_dir, train),
        "trained_tokens": trained_tokens,
        "corpus_tokens": sum(len(ids) for ids in train.values()),
        "shape": describe(hf_model),
    }
    of_saes = measure_saes(bridge, saes, batch, small)
    write(data / "measurements.json", json.dumps(of_model | {"saes": of_saes}, indent=1))
    shown = samples(corpus.drop_duplicates(["kind", "opening"]), 300)
    write(data / "model" / "README.md", model_card(of_model, shown))
    write(data / "saes" / "README.md", sae_card(of_saes))
    write(data / "corpus" / "README.md", corpus_card(corpus))
