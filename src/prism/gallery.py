"""`prism gallery`: a folder of feature pages and their index, made from one model and one of its SAEs."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch.nn.functional import pad
from tqdm.auto import tqdm

from prism import autointerp as ai
from prism import visualization as viz
from prism.analysis import most_frequent, specialists
from prism.analysis.feature import summarise_feature
from prism.data import (
    CACHE,
    TokenBatch,
    cache_key,
    corpus_batch,
    load_texts,
    token_table,
    token_text,
    tokenize,
)
from prism.features import FeatureMatrix, encode_features
from prism.files import write_text
from prism.models import ModelSpec, SaeSpec, load_model, load_sae
from prism.training.family import held_out_documents, training_documents

EXPLAIN_DOCUMENTS, SCORE_DOCUMENTS = 140, 80  # of the model's corpus, beside the labelled texts
CORPUS = "Corpus documents"  # what the pages call the category of documents that have no label
NOT_EXPLAINED = "Not explained: it fires in too few places of these texts, or in too many."
EXPLAIN_SIZES = ai.Sizes(firing=40, silent=40)  # windows that an explanation's cut is fitted on


@dataclass(frozen=True, eq=False)
class Sample:
    """The texts of a gallery through an SAE.

    Attributes:
        matrix: of the labelled texts and of documents of the corpus.
        labelled: True on tokens of the labelled texts to search for specialists in.
        held: True on tokens that explanations are scored on, False on those that they are made from.
    """

    matrix: FeatureMatrix
    labelled: Bool[np.ndarray, " tokens"]
    held: Bool[np.ndarray, " tokens"]


@dataclass(frozen=True, eq=False)
class Dictionary:
    """What a page says beyond the sample.

    Attributes:
        title: model and SAE, in words.
        decoder: the SAE's.
        unembed: from the space that the SAE reads to logits; None where there is no direct way.
        vocabulary: tokens by id.
    """

    title: str
    decoder: Float[np.ndarray, "d_sae d_in"]
    unembed: Float[np.ndarray, "d_in d_vocab"] | None
    vocabulary: list[str]


def write_gallery(spec: ModelSpec, sae_spec: SaeSpec, n: int = 50, out: Path = Path("outputs/gallery")) -> Path:
    """Choose `n` features by fixed rules and write a page about each, and `index.html`.

    Each file is written whole or not at all, the index last; other files in the folder are left alone.

    Args:
        spec: the model.
        sae_spec: one of its SAEs.
        n: features.
        out: folder; made if need be.

    Returns:
        The index.

    Raises:
        ValueError: n below 1, or more features than fire in the texts.
        FileNotFoundError: the model or the SAE is neither on this disk nor downloadable.
        OSError: the folder cannot be written.
    """
    if n < 1:
        raise ValueError(f"{n} pages; give at least 1, better 50")
    sae = load_sae(spec, sae_spec.name)
    if n > sae.cfg.d_sae:
        raise ValueError(f"{n:,} pages; the SAE '{sae_spec.name}' has {sae.cfg.d_sae:,} features, give at most as many")
    _make_folder(out)
    model = load_model(spec, sae)
    sample = read_sample(spec, model, sae)
    chosen = choose_features(sample, n)
    dictionary = read_dictionary(spec, sae_spec, model, sae)
    rows = write_pages(spec, sae_spec, sample, dictionary, chosen, out)
    n_tokens = f"{sample.matrix.n_tokens:,} tokens of labelled texts and {CORPUS.lower()}"
    write_text(out / "index.html", viz.gallery_index(rows, f"{dictionary.title}; {n_tokens}", rules(chosen)))
    return out / "index.html"


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder '{out}' ({error.strerror}); choose another one") from None


def read_sample(spec: ModelSpec, model, sae) -> Sample:
    """All labelled texts and some documents of the model's corpus, through the SAE.

    Explanations are made from the texts to discover with and the documents that SAEs train on, and scored on others.
    The features are kept in the cache: a second call with the same model, SAE and texts runs no model.

    Raises:
        ValueError: the model's context is too short for the labelled texts.
    """
    tokenizer, batches, categories, held = model.tokenizer, [], [], []
    for split, documents in (
        ("discover", training_documents(spec.corpus).head(EXPLAIN_DOCUMENTS)),
        ("confirm", held_out_documents(spec.corpus).head(SCORE_DOCUMENTS)),
    ):
        texts = load_texts(split)
        try:
            batches.append(tokenize(list(texts["text"]), tokenizer, spec.context))
        except ValueError as error:
            raise ValueError(f"{spec.name} cannot read the labelled texts: {error}") from None
        batches.append(corpus_batch(documents, tokenizer, spec.context))
        categories += [*texts["category"], *[CORPUS] * len(batches[-1])]
        held += [split == "confirm"] * (len(texts) + len(batches[-1]))
    batch = _joined(batches)
    table = token_table(batch, tokenizer, categories)
    rows, held = table["text"].to_numpy(), np.array(held)
    return Sample(_encoded(spec, model, sae, batch, table), rows < len(batches[0]), held[rows])


def _encoded(spec: ModelSpec, model, sae, batch: TokenBatch, table: pd.DataFrame) -> FeatureMatrix:
    """`encode_features`, from the cache if it is there, else into it."""
    texts = zlib.crc32(np.ascontiguousarray(batch.tokens)) ^ zlib.crc32(np.ascontiguousarray(batch.keep))
    made_by = {"model": _fingerprint(model), "sae": _fingerprint(sae), "settings": sae.cfg.to_dict()}
    words = "\n".join([*table["category"], *table["token"].cat.categories])  # a token may be named anew
    key = cache_key(**made_by, texts=texts, words=zlib.crc32(words.encode()))
    path = CACHE / "samples" / f"{spec.name}_{made_by['sae']}.safetensors"
    try:
        return FeatureMatrix.load(path, key)
    except (FileNotFoundError, ValueError):  # none yet, or of another model, or damaged: it is made anew
        matrix = encode_features(model, sae, batch, table, batch_size=8, progress=f"{spec.name} reads the sample")
    try:
        matrix.save(path, key)
    except OSError as error:
        print(f"The sample is not kept for the next start: {error}", file=sys.stderr)
    return matrix


def _fingerprint(module: torch.nn.Module) -> str:
    """What tells a module's weights from others: a checksum of up to 4,096 numbers of each tensor, evenly spaced."""
    found = 0
    for name, tensor in sorted(module.state_dict().items()):
        some = tensor.flatten()[:: max(1, tensor.numel() // 4_096)].float().cpu().contiguous()
        found = zlib.crc32(some.numpy(), zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), found))
    return f"{found:08x}"


