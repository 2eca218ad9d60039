"""The texts that pages, searches and explanations rest on, through an SAE; and what its features write."""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.sparse import vstack
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from prism import autointerp as ai
from prism.data import (
    CACHE,
    TokenBatch,
    cache_key,
    corpus_batch,
    held_out_documents,
    load_texts,
    token_table,
    token_text,
    tokenize,
    training_documents,
)
from prism.explorer.labels import Label, read_labels
from prism.features import FeatureMatrix, encode_features
from prism.models import ModelSpec, SaeSpec

EXPLAIN_DOCUMENTS, SCORE_DOCUMENTS = 140, 80  # of the model's corpus, beside the labelled texts
CORPUS = "Corpus documents"  # what the pages call the category of documents that have no label
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
    _explained: dict[int, ai.Explanation | None] = field(default_factory=dict, repr=False)

    @cached_property
    def _counter(self) -> ai.TokenStatistics:
        """Of the texts that explanations are made from."""
        return ai.TokenStatistics(ai.Examples(self.matrix.select(~self.held), sizes=EXPLAIN_SIZES))

    @cached_property
    def _counter_of_all(self) -> ai.TokenStatistics:
        return ai.TokenStatistics(ai.Examples(self.matrix, sizes=EXPLAIN_SIZES))

    @cached_property
    def _held_out(self) -> ai.Examples:
        return ai.Examples(self.matrix.select(self.held))

    def explained(self, feature: int) -> ai.Explanation | None:
        """When a feature fires, by counting; None if it never does.

        Made of the texts that are not held out, and of all where it is silent in those.
        """
        if feature not in self._explained:
            counter = self._counter
            if not counter.examples.fires(feature).any():
                counter = self._counter_of_all
            alive = counter.examples.fires(feature).any()
            self._explained[feature] = counter.explain(feature) if alive else None
        return self._explained[feature]

    def scores(self, feature: int) -> dict[str, float]:
        """How well that tells where the feature fires on the held-out texts; empty where it fires in too few places."""
        if not (self._counter.examples.scorable(feature) and self._held_out.scorable(feature)):
            return {}
        found = ai.score(self.explained(feature), self._held_out, feature)
        return {name.replace("_hard", ", same tokens"): found[name] for name in ai.SCORES if name in found}


@dataclass(frozen=True, eq=False)
class PageFacts:
    """What a page says beyond the sample.

    Attributes:
        title: model and SAE, in words.
        decoder: the SAE's.
        unembed: from the space that the SAE reads to logits; None where there is no direct way.
        vocabulary: tokens by id.
        labels: what people take some of the features to mean.
    """

    title: str
    decoder: Float[np.ndarray, "d_sae d_in"]
    unembed: Float[np.ndarray, "d_in d_vocab"] | None
    vocabulary: list[str]
    labels: dict[int, Label]


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
        matrix = _by_length(model, sae, batch, table, f"{spec.name} reads the sample")
    try:
        matrix.save(path, key)
    except OSError as error:
        print(f"The sample is not kept for the next start: {error}", file=sys.stderr)
    return matrix


def _by_length(model, sae, batch: TokenBatch, table: pd.DataFrame, label: str) -> FeatureMatrix:
    """`encode_features`, texts of like length together: what fills up a short one costs as much as a text."""
    lengths, texts = batch.keep.sum(1).numpy(), table["text"].to_numpy()
    parts, rows = [], []
    for some in tqdm(np.array_split(np.argsort(lengths, kind="stable"), -(-len(batch) // 8)), label, leave=False):
        some = np.sort(some)
        part = TokenBatch(*(x[some, : lengths[some].max() + 1] for x in (batch.tokens, batch.keep)))
        rows.append(np.flatnonzero(np.isin(texts, some)))
        parts.append(encode_features(model, sae, part, table.iloc[rows[-1]], progress=False))
    back = np.argsort(np.concatenate(rows))
    massive = np.concatenate([part.table.get("massive", np.zeros(0, bool)) for part in parts])
    table = table.assign(massive=massive[back]) if len(massive) else table
    return FeatureMatrix(vstack([part.values for part in parts], "csr")[back], table)


def _fingerprint(module: torch.nn.Module) -> str:
    """What tells a module's weights from others: a checksum of up to 4,096 numbers of each tensor, evenly spaced."""
    found = 0
    for name, tensor in sorted(module.state_dict().items()):
        some = tensor.flatten()[:: max(1, tensor.numel() // 4_096)].float().cpu().contiguous()
        found = zlib.crc32(some.numpy(), zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), found))
    return f"{found:08x}"


def read_dictionary(spec: ModelSpec, sae_spec: SaeSpec, model, sae) -> PageFacts:
    """What pages about the SAE's features say beyond the sample.

    Raises:
        ValueError: the file of labels is damaged.
    """
    title, labels = f"{spec.title}, {sae_spec.name}: {sae_spec.title}", read_labels(sae_spec, sae.cfg.d_sae)
    vocabulary = [token_text(model.tokenizer, token) for token in range(model.cfg.d_vocab)]
    return PageFacts(title, sae.W_dec.float().numpy(), _unembedding(model, sae), vocabulary, labels)


def _joined(batches: list[TokenBatch]) -> TokenBatch:
    """Batches one below the other, padded at the end to the longest (with BOS, as each of them is)."""
    tokens, keep = ([row for batch in batches for row in getattr(batch, name)] for name in ("tokens", "keep"))
    return TokenBatch(pad_sequence(tokens, True, int(tokens[0][0])), pad_sequence(keep, True, False))


def _unembedding(model, sae) -> Float[np.ndarray, "d_in d_vocab"] | None:
    """From the SAE's space to logits: directly, or by the way of the MLP's output weights for an SAE on neurons."""
    unembed, hook = model.W_U.float().cpu(), sae.cfg.metadata.hook_name
    if sae.cfg.d_in == len(unembed):
        return unembed.numpy()
    if not hook.endswith("mlp.hook_post"):
        return None
    out = model.W_out[int(hook.split(".")[1])].float()
    return (out @ unembed).numpy() if out.shape == (sae.cfg.d_in, len(unembed)) else None
