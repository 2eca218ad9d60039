"""The data card of `data/smollm2`."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from prism.build.cards import COST, markdown_table, samples, side_by_side
from prism.build.openings import OPENINGS
from prism.build.real_text import SHARES


def quality(table: pd.DataFrame) -> str:
    """The table of SAEs."""
    columns = {
        "SAE": "{SAE}",
        "features": "{d_sae:,}",
        "L0": "{l0:.1f}",
        "EV": "{explained_variance:.3f}",
        "ΔCE (nats, 95 %)": COST,
        "CE recovered (mean)": "{ce_recovered_mean:.3f}",
        "never fired": "{never_fired:,} ({silent:.1%})",
        "median density": "{median_density:.2%}",
        "single-token": "{single_token:.1%}",
        "massive tokens": "{massive:,}",
    }
    rows = table.assign(silent=table["never_fired"] / table["d_sae"])
    first = table.iloc[0]
    return (
        f"{markdown_table(rows, columns)}\n\n{first['tokens']:,} tokens; cross-entropies on a part of them, "
        f"clean CE {first['ce_clean']:.3f} nats."
    )


def corpus_card(corpus: pd.DataFrame, dropped: Mapping[str, int]) -> str:
    """What the corpus is, and what was left out of it."""
    frame = corpus.assign(n=corpus["tokens"].map(len), chat=corpus["text"].str.startswith("<|im_start|>"))
    grouped = frame.groupby("kind", sort=False)
    columns = {"documents": ("n", "size"), "tokens": ("n", "sum"), "openings": ("opening", "nunique")}
    table = grouped.agg(**columns, chats=("chat", "sum")).loc[list(OPENINGS)].reset_index()
    left = ", ".join(f"{count:,} {why}" for why, count in dropped.items() if why not in ("sampled", "kept"))
    return f"""{int(table["tokens"].sum()):,} tokens in {len(corpus):,} documents that the model wrote itself
(`corpus.parquet`; columns kind, opening, text, tokens without BOS): it goes on from first words, or answers a request
in its chat template (without a system message); we wrote both (`prism/build/openings.py`). Temperature 0.8, top-p 0.9
of the 200 likeliest tokens, at most 255 tokens. Of {dropped["sampled"]:,} documents that were sampled, some were
dropped: {left} (*short*: under 24 tokens of its own; *loop*: under 70 % of its 4-grams are different; *near-duplicate*:
shares over 30 % of its 4-grams with another of its kind).

{markdown_table(table)}

The documents are not true and not checked. The model's French, Russian, Japanese and Arabic are poor: it was trained on
English, and these texts show it."""


def study_card(study: pd.DataFrame) -> str:
    """The study's table."""
    columns = {
        "SAE": "{SAE}",
        "L0": "{l0:.1f}",
        "EV": "{explained_variance:.3f}",
        "ΔCE": "{delta_ce:.3f}",
        "CE recovered (mean)": "{ce_recovered_mean:.3f}",
        "never fired": "{never_fired}",
        "single-token": "{single_token:.1%}",
    }
    return markdown_table(study, columns)


def readers_card(readers: pd.DataFrame) -> str:
    """What blind readers made of features of some of the study's SAEs."""
    table = pd.crosstab(readers["SAE"], readers["class"]).reindex(columns=["context", "token", "none"], fill_value=0)
    names = {"context": "more than a token", "token": "a token or spelling", "none": "no name"}
    return markdown_table(table.rename(columns=names).reset_index())


def labels_card(scores: pd.DataFrame) -> str:
    """How well written labels told where their features fire."""
    right, n = scores["right"], len(scores)
    return f"""## The labels

`labels.jsonl` holds written labels of features of `15-res`, those that gallery and notebooks show first: hypotheses,
each with what would refute it, written by a language model that read windows from the top, the middle and the low end
of the feature's range. Another one, who saw only the label and ten other windows, said in which five the feature fires:
for {n} labels drawn by a seed, {right.mean() / 10:.0%} of the answers were right (guessing: 50 %), and
{(right >= 8).mean():.0%} of the labels got eight of ten or more (guessing: 10 %).
[docs/features.md](../../docs/features.md)
does the same for features, neurons and features of the random twin, drawn by a seed rather than chosen.

`descriptions.jsonl` holds, for 20 of the labelled features, drawn by a seed, the sentence that SmolLM2-Instruct wrote
about its own feature (greedily, with the prompt), the sentence that counting gives, and four quizzes of twelve windows
with the answers of two judges, SmolLM2-Instruct and a large language model (`prism/build/descriptions.py`). The latter
had seen neither labels nor features before, and got sentences and windows alone; it knew that six windows of a quiz
fire, three are random and silent, and three are silent around a token that the feature fires on elsewhere. It met the
four sentences of a feature as four quizzes, in an order that says nothing, and answered each by its own sentence. It is
of the kind that wrote the labels, and may understand those best. An earlier reader, who had seen labels and SmolLM2's
sentences side by side, gave the same answer on 96 % of the 960 windows (its answers stand in the history of this file).
With these, detection beside random windows was 0.679 for the counted sentences, 0.663 for SmolLM2's, 0.733 for the
labels and 0.533 for another feature's label, and beside the same token labels led SmolLM2's sentences by 0.146
[0.042, 0.264]; with the present answers, by 0.138 [-0.000, 0.284].
"""


