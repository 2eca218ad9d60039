"""What makes a unit fire, in a sentence: by counting tokens, or by asking a language model.

The counting explainer also keeps the rule behind its sentence, a decision list (Rivest 1987): terms in a fixed order,
of which the first that matches a token says how likely the unit fires there. So the sentence can be tested by machine.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from prism.autointerp.examples import FIRING, LEFT, OUTSIDE, Examples, Windows
from prism.data import BYTES, whole_characters

PRIOR = 2.0  # occurrences that a term is given beforehand, at the rate of what it refines
SHOWN = 5  # terms that a sentence names; the rule has them all
KINDS = ("pair", "context", "token", "after", "class", "near")  # from the most specific to the most general

CLASSES: dict[str, Callable[[str], bool]] = {
    "a number": lambda t: t.strip()[:1].isdigit(),
    "punctuation": lambda t: t.strip() in set(".,;:!?'\"…"),
    "a bracket or operator": lambda t: bool(t.strip()) and set(t.strip()) <= set("()[]{}<>=+-*/%_|&^#~$\\`@"),
    "a capitalised word": lambda t: t.strip()[:1].isupper(),
    "capital letters alone": lambda t: len(t.strip()) > 1 and t.strip().isalpha() and t.strip().isupper(),
    "the end of a word": lambda t: t[:1].isalpha() and t.islower(),
    "a small-letter word": lambda t: t[:1] == " " and t[1:].isalpha() and t.islower(),
    "white space": lambda t: t.isspace(),
    "a letter that English lacks": lambda t: any(c.isalpha() and not c.isascii() for c in t),
    "an emoji or symbol": lambda t: any(unicodedata.category(c) == "So" for c in t),
    "part of a character": lambda t: BYTES.search(t) is not None,
    "part of a web address": lambda t: any(part in t for part in ("http", "www", "//", ".com", ".org")),
}


@lru_cache(maxsize=200_000)
def class_bits(token: str) -> int:
    """The classes that a token is in, as bits in the order of `CLASSES`."""
    return sum(1 << place for place, test in enumerate(CLASSES.values()) if test(token))


@dataclass(frozen=True)
class Term:
    """One line of a decision list.

    Attributes:
        kind: 'token' (this token), 'pair' (this token after that one), 'after' (any token after that one), 'context'
            (this token soon after a class of tokens), 'class' and 'near' (any token in, or soon after, a class).
        token: id of the token itself; −1 where any will do.
        before: id of the token before it; −1 where any will do.
        group: place of the class in `CLASSES`; −1 where there is none.
        rate: share of its occurrences on which the unit fires, drawn towards the rate of what it refines.
        count: occurrences in the texts that it was counted on.
        words: the condition in words.
    """

    kind: str
    token: int
    before: int
    group: int
    rate: float
    count: int
    words: str


@dataclass(frozen=True)
class Explanation:
    """Why a unit fires, in a sentence, and the rule behind it if there is one.

    Attributes:
        unit: which it is about.
        sentence: for people, and for judges that read.
        terms: the rule, the first match decides; empty where a model wrote the sentence.
        base: the rate where no term matches.
        cut: the rule says that the unit fires where the rate is above this.
    """

    unit: int
    sentence: str
    terms: tuple[Term, ...] = ()
    base: float = 0.0
    cut: float = 1.0

    def rates(self, windows: Windows) -> Float[np.ndarray, "windows width"]:
        """How likely the rule thinks it that the unit fires, at each token of some windows.

        Raises:
            ValueError: an explanation without a rule.
        """
        if not self.terms and self.cut >= 1.0:
            raise ValueError("this explanation is a sentence without a rule; a ModelJudge must judge it")
        return self._rates(windows.ids, *_bits(windows.ids, windows.tokens))

    def brief(self) -> str:
        """The sentence with two of the rule's conditions; one without a rule as it is."""
        return sentence_of(self.terms, self.base, self.cut, shown=2) if self.terms else self.sentence

    def _rates(self, ids: np.ndarray, bits: np.ndarray, near: np.ndarray) -> np.ndarray:
        before = _shifted(ids, 1)
        rates = np.full(ids.shape, self.base)
        for term in reversed(self.terms):  # the first in the list overwrites what comes later
            rates[_matches(term, ids, before, bits, near)] = term.rate
        return np.where(ids == OUTSIDE, 0.0, rates)


def _matches(
    term: Term, ids: np.ndarray, before: np.ndarray, bits: np.ndarray, near: np.ndarray
) -> Bool[np.ndarray, "windows width"]:
    """Where the condition of a term holds."""
    found = np.ones(ids.shape, dtype=bool)
    if term.token != OUTSIDE:
        found &= ids == term.token
    if term.before != OUTSIDE:
        found &= before == term.before
    if term.group >= 0:
        found &= (bits if term.kind == "class" else near) >> term.group & 1 == 1
    return found


def _shifted(values: np.ndarray, by: int, fill: int = OUTSIDE) -> np.ndarray:
    """Each row moved to the right, so that a place holds what stood `by` places before it."""
    out = np.full_like(values, fill)
    out[:, by:] = values[:, :-by]
    return out


