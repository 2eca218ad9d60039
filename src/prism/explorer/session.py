"""What both explorers ask: one model, its SAEs, and what their features do on a sample of texts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from prism.data import TokenBatch, readable, token_ids, token_table, tokenize, whole_characters
from prism.evaluation import evaluate
from prism.explorer.pages import feature_page
from prism.explorer.sample import PageFacts, Sample, read_dictionary, read_sample
from prism.features import FeatureMatrix, encode_features
from prism.features.matrix import FeatureStatistics
from prism.models import ModelSpec, SaeSpec, get_spec, load_model, load_sae
from prism.visualization.tokens import Piece, marked, shaded_rows, whole_token, window

MAX_CHARACTERS = 1_000  # of a text that somebody types; some 300 tokens, more than mini's context
ERRORS = (ValueError, IndexError, OSError)  # of which the message is a sentence for the reader
RARE = 0.01  # share of the sample's tokens; a feature that fires on more of them says little about one token
COMMON = 0.25  # share of the sample's texts; a feature that fires on more of them is no concept's
SHOWN_TOKENS = 3  # different tokens that a feature is described by
AROUND = 9  # tokens either side of a feature's strongest one that a row shows


@dataclass(frozen=True, eq=False)
class Reading:
    """One SAE, its model, and what its features do on the sample.

    Attributes:
        spec: the SAE's entry in the registry.
        model: with the weight processing that the SAE needs.
        sae: an SAELens SAE.
        sample: labelled texts and documents of the model's corpus, through the SAE.
        dictionary: decoder, unembedding and vocabulary, for feature pages.
    """

    spec: SaeSpec
    model: object
    sae: object
    sample: Sample
    dictionary: PageFacts

    @classmethod
    def of(cls, spec: ModelSpec, sae_spec: SaeSpec, model, sae) -> Reading:
        """An SAE of a model, both loaded, on the model's sample; the first time, some seconds or minutes.

        Raises:
            ValueError: the model's context is too short for the sample, or the file of labels is damaged.
        """
        return cls(sae_spec, model, sae, read_sample(spec, model, sae), read_dictionary(spec, sae_spec, model, sae))

    @property
    def matrix(self) -> FeatureMatrix:
        """The sample's features."""
        return self.sample.matrix

    @cached_property
    def statistics(self) -> FeatureStatistics:
        """Count, maximum and strongest tokens of every feature on the sample."""
        return self.matrix.statistics(k=20)

    @cached_property
    def density(self) -> Float[np.ndarray, " d_sae"]:
        """The share of the sample's tokens on which each feature fires."""
        return self.statistics.counts / max(self.matrix.n_tokens - self.matrix.massive, 1)

    @cached_property
    def one_token(self) -> Bool[np.ndarray, " d_sae"]:
        """True for features whose 20 strongest firings (all, of fewer; two at least) fall on one and the same token.

        Upper or lower case and white space around it make no other token.
        """
        table, rows = self.matrix.table, self.statistics.top_rows
        names = np.array([name.strip().lower() or name for name in table["token"].astype(str)], dtype=object)
        found = np.where(rows >= 0, np.unique(names, return_inverse=True)[1][rows], -1)
        return (rows[:, 1] >= 0) & ((found == found[:, :1]) | (found < 0)).all(1)

    @cached_property
    def common(self) -> Bool[np.ndarray, " d_sae"]:
        """True for features that fire on more than a quarter of the sample's texts."""
        return self.matrix.text_max().getnnz(axis=0) > COMMON * self.matrix.n_texts

    def fires_on(self, feature: int) -> str:
        """The tokens (or whole characters) of its strongest firings in the sample, white space made visible."""
        rows = self.statistics.top_rows[feature]
        tokens = dict.fromkeys(whole_token(self.matrix, row) for row in rows[rows >= 0])
        return "  ".join(map(marked, list(tokens)[:SHOWN_TOKENS])) or "nothing in the sample"

    def window(self, feature: int) -> list[Piece]:
        """Where in the sample the feature is strongest."""
        top, peak = int(self.statistics.top_rows[feature, 0]), float(self.statistics.maxima[feature])
        if not peak:
            return []
        around = window(self.matrix, top, AROUND)
        return shaded_rows(self.matrix, around, self.matrix.values[around, [feature]].toarray().ravel(), peak)

    def label(self, feature: int) -> dict[str, str]:
        """What a list says of a feature, and who says so: a written hypothesis, or what counting found."""
        if label := self.dictionary.labels.get(feature):
            return {"by": f"hypothesis by {label.author}", "text": label.label}
        explanation = self.sample.explained(feature)
        return {"by": "automatic", "text": explanation.brief()} if explanation else {}

    def facts(self, feature: int) -> dict[str, object]:
        """What a page says of a feature, as arguments of `pages.feature_page`.

        Raises:
            IndexError: no such feature; the message gives the valid range and the nearest choice.
        """
        feature, known = self.matrix.check_feature(feature), self.dictionary
        explanation = self.sample.explained(feature)
        return {
            "matrix": self.matrix,
            "decoder": known.decoder,
            "unembed": known.unembed,
            "vocabulary": known.vocabulary,
            "explanation": explanation.sentence if explanation else "",
            "scores": self.sample.scores(feature),
            "hypothesis": known.labels.get(feature),
        }

    def firing(self, matrix: FeatureMatrix, where: slice | None = None) -> pd.DataFrame:
        """The features that fire in a text, or on some tokens of it (those of one character), strongest first.

        Returns:
            Columns feature, activation (its largest there), in a text token (where that is), of_maximum (share of its
            largest activation in the sample; NaN where it never fires in that), density (in the sample).
        """
        active = (matrix.values if where is None else matrix.values[where]).tocoo()
        place, column = active.coords
        order = np.argsort(-active.data, kind="stable")
        _, first = np.unique(column[order], return_index=True)
        best = order[np.sort(first)]
        features, activation = column[best], active.data[best]
        peaks = self.statistics.maxima[features]
        share = np.divide(activation, peaks, out=np.full(len(best), np.nan), where=peaks > 0)
        found = pd.DataFrame({"feature": features, "activation": activation, "of_maximum": share})
        if where is None:
            pieces = whole_characters(matrix.table["token"].tolist())
            names = np.repeat([text for text, _ in pieces], [part.stop - part.start for _, part in pieces])
            found.insert(2, "token", names[place[best]])
        return found.assign(density=self.density[features])

    def shares(self, matrix: FeatureMatrix) -> Float[np.ndarray, " tokens"]:
        """For each token of a text, the largest share of its maximum in the sample that a rare feature reaches."""
        active, shares = matrix.values.tocoo(), np.zeros(matrix.n_tokens, np.float32)
        row, column = active.coords
        peaks = self.statistics.maxima[column]
        counts = (peaks > 0) & (self.density[column] <= RARE)
        np.maximum.at(shares, row[counts], active.data[counts] / peaks[counts])
        return np.minimum(shares, 1)

    def describe(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A table that has a column 'feature', with each feature's density in the sample and what it fires on."""
        features = frame["feature"].astype(int)
        return frame.assign(density=self.density[features], fires_on=[self.fires_on(f) for f in features])


class Explorer:
    """A model and its SAEs, to be asked from a notebook or a browser: loads each SAE once, answers one at a time.

    Every bad question is a ValueError or an IndexError whose message is a sentence for the reader.

    Args:
        model: name or folder; by default what `PRISM_MODEL` says, else `mini`.
        sae: the SAE that is meant where none is named; by default the notebooks'.

    Raises:
        ValueError: unknown model or SAE; the message gives the nearest and all valid ones.
    """

    def __init__(self, model: str | None = None, sae: str | None = None) -> None:
        self.spec = get_spec(model)
        self.default = self.spec.sae(sae).name
        self.lock = threading.RLock()  # a model with a hook on it answers nobody else
        self._pairs: dict[str, tuple] = {}
        self._readings: dict[str, Reading] = {}

    @property
    def names(self) -> list[str]:
        """The model's SAEs, the default one first."""
        return [self.default, *(name for name in self.spec.saes if name != self.default)]

    def reading(self, name: str | None = None) -> Reading:
        """An SAE with its sample; the first time, some seconds.

        Raises:
            ValueError: unknown SAE.
            FileNotFoundError: the model or the SAE is neither on this disk nor downloadable.
        """
        spec = self.spec.sae(name or self.default)
        with self.lock:
            if spec.name not in self._readings:
                self._readings[spec.name] = Reading.of(self.spec, spec, *self._pair(spec.name))
            return self._readings[spec.name]

    def _pair(self, name: str | None):
        """The model with the weight processing that an SAE needs, and the SAE."""
        name = self.spec.sae(name or self.default).name
        with self.lock:
            if name not in self._pairs:
                sae = load_sae(self.spec, name)
                self._pairs[name] = load_model(self.spec, sae), sae
            return self._pairs[name]

    def texts(self, texts: Sequence[str], name: str | None = None) -> FeatureMatrix:
        """Texts of the reader's own through an SAE.

        Raises:
            ValueError: no text, one that is empty, or one that is too long.
        """
        batch = self.batch(texts, name)
        with self.lock:
            reading = self.reading(name)
            return encode_features(reading.model, reading.sae, batch, token_table(batch, reading.model.tokenizer))

    def batch(self, texts: Sequence[str], name: str | None = None) -> TokenBatch:
        """Texts as tokens, within the bounds of this explorer.

        Raises:
            ValueError: no text, one that is empty, too long, or not `data.readable`.
        """
        texts = [stripped for text in texts if (stripped := readable(text).strip())]
        if not texts:
            raise ValueError("There is no text yet: type at least one word.")
        if (length := sum(map(len, texts))) > MAX_CHARACTERS:
            raise ValueError(f"The text has {length:,} characters; at most {MAX_CHARACTERS:,} are read here.")
        tokenizer, longest = self._pair(name)[0].tokenizer, self.spec.context - 1
        for text in texts:
            if (n := len(token_ids(tokenizer, text))) > longest:
                raise ValueError(f"The text has {n} tokens; {self.spec.name} reads at most {longest}: shorten it.")
        return tokenize(texts, tokenizer, self.spec.context)

    def at_token(self, matrix: FeatureMatrix, row: int, k: int = 10, name: str | None = None) -> pd.DataFrame:
        """The features that fire on one token of a text, strongest first.

        Args:
            matrix: from `texts`.
            row: of the token in it, from 0.

        Returns:
            Columns feature, activation, of_maximum (share of its largest activation in the sample), density, fires_on.

        Raises:
            IndexError: no such token.
        """
        if not 0 <= row < matrix.n_tokens:
            raise IndexError(f"no token {row}; choose from 0 to {matrix.n_tokens - 1}")
        return self.reading(name).describe(self.reading(name).firing(matrix, slice(row, row + 1)).head(k))

    def in_text(self, matrix: FeatureMatrix, k: int = 10, name: str | None = None) -> pd.DataFrame:
        """The features that are strongest anywhere in a text, as `at_token`, with the token where each peaks."""
        return self.reading(name).describe(self.reading(name).firing(matrix).head(k))

    def page(self, feature: int, name: str | None = None, link_to: Callable[[int], str | None] | None = None) -> str:
        """The feature's whole page, a document of its own, as the gallery writes it.

        Raises:
            IndexError: no such feature; the message gives the valid range and the nearest choice.
        """
        reading = self.reading(name)
        return feature_page(
            feature,
            title=reading.dictionary.title,
            link=reading.spec.feature_url(feature),
            link_to=link_to,
            **reading.facts(feature),
        )

    def compare(self, text: str, names: Iterable[str]) -> pd.DataFrame:
        """What each SAE keeps of a text: one row an SAE, by the definitions of `evaluation.evaluate`.

        Returns:
            Columns sae, features, l0 (active a token), explained_variance, nats_lost (a token, when the activation is
            replaced by the SAE's reconstruction), nats_lost_by_mean (by its mean over the text). One text is few
            tokens: differences between SAEs are those of this text.

        Raises:
            ValueError: no SAE named, an unknown one, or a bad text.
        """
        names = list(dict.fromkeys(names))
        if not names:
            raise ValueError("Choose at least one SAE.")
        rows = []
        for name in names:
            batch = self.batch([text], name)
            with self.lock:
                found = evaluate(*self._pair(name), batch, with_kl=False)
            rows.append(
                {
                    "sae": name,
                    "features": found.d_sae,
                    "l0": found.l0,
                    "explained_variance": found.explained_variance,
                    "nats_lost": found.delta_ce,
                    "nats_lost_by_mean": found.mean_ablation_cost,
                }
            )
        return pd.DataFrame(rows)