def read_dictionary(spec: ModelSpec, sae_spec: SaeSpec, model, sae) -> Dictionary:
    """What pages about the SAE's features say beyond the sample."""
    title = f"{spec.title}, {sae_spec.name}: {sae_spec.title}"
    return Dictionary(title, sae.W_dec.float().numpy(), _unembedding(model, sae), _vocabulary(model))


def _joined(batches: list[TokenBatch]) -> TokenBatch:
    """Batches one below the other, padded at the end to the longest (with BOS, as each of them is)."""
    width, bos = max(batch.tokens.shape[1] for batch in batches), int(batches[0].tokens[0, 0])
    tokens = [pad(batch.tokens, (0, width - batch.tokens.shape[1]), value=bos) for batch in batches]
    keep = [pad(batch.keep, (0, width - batch.keep.shape[1]), value=False) for batch in batches]
    return TokenBatch(torch.cat(tokens), torch.cat(keep))


def choose_features(sample: Sample, n: int, seed: int = 0) -> dict[int, str]:
    """`n` different features: half of them specialists, a tenth each by frequency and density, the rest at random.

    A feature that two rules choose stands under the first. Where a rule finds fewer than its share, chance fills up.

    Args:
        sample: what they fire on.
        n: features.
        seed: of the random ones.

    Returns:
        Feature -> the rule that chose it, in words; rule by rule.

    Raises:
        ValueError: fewer than `n` features fire.
    """
    density = sample.matrix.density()
    fires = np.flatnonzero(density)
    if n > len(fires):
        raise ValueError(f"{n:,} pages; {len(fires):,} features fire in these texts, give at most as many")
    frequent = most_frequent(sample.matrix, n, by="token")["feature"]
    middle = fires[np.argsort(np.abs(np.log(density[fires] / np.median(density[fires]))), kind="stable")]
    some = np.random.default_rng(seed).permutation(fires)
    chosen: dict[int, str] = {}
    for count, candidates in (
        (n - n // 2, _specialists(sample.matrix.select(sample.labelled), n)),
        (n // 10, ((feature, "most frequent") for feature in frequent)),
        (n // 10, ((feature, "median density") for feature in middle)),
        (n, ((feature, "random") for feature in some)),
    ):
        stop = min(len(chosen) + count, n)
        for feature, rule in candidates:
            if len(chosen) == stop:
                break
            chosen.setdefault(int(feature), rule)
    return chosen


def _specialists(labelled: FeatureMatrix, n: int) -> Iterator[tuple[int, str]]:
    """The best specialist of each category, then the second of each, and so on."""
    found = specialists(labelled, k=n)
    columns = [
        [(feature, f"specialist: {viz.category_title(name)}") for feature in part["feature"]]
        for name, part in found.groupby("category", observed=True)
    ]
    return (pair for pair in chain.from_iterable(zip_longest(*columns)) if pair)


def rules(chosen: dict[int, str]) -> list[str]:
    """How the features were chosen, in sentences, with how many each rule chose."""
    kinds = [rule.split(":")[0] for rule in chosen.values()]
    words = {
        "specialist": "specialists of a category: those that fire on most of its 10 labelled texts and on fewest"
                      " of the other 60, in turn the best of each category, then the second of each, and so on",
        "most frequent": "most frequent: those that fire on most tokens",
        "median density": "of median density: those whose density is nearest to the median of all that fire",
        "random": "random: drawn from all features that fire, with a fixed seed",
    }  # fmt: skip
    return [f"{kinds.count(kind)} {text}." for kind, text in words.items() if kind in kinds]


def write_pages(
    spec: ModelSpec, sae_spec: SaeSpec, sample: Sample, dictionary: Dictionary, chosen: dict[int, str], out: Path
) -> pd.DataFrame:
    """A page for each chosen feature; returns the rows that the index shows."""
    matrix, explained = sample.matrix, explanations(sample, chosen)
    rows = []
    for feature, rule in tqdm(chosen.items(), desc="pages", unit="page"):
        sentence, scores = explained[feature]
        page = viz.feature_page(
            feature, matrix, dictionary.decoder, dictionary.unembed, dictionary.vocabulary, dictionary.title,
            sae_spec.feature_url(feature), index="index.html", explanation=sentence, scores=scores,
            link_to=lambda other: page_name(spec, sae_spec, other) if other in chosen else None,
        )  # fmt: skip
        write_text(out / page_name(spec, sae_spec, feature), page)
        summary = summarise_feature(matrix, feature, 20)
        rows.append({
            "feature": feature, "page": page_name(spec, sae_spec, feature), "chosen": rule,
            "density": summary.density, "tokens": list(dict.fromkeys(summary.examples["token"].astype(str)))[:3],
            "category": _category(summary.categories), "explanation": sentence,
            "score": scores.get("detection", np.nan),
        })  # fmt: skip
    return pd.DataFrame(rows)


def page_name(spec: ModelSpec, sae_spec: SaeSpec, feature: int) -> str:
    """File name of a feature's page: letters, digits, dots and hyphens only, so that it is an address as it stands."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{spec.name}_{sae_spec.name}_{feature}.html")


def _category(profile: pd.DataFrame) -> str:
    """The labelled category with the largest share of texts that fire, in words."""
    profile = profile[(profile["category"] != CORPUS) & (profile["share_firing"] > 0)]
    if profile.empty:
        return "no labelled text"
    best = profile.sort_values(["share_firing", "mean_max"], ascending=False).iloc[0]
    return f"{viz.category_title(best['category'])} ({best['share_firing']:.0%} of texts)"


def explanations(sample: Sample, features: Iterable[int]) -> dict[int, tuple[str, dict[str, float]]]:
    """Feature -> its explanation by counting, and that explanation's scores on the held-out texts (empty if none)."""
    explain = ai.Examples(sample.matrix.select(~sample.held), sizes=EXPLAIN_SIZES)
    held = ai.Examples(sample.matrix.select(sample.held))
    counter, found = ai.TokenStatistics(explain), {}
    for feature in features:
        if not explain.scorable(feature):
            found[feature] = (NOT_EXPLAINED, {})
            continue
        explanation, scores = counter.explain(feature), {}
        if held.scorable(feature):
            results = ai.score(explanation, held, feature)
            scores = {name.replace("_hard", ", same tokens"): results[name] for name in ai.SCORES}
        found[feature] = (explanation.sentence, scores)
    return found


def _vocabulary(model) -> list[str]:
    return [token_text(model.tokenizer, token) for token in range(model.cfg.d_vocab)]


def _unembedding(model, sae) -> Float[np.ndarray, "d_in d_vocab"] | None:
    """From the SAE's space to logits: directly, or by the way of the MLP's output weights for an SAE on neurons."""
    unembed, hook = model.W_U.float().cpu(), sae.cfg.metadata.hook_name
    if sae.cfg.d_in == len(unembed):
        return unembed.numpy()
    if not hook.endswith("mlp.hook_post"):
        return None
    out = model.W_out[int(hook.split(".")[1])].float()
    return (out @ unembed).numpy() if out.shape == (sae.cfg.d_in, len(unembed)) else None