def _bits(ids: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes of each token, and of any of the `LEFT` tokens before it, as bits."""
    unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    strings = tokens.ravel()[first]
    table = np.array([0 if i == OUTSIDE else class_bits(s) for i, s in zip(unique, strings, strict=True)])
    bits = table[inverse].reshape(ids.shape)
    near = np.zeros_like(bits)
    for back in range(1, LEFT + 1):
        near |= _shifted(bits, back, 0)
    return bits, near


class TokenStatistics:
    """Explains units by the tokens, pairs of tokens and classes of tokens on which they fire.

    Example:
        `TokenStatistics(examples).explain(unit)`, with `examples` of the texts to explain on.
    """

    def __init__(self, examples: Examples, terms: int = 12, context: bool = True) -> None:
        """Count what all units share.

        Args:
            examples: of texts that the explanations will not be scored on.
            terms: at most so many of each kind.
            context: False leaves a list of tokens alone: what a look-up table would know.
        """
        self.examples, self.terms, self.context = examples, terms, context
        table = examples.matrix.table
        text, place = np.unique(table["text"].to_numpy(), return_inverse=True)
        self._place = (place, table["position"].to_numpy() - 1)  # BOS has position 0
        shape = (len(text), int(self._place[1].max()) + 1)
        ids, strings = np.full(shape, OUTSIDE, dtype=np.int64), np.full(shape, "", dtype=object)
        ids[self._place] = table["token_id"].to_numpy()
        strings[self._place] = table["token"].astype(str).to_numpy(dtype=object)
        bits, near = _bits(ids, strings)
        self._ids, self._before = ids[self._place], _shifted(ids, 1)[self._place]
        self._bits, self._near = bits[self._place], near[self._place]
        self._in_class = {"class": _members(self._bits), "near": _members(self._near)}
        self._order = np.argsort(self._ids, kind="stable")
        self._sorted = self._ids[self._order]
        self._counts = np.bincount(self._ids)
        self._counts_before = np.bincount(self._before[self._before != OUTSIDE], minlength=len(self._counts))
        unique = table.drop_duplicates("token_id")
        names = map(quoted, unique["token"].astype(str))
        self._names = dict(zip(unique["token_id"].astype(int), names, strict=True)) | _parts(table)

    def explain(self, unit: int) -> Explanation:
        """The rule and its sentence for one unit.

        The cut is the one that tells the unit's own windows from its silent and same-token ones best (balanced
        accuracy), on the texts that the terms were counted on.

        Raises:
            IndexError: no such unit.
        """
        fires = self.examples.fires(self.examples.matrix.check_feature(unit))
        base = float(fires.mean())
        tokens = self._single("token", self._ids, self._counts, fires, base)
        terms = list(tokens)
        if self.context:
            terms += self._single("after", self._before, self._counts_before, fires, base)
            terms += self._classes(fires, base)
            terms += self._refined(tokens, fires)
        terms.sort(key=lambda term: (KINDS.index(term.kind) // 2, -abs(term.rate - base)))
        rule = Explanation(unit, "", tuple(terms), base, cut=0.0)
        cut = self._cut(rule)
        return Explanation(unit, sentence_of(terms, base, cut), tuple(terms), base, cut)

    def _single(self, kind: str, ids: np.ndarray, counts: np.ndarray, fires: np.ndarray, base: float) -> list[Term]:
        """Terms of one token, this one or the one before: those with most firings beyond what their number explains."""
        found, hits = np.unique(ids[fires], return_counts=True)
        found, hits = found[found != OUTSIDE], hits[found != OUTSIDE]
        excess = hits - counts[found] * base
        rates = (hits + PRIOR * base) / (counts[found] + PRIOR)
        best = np.argsort(-excess, kind="stable")[: self.terms]
        best = best[(excess[best] > 0) & (rates[best] > 2 * base)]
        return [
            self._term(
                kind,
                found[i] if kind == "token" else OUTSIDE,
                found[i] if kind == "after" else OUTSIDE,
                -1,
                rates[i],
                counts[found[i]],
            )
            for i in best
        ]

    def _classes(self, fires: np.ndarray, base: float) -> list[Term]:
        """Terms of a class of tokens, this one's or those before it."""
        terms = []
        for kind, bits in (("class", self._bits), ("near", self._near)):
            counts = self._in_class[kind]
            rates = (_members(bits[fires]) + PRIOR * base) / (counts + PRIOR)
            for group in np.flatnonzero(rates > 2 * base):
                terms.append(self._term(kind, OUTSIDE, OUTSIDE, group, rates[group], counts[group]))
        return terms

    def _refined(self, tokens: list[Term], fires: np.ndarray) -> list[Term]:
        """Terms of a token in a context that changes its rate: after one token, or soon after a class of tokens."""
        found = []
        for term in tokens:
            rows = self._order[slice(*np.searchsorted(self._sorted, [term.token, term.token + 1]))]
            hit = fires[rows]
            before, which = np.unique(self._before[rows], return_inverse=True)
            n, k = np.bincount(which), np.bincount(which, hit)
            found += [("pair", term, int(b), -1, x, y) for b, x, y in zip(before, n, k, strict=True) if b != OUTSIDE]
            inside = self._near[rows][:, None] >> np.arange(len(CLASSES)) & 1 == 1
            n, k = inside.sum(0), (inside & hit[:, None]).sum(0)
            found += [("context", term, OUTSIDE, g, n[g], k[g]) for g in np.flatnonzero((n > 0) & (n < len(rows)))]
        change = {c: abs(c[5] - c[4] * c[1].rate) for c in found}  # firings more or fewer than the token alone explains
        strongest = sorted((c for c in found if change[c] >= 1), key=lambda c: -change[c])[: 2 * self.terms]
        return [
            self._term(kind, parent.token, before, group, (k + PRIOR * parent.rate) / (n + PRIOR), n)
            for kind, parent, before, group, n, k in strongest
        ]

    def _term(self, kind: str, token: int, before: int, group: int, rate: float, count: int) -> Term:
        name = {i: self._names[int(i)] for i in (token, before) if i != OUTSIDE}
        group_name = list(CLASSES)[group] if group >= 0 else ""
        words = {
            "token": lambda: name[token],
            "pair": lambda: f"{name[token]} after {name[before]}",
            "after": lambda: f"what follows {name[before]}",
            "class": lambda: group_name,
            "context": lambda: f"{name[token]} soon after {group_name}",
            "near": lambda: f"what comes soon after {group_name}",
        }[kind]()
        return Term(kind, int(token), int(before), int(group), float(rate), int(count), words)

    def _cut(self, rule: Explanation) -> float:
        """The cut that tells the unit's own windows from others best, on the texts to explain on."""
        drawn = self.examples.draw(rule.unit)
        windows = self.examples.windows(rule.unit, drawn["row"].to_numpy())
        return best_cut(rule.rates(windows).max(1), (drawn["kind"] == FIRING).to_numpy())