def card(tables, bits, own, corpus, dropped, read, plan) -> str:
    """Text of `data/smollm2/README.md`.

    Args:
        tables: 'real' and 'corpus' -> `Build.measure`; bits, own: model -> bits per byte by kind, on held-out
            documents and on the labelled texts; corpus: the written documents; dropped: from `write_corpus`; read: the
            tables 'study', 'rates' and, where they are there, 'readers' and 'label_scores'.
    """
    mixture = ", ".join(f"{kind} {share:.3f}" for kind, share in SHARES.items())
    tried = read["rates"].round({"l0": 1, "explained_variance": 3})[["architecture", "lr", "l0", "explained_variance"]]
    seen = (
        ""
        if read["readers"] is None
        else f"""
The seven strongest windows of 30 random features of each of four of these SAEs, mixed, were read by two blind readers
(language models), who named what at least six of the seven share:

{readers_card(read["readers"])}

Block 25 has the fewest single-token features, and also the fewest that a reader recognises: the share of single tokens
alone is no measure of that. At block 15 Matryoshka has three single-token features in a hundred fewer than BatchTopK,
which the readers do not notice for certain, and it explains less. So: block 15, BatchTopK.
"""
    )
    labels = "" if read["label_scores"] is None else f"\n{labels_card(read['label_scores'])}"
    return f"""# SAEs and a corpus for SmolLM2-135M-Instruct

Made by `python -m prism.build smollm2 --corpus DIR`. The model itself is not here: `prism fetch smollm2` brings it. The
SAEs are in SAELens' format (float16; BatchTopK and Matryoshka as JumpReLU with one threshold):
`SAE.load_from_disk("data/smollm2/saes/{plan.block}-res")`. Apache-2.0, as the model is; the training text is not
included.

## The SAEs on held-out real text

{quality(tables["real"])}

**Massive tokens** are left out of everything in these tables: those whose residual stream before the SAE's block is
more than four times as long as the median (`<|endoftext|>` wherever it stands, and a few others). The constant is in
each SAE's metadata (`massive_norm`). *Never fired*: on these tokens. *Single-token*: share of the features that fired
on 20 tokens or more whose 20 strongest are one and the same token.

Trained on {plan.rounds * plan.chunk:,} different tokens, each seen up to {plan.passes} times (`{plan.block}-res`; the
family took every {plan.family_every}th batch, its `random-model` {plan.random_rounds * plan.chunk:,} tokens), and
on {plan.deep_rounds * plan.chunk:,}, up to {plan.deep_passes} times (the others). Rows of 256 tokens, one kind each,
documents end to end. Shares: {mixture}.

## The same SAEs on the embedded corpus

{quality(tables["corpus"])}
{labels}
## How the default was chosen

Small runs on one stream ({plan.study_rounds * plan.chunk:,} different tokens, {plan.study_passes} passes), all of them
with {plan.width} features a channel:

{study_card(read["study"])}
{seen}
Learning rates tried for the family, in short runs. The best explained variance was taken, among the runs within a fifth
of the wanted L0 where there were any; the penalised ones are still far above it in so short a run:

{markdown_table(tried)}

## The model, beside `mini`: bits per byte (lower is better)

Held-out documents, 20,000 bytes a kind, in windows of 256 tokens:

{side_by_side(bits, "kind")}

The 140 labelled texts:

{side_by_side(own, "category")}

## The corpus

{corpus_card(corpus, dropped)}

## Three samples of each kind

{samples(corpus, 400)}
"""
