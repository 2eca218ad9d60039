"""Steering from a prompt: the model unchanged, changed by a feature, and changed by a control of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float

from prism.data import TokenBatch, corpus_batch, held_out_documents, token_table, token_text, whole_characters
from prism.evaluation import Predictions
from prism.explorer.session import Explorer, Reading
from prism.features import encode_features
from prism.interventions import Change, add, generate, project_out, suppress
from prism.interventions.changes import clamp
from prism.models import ModelSpec, kept_activations, ordinary

HOWS = ("add", "clamp", "suppress", "project out")
MAX_NEW_TOKENS = 60
# In units of the feature's largest activation in the sample: to begin with, what sliders offer, and at most.
STRENGTH, OFFERED, MAX_STRENGTH = 1.5, 6.0, 20.0
MEAN_DOCUMENTS = 20  # of the corpus; 'project out' leaves the mean activation on them as it is
RANDOM = "control: a random direction of the same length"


@dataclass(frozen=True)
class Example:
    """A question that is prepared: add `strength` × its maximum of a feature of `sae` behind a prompt."""

    title: str
    prompt: str
    sae: str
    feature: int
    strength: float = STRENGTH


# Model -> examples chosen by hand because they work. Most features are none: of the 195 of 15-res with a written label,
# added once each at 1.25 behind 'The next morning I' (seed 0), 150 fire nowhere in the 30 tokens that were written.
EXAMPLES: dict[str, tuple[Example, ...]] = {
    "smollm2": (
        Example("Emoji", "What a beautiful day", "15-res", 37, 0.75),
        Example("The language of research", "The next morning I", "15-res", 3832, 1.25),
        Example("Italian articles", "The next morning I", "15-res", 222, 1.25),
    )
}


@dataclass(frozen=True, eq=False)
class Continuation:
    """What a model wrote behind a prompt.

    Attributes:
        label: what was done to the model, in words.
        tokens: those that it wrote.
        activations: of the steered feature when the unchanged model reads what was written.
        nats: cross-entropy a token of what was written, under the unchanged model.
    """

    label: str
    tokens: list[str]
    activations: Float[np.ndarray, " tokens"]
    nats: float

    @property
    def text(self) -> str:
        """What was written, in one piece."""
        return "".join(text for text, _ in whole_characters(self.tokens))


@torch.no_grad()
def steer(
    explorer: Explorer,
    prompt: str,
    feature: int,
    how: str = "add",
    strength: float = STRENGTH,
    n_tokens: int = 30,
    temperature: float = 0.7,
    seed: int = 0,
    sae: str | None = None,
) -> list[Continuation]:
    """Three continuations on the same noise: unchanged, changed by a feature, and changed by a control.

    The control of 'add' and 'project out' is a random direction of the same length, that of 'clamp' and 'suppress'
    another feature of about the same density. One draw of each shows an example; phase 6a measures.

    Args:
        how: one of `HOWS`.
        strength: for 'add' and 'clamp', in multiples of the feature's largest activation in the sample.
        n_tokens: written behind the prompt.
        temperature: of the sampling; 0 takes the likeliest token.
        seed: of the sampling and of the control.

    Raises:
        ValueError, IndexError: a setting outside its range, a feature that never fires, or a bad prompt.
    """
    _check(how, strength, n_tokens, temperature)
    reading = explorer.reading(sae)
    feature, batch = reading.matrix.check_feature(feature), explorer.batch([prompt], sae)
    if (room := explorer.spec.context - batch.tokens.shape[1]) < n_tokens:
        raise ValueError(f"Behind this prompt there is room for {max(room, 0)} tokens, not {n_tokens}: shorten it.")
    hook = reading.sae.cfg.metadata.hook_name
    with explorer.lock:
        changes = {"unchanged": None} | _changes(explorer.spec, reading, feature, how, strength, seed)
        runs = [
            generate(reading.model, batch.tokens, n_tokens, change and hook, change, True, temperature, seed)
            for change in changes.values()
        ]
        return _read_back(reading, torch.cat([run.tokens for run in runs]), n_tokens, feature, list(changes))


def _check(how: str, strength: float, n_tokens: int, temperature: float) -> None:
    if how not in HOWS:
        raise ValueError(f"no way of steering named '{how}'; choose from {', '.join(HOWS)}")
    for name, value, low, high in (
        ("strength", strength, -MAX_STRENGTH, MAX_STRENGTH),
        ("number of tokens", n_tokens, 1, MAX_NEW_TOKENS),
        ("temperature", temperature, 0, 2),
    ):
        if not low <= value <= high:
            raise ValueError(f"The {name} is {value:g}; choose from {low:g} to {high:g}.")


def _changes(
    spec: ModelSpec, reading: Reading, feature: int, how: str, strength: float, seed: int
) -> dict[str, Change]:
    """Label -> change: the feature's, and its control's."""
    sae, peak = reading.sae, float(reading.statistics.maxima[feature])
    if peak == 0:
        raise ValueError(f"Feature {feature} never fires in the sample, so there is no unit for its strength.")
    direction = sae.W_dec[feature].detach()
    noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(seed))
    noise = noise * direction.norm() / noise.norm()
    other, amount = _twin(reading, feature, seed), strength * peak
    if how == "project out":
        mean = _mean(spec, reading)
        return {f"feature {feature}": project_out(direction, mean=mean), RANDOM: project_out(noise, mean=mean)}
    return {
        "add": {f"feature {feature}": add(direction, amount), RANDOM: add(noise, amount)},
        "clamp": {
            f"feature {feature}": clamp(sae, feature, amount),
            f"control: feature {other}": clamp(sae, other, amount),
        },
        "suppress": {f"feature {feature}": suppress(sae, feature), f"control: feature {other}": suppress(sae, other)},
    }[how]


@lru_cache(maxsize=8)
def _mean(spec: ModelSpec, reading: Reading) -> Float[torch.Tensor, " d_in"]:
    """Mean of the activations that the SAE reads, on a few documents of the corpus."""
    batch = corpus_batch(held_out_documents(spec.corpus).head(MEAN_DOCUMENTS), reading.model.tokenizer, spec.context)
    hook_name = reading.sae.cfg.metadata.hook_name
    return kept_activations(reading.model, hook_name, ordinary(reading.model, reading.sae, batch)).mean(0)


def _twin(reading: Reading, feature: int, seed: int) -> int:
    """Another feature, drawn from the 20 that fire on most nearly as many tokens."""
    counts = reading.statistics.counts
    others = np.flatnonzero((counts > 0) & (np.arange(len(counts)) != feature))
    if not len(others):
        raise ValueError(f"Feature {feature} is the only one that fires in the sample: there is no control for it.")
    near = np.argsort(np.abs(np.log(counts[others] / counts[feature])), kind="stable")[:20]
    return int(others[np.random.default_rng(seed).choice(near)])


def _read_back(
    reading: Reading, tokens: torch.Tensor, n_tokens: int, feature: int, labels: list[str]
) -> list[Continuation]:
    """The unchanged model reads what was written: the feature's activation on each token, and their cross-entropy."""
    model, keep = reading.model, torch.arange(tokens.shape[1]).expand(tokens.shape) > 0
    batch = TokenBatch(tokens, keep)
    matrix = encode_features(model, reading.sae, batch, token_table(batch, model.tokenizer))
    column = matrix.column(feature).reshape(len(tokens), -1)[:, -n_tokens:]
    counted = torch.arange(1, tokens.shape[1]).expand(len(tokens), -1) >= tokens.shape[1] - n_tokens
    seen = Predictions(model, tokens)
    nats = seen.nats(seen.clean, counted) / n_tokens
    written = [[token_text(model.tokenizer, i) for i in row[-n_tokens:]] for row in tokens]
    return [Continuation(*row) for row in zip(labels, written, column, nats.tolist(), strict=True)]
