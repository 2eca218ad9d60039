"""The check below a notebook's parameter cell, and the guard of what its text says was observed."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from prism.data import readable, token_ids
from prism.device import device
from prism.models import ModelSpec, get_spec

Rule = Callable[[str, object], None]  # raises a ValueError on a value that may not be; gets its name for the message
Stated = Mapping[str, tuple]  # what it is, in words -> (computed, stated) or (computed, stated, within)
LARGEST_SEED = 2**31 - 1


def check_parameters(cell: Mapping[str, object], told_of: str = "", **rules: Rule | None) -> tuple[ModelSpec, Observed]:
    """Check a parameter cell before any work is done; MODEL, SAE and SEED need no rule of their own.

    Args:
        cell: the notebook's names, `globals()`.
        told_of: what the notebook's text tells of: a model's name and the mark of the defaults, "mini 1f3c9a".
        rules: parameter -> what it may be, made by the functions below; None for one that is checked further down,
            because the model sets its bounds.

    Returns:
        The model's entry in the registry, and the guard of what the text states.

    Raises:
        ValueError: the first parameter that may not be as it is; the message names it and says what it may be.
    """
    _all_there(cell, "MODEL", "SEED", *rules)
    spec = get_spec(_name("MODEL", cell["MODEL"]))
    for name in {"SAE", "SAE_NAME"} & cell.keys():
        if not isinstance(cell[name], type):  # SAELens has a class of that name
            spec.sae(_name(name, cell[name]))
    return spec, _checked(cell, spec, told_of, rules)


def check_toy_parameters(cell: Mapping[str, object], told_of: str = "", **rules: Rule | None) -> Observed:
    """`check_parameters` for a notebook that loads no model: its cell has no MODEL, and its guard needs none.

    Args:
        cell: the notebook's names, `globals()`.
        told_of: the mark of the defaults that the notebook's text tells of, "1f3c9a".
        rules: as in `check_parameters`.

    Returns:
        The guard of what the text states.

    Raises:
        ValueError: as in `check_parameters`.
    """
    _all_there(cell, "SEED", *rules)
    return _checked(cell, None, told_of, rules)


def _all_there(cell: Mapping[str, object], *names: str) -> None:
    for name in names:
        require(name in cell, f"{name} is missing from the parameter cell; write it there again")


def _checked(cell: Mapping[str, object], spec: ModelSpec | None, told_of: str, rules: Mapping[str, Rule]) -> Observed:
    """The guard, once every value has been held against its rule."""
    for name, rule in {"SEED": whole(0, LARGEST_SEED), **rules}.items():
        if rule:
            rule(name, cell[name])
    return Observed(cell, ("SEED", *rules), spec, told_of)


@dataclass(frozen=True, eq=False)
class Observed:
    """Guards what a notebook's text states, `observed({"texts inside": (inside, 10)})`.

    The text tells of one model at the notebook's defaults, which are known by a mark made of their values. Elsewhere
    (another model, a changed parameter, a GPU, a PRISM_DTYPE of lower precision) nothing is asserted. Where a notebook
    loads no model (`spec` is None) its toys run on the CPU in float32 everywhere, so a changed parameter alone counts.
    """

    cell: Mapping[str, object]
    parameters: tuple[str, ...]
    spec: ModelSpec | None
    told_of: str

    def __call__(self, numbers: Stated | Callable[[], Stated]) -> None:
        """Assert that numbers are as stated; where the settings are not those of the text, say so in a line instead.

        Args:
            numbers: what it is, in words -> (computed, stated), equal: for counts, features, words, lists of them; or
                (computed, stated, within): numbers that differ by at most `within`, enough for another processor's
                rounding and too little for another feature's number. A function that returns this, `lambda: {…}`, is
                called at the defaults alone: for what other settings may not have.

        Raises:
            AssertionError: something is not as stated; the message has both.
            ValueError: `told_of` is missing; the message has what to write.
        """
        model, _, mark = self.told_of.partition(" ") if self.spec else ("", "", self.told_of)
        told = f"{model or self.spec.name} {self._mark()}" if self.spec else self._mark()
        require(mark, f'behind globals(), where the parameters are checked, write told_of="{told}"')
        if differs := self._differs(model, mark):
            defaults = f"{model} at the notebook's defaults" if self.spec else "the notebook's defaults"
            print(f"Your settings differ ({differs}); the text tells of {defaults}.")
            return
        wrong = [
            f"{what} is stated as {stated}{f' (within {within[0]:g})' if within else ''}, computed as {value}"
            for what, (value, stated, *within) in (numbers() if callable(numbers) else numbers).items()
            if not _same(value, stated, *within)
        ]
        if wrong:
            advice = "These are the settings of the text: if no code or data changed, mend the sentence and its guard."
            raise AssertionError("\n".join([*wrong, advice]))

    def _differs(self, model: str, mark: str) -> str:
        """What is not as the text has it; nothing where all is."""
        changed, low = self._mark() != mark, os.environ.get("PRISM_DTYPE", "").strip().lower()
        if not self.spec:
            return "a parameter was changed" if changed else ""
        found = {
            f"the model is {self.spec.name}": self.spec is not get_spec(model),
            "a parameter was changed": changed,
            f"PRISM_DTYPE is {low}": low not in ("", "auto", "float32"),
            f"the device is {device().type}": device().type != "cpu",
        }
        return next((what for what, so in found.items() if so), "")

    def _mark(self) -> str:
        """Six digits that stand for the parameters' values, the default SAE by its name or as None."""
        named = {self.cell[name] for name in ("SAE", "SAE_NAME") if isinstance(self.cell.get(name), str)}
        values = [(name, self.cell.get(name)) for name in sorted(self.parameters)]
        other = sorted(named - {self.spec and self.spec.default_sae})
        return hashlib.sha256(repr((other, values)).encode()).hexdigest()[:6]