def _parts(table: pd.DataFrame) -> dict[int, str]:
    """Token id -> of which character it is most often a part, in words; for tokens that are only that."""
    ids, tokens = table["token_id"].to_numpy(), table["token"].tolist()
    found: dict[int, Counter] = defaultdict(Counter)
    for text, part in whole_characters(tokens):
        for place in range(part.start, part.stop):
            if "…" not in text and BYTES.search(tokens[place]):
                which = {part.start: "the first", part.stop - 1: "the last"}.get(place, "a middle")
                found[int(ids[place])][f"{which} part of {quoted(text.strip())}"] += 1
    return {token: counts.most_common(1)[0][0] for token, counts in found.items()}


def _members(bits: np.ndarray) -> np.ndarray:
    """How many of some tokens each class has."""
    return np.array([np.count_nonzero(bits & 1 << group) for group in range(len(CLASSES))])


def best_cut(scores: Float[np.ndarray, " windows"], truth: Bool[np.ndarray, " windows"]) -> float:
    """The cut between two scores that tells the true from the false best, by balanced accuracy (ties: the middle one).

    >>> best_cut(np.array([0.1, 0.2, 0.6, 0.8]), np.array([False, False, True, True]))
    0.4
    """
    levels = np.unique(scores)
    cuts = np.concatenate([[levels[0] / 2], (levels[1:] + levels[:-1]) / 2])
    said = scores[None] > cuts[:, None]
    gain = said[:, truth].mean(1) - (said[:, ~truth].mean(1) if (~truth).any() else 0.0)
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(cuts[best[len(best) // 2]])


def quoted(text: str) -> str:
    """A token in quotation marks, its white space and control characters written out: `" the"`, `"\\n"`."""
    return json.dumps(text, ensure_ascii=False)


def sentence_of(terms: Iterable[Term], base: float, cut: float, shown: int = SHOWN) -> str:
    """The rule in a sentence: the conditions above the cut that cover most firings, and the exceptions to them.

    A token in a context is named only where the token alone stays below the cut.
    """
    terms = list(terms)
    tokens = {t.token: t for t in terms if t.kind == "token"}
    sure = {token for token, t in tokens.items() if t.rate > cut}
    refined = [t for t in terms if t.kind in ("pair", "context")]
    above = [t for t in terms if t.rate > cut and (t not in refined or t.token not in sure)]
    above.sort(key=lambda t: -(t.rate - base) * t.count)
    if not above:
        return f"No token, pair or class of tokens stands out: it fires on {base:.1%} of all tokens."
    named = ", ".join(f"{t.words} ({t.rate:.0%})" for t in above[:shown])
    left = len(above) - shown
    more = f", and {left} more condition{'s' * (left > 1)}" if left > 0 else ""
    but = [t for t in refined if t.rate <= cut and t.token in {a.token for a in above[:shown]} & sure]
    but.sort(key=lambda t: -(tokens[t.token].rate - t.rate) * t.count)
    return f"Fires on {named}{more}{'; but not on ' * bool(but)}{' or '.join(t.words for t in but[:2])}."