def _same(value: object, stated: object, within: float = 0.0) -> bool:
    """Of one shape, and no number further off than `within`; NaN is as NaN alone."""
    try:
        a, b = np.asarray(value, dtype=float), np.asarray(stated, dtype=float)
    except (TypeError, ValueError):  # words
        return np.array_equal(np.asarray(value, dtype=object), np.asarray(stated, dtype=object))
    return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=within, equal_nan=True)


def require(holds: bool, sentence: str) -> None:
    """What must fit together: a ValueError with the sentence where it does not."""
    if not holds:
        raise ValueError(sentence)


def whole(least: int, most: int | None = None, because: str = "") -> Rule:
    """A whole number; `because` says what the bound is for."""
    return _number(least, most, because, Integral, "a whole number")


def number(least: float, most: float | None = None, because: str = "") -> Rule:
    """A finite number."""
    return _number(least, most, because, Real, "a number")


def share(least: float = 0.0, most: float = 1.0) -> Rule:
    """A number from 0 to 1."""
    return number(least, most)


def one_of(options: Iterable[str]) -> Rule:
    """One of some names; the message gives the nearest."""
    options = list(options)

    def rule(name: str, value: object) -> None:
        if value not in options:
            near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.3)
            raise ValueError(
                f"{name} is {reprlib.repr(value)}; choose from {', '.join(options)}"
                + (f" (did you mean {near[0]!r}?)" if near else "")
            )

    return rule


def text(name: str, value: object) -> None:
    """Words: at least one character that is not a space, and no half of one."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must be a text with at least one word")
    readable(value, name)


def model(name: str, value: object) -> None:
    """The name of a model, or its folder."""
    require(value is not None, f"{name} is None; it must be a name in quotes")
    try:
        get_spec(_name(name, value))
    except ValueError as error:
        raise ValueError(str(error) if name in str(error) else f"{name}: {error}") from None


def check_lengths(spec: ModelSpec, least: int = 1, room: int = 0, **texts: str | Sequence[str]) -> None:
    """Whether a model reads some texts whole. (One that is not on this disk says so when it reads them.)

    Args:
        spec: the model's entry in the registry.
        least: tokens that a text must have.
        room: tokens that the model is to write behind it.
        texts: parameter -> a text, or several.

    Raises:
        ValueError: a text with too few tokens or too many; the message names the parameter.
    """
    folder = spec.tokenizer_folder or spec.folder
    tokenizer = folder and _tokenizer(folder)
    if tokenizer is None:
        return
    most, behind = spec.context - 1 - room, f", for {room} more are written behind them" if room else ""
    for name, given in texts.items():
        for one in [given] if isinstance(given, str) else given:
            n = len(token_ids(tokenizer, one, name))
            require(
                least <= n <= most,
                f"{name} holds a text of {n} tokens, {reprlib.repr(one)}; {spec.name} takes "
                f"{least} to {most} here{behind}",
            )


@lru_cache(maxsize=2)
def _tokenizer(folder: Path):
    """A model's tokenizer; None where it cannot be read, for whoever loads the model says why."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:
        return None


def each(rule: Rule, least: int = 1, most: int | None = None, different: bool = True) -> Rule:
    """Several values in a list or tuple, each as `rule` says."""

    def check(name: str, values: object) -> None:
        if isinstance(values, str) or not isinstance(values, list | tuple):
            raise ValueError(f"{name} is {reprlib.repr(values)}; it must be several values, such as (1, 2)")
        whole(least, most)(f"the number of values in {name}", len(values))
        for value in values:
            rule(f"a value in {name}", value)
        if different and len(set(values)) < len(values):
            raise ValueError(f"{name} is {reprlib.repr(values)}; the same value stands there twice")

    return check


def optional(rule: Rule) -> Rule:
    """None, or as `rule` says."""
    return lambda name, value: None if value is None else rule(name, value)


def _number(least: float, most: float | None, because: str, kind: type, words: str) -> Rule:
    def rule(name: str, value: object) -> None:
        fits = isinstance(value, kind) and not isinstance(value, bool)
        fits = fits and (isinstance(value, Integral) or math.isfinite(value))
        if not fits or value < least or (most is not None and value > most):
            bounds = f"of at least {least:,}" if most is None else f"from {least:,} to {most:,}"
            why = f": {because}" if because else ""
            raise ValueError(f"{name} is {reprlib.repr(value)}; it must be {words} {bounds}{why}")

    return rule


def _name(name: str, value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must be a name in quotes, or None for the default")
    return value
