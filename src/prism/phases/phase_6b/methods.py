"""Prompts whose verb must agree with its subject, a prompt taken apart into nodes, and nodes switched off for real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prism.data import token_table, token_text, tokenize
from prism.evaluation.predictions import changing
from prism.features import encode_features
from prism.interventions import matched_sets
from prism.interventions.changes import edited
from prism.models import activations_at, check_hook

ERROR = -1  # stands for a feature's number in the node of an SAE's error
POSITIONS = 2**11  # run at once, over all copies of a prompt: bounds activations and attention patterns
Score = Callable[[Float[Tensor, "batch pos d_in"]], Float[Tensor, " batch"]]  # one number for each activation

NOUNS = (
    "key keys, picture pictures, book books, letter letters, road roads, window windows, door doors, house houses, "
    "tree trees, dog dogs, boy boys, teacher teachers, report reports, bridge bridges, lamp lamps, song songs, "
    "story stories, map maps, photo photos, student students, child children, man men, woman women, farmer farmers, "
    "machine machines, girl girls, friend friends, car cars, word words, room rooms, game games, problem problems, "
    "member members, player players, hand hands, file files, name names, line lines, part parts, system systems, "
    "thing things, group groups"
)
PHRASES = (  # singular and plural
    ("to the cabinet", "to the cabinets"),
    ("near the table", "near the tables"),
    ("behind the wall", "behind the walls"),
    ("on the shelf", "on the shelves"),
    ("of the teacher", "of the teachers"),
    ("from the museum", "from the museums"),
)
CITIES = (  # country or state, capital, another large city
    "Australia Canberra Sydney, Turkey Ankara Istanbul, Nigeria Abuja Lagos, Pakistan Islamabad Karachi, "
    "Switzerland Bern Zurich, California Sacramento Los, Florida Tallahassee Miami, Illinois Springfield Chicago, "
    "Pennsylvania Harrisburg Philadelphia, Michigan Lansing Detroit, Kentucky Frankfort Louisville, Oregon Salem "
    "Portland, Alaska Juneau Anchorage, Maryland Annapolis Baltimore, Missouri Jefferson Kansas, Tanzania Dodoma "
    "Dar, Canada Ottawa Toronto, China Beijing Shanghai, France Paris Marseille, Germany Berlin Hamburg, Italy "
    "Rome Milan, Spain Madrid Barcelona, Japan Tokyo Osaka, Sweden Stockholm Gothenburg, Norway Oslo Bergen, "
    "Greece Athens Thessaloniki, Portugal Lisbon Porto, Austria Vienna Graz, Denmark Copenhagen Aarhus, Ireland "
    "Dublin Cork, Russia Moscow Saint, Egypt Cairo Alexandria, Kenya Nairobi Mombasa, Chile Santiago Valparaíso, "
    "Poland Warsaw Kraków, Belgium Brussels Antwerp, Scotland Edinburgh Glasgow, Texas Austin Houston, Ohio "
    "Columbus Cleveland, Massachusetts Boston Worcester"
)


def token_of(tokenizer, word: str) -> int:
    """The first token of a word, a space before it."""
    return tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]


def prompt_ids(tokenizer, text: str) -> Int[Tensor, " pos"]:
    """A prompt's tokens, BOS in front."""
    return torch.tensor([tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]])


def agreement_prompts(tokenizer, phrases: Sequence[tuple[str, str]] = PHRASES) -> pd.DataFrame:
    """'The keys to the cabinet' and the like: a noun and a second noun behind it, each in the singular and the plural.

    Only nouns whose two forms are of as many tokens, those of the commonest number: prompts of a phrase then are of one
    length.

    Returns:
        One row a prompt: noun (in the singular), subject and second (each 'singular' or 'plural'), phrase, text.
    """
    forms = [pair.split() for pair in NOUNS.split(", ")]
    counts = [tuple(_count(tokenizer, form) for form in pair) for pair in forms]
    best = Counter(count for count in counts if count[0] == count[1]).most_common(1)[0][0]
    sizes = ("singular", "plural")
    rows = [
        (pair[0], subject, second, both[0], f"The {form} {phrase}")
        for pair, count in zip(forms, counts, strict=True)
        for both in phrases
        for subject, form in zip(sizes, pair, strict=True)
        for second, phrase in zip(sizes, both, strict=True)
        if count == best
    ]
    return pd.DataFrame(rows, columns=["noun", "subject", "second", "phrase", "text"])


def capital_prompts(tokenizer, text: str) -> pd.DataFrame:
    """A text about each country or state whose name has the commonest number of tokens, so that all are of one length.

    Args:
        text: with {} for the name.

    Returns:
        One row a prompt: country, capital, city (another large one), text.
    """
    rows = [line.split() for line in CITIES.split(", ")]
    counts = [_count(tokenizer, row[0]) for row in rows]
    best = Counter(counts).most_common(1)[0][0]
    kept = [(*row, text.format(row[0])) for row, count in zip(rows, counts, strict=True) if count == best]
    return pd.DataFrame(kept, columns=["country", "capital", "city", "text"])


def wrong_and_right(capitals: pd.DataFrame, least: int = 4) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Prompts in which the other city is ahead of the capital (`lead` above 0), those in which it is not, and if both
    are `least` or more. If not, the halves with the larger and the smaller lead stand in, for a notebook to go on."""
    order = capitals.sort_values("lead", ascending=False)
    ahead = int((order["lead"] > 0).sum())
    enough = min(ahead, len(order) - ahead) >= least
    cut = ahead if enough else len(order) // 2
    return order.iloc[:cut].sort_index(), order.iloc[cut:].sort_index(), enough


def _count(tokenizer, word: str) -> int:
    return len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"])


@torch.no_grad()
def leads(model, texts: Sequence[str], answer: int, rival: int, hook: str = "", change=None) -> Float[np.ndarray, " n"]:
    """By how much the model prefers one next token to another after each prompt (logits).

    Args:
        hook, change: where to change the activations of all positions but BOS, and how (`interventions.Change`).
    """
    ids = [prompt_ids(model.tokenizer, text) for text in texts]
    out = np.zeros(len(ids))

    for length in {len(row) for row in ids}:
        same = [i for i, row in enumerate(ids) if len(row) == length]
        for rows in torch.tensor(same).split(max(1, POSITIONS // length)):
            tokens = torch.stack([ids[i] for i in rows]).to(model.cfg.device)
            keep = torch.ones_like(tokens, dtype=torch.bool).index_fill_(1, torch.tensor(0), False)
            with edited(model, hook, change, keep) if change else nullcontext():
                logits = model(tokens, return_type="logits", logits_to_keep=1)[:, -1].float().cpu()
            out[rows.numpy()] = (logits[:, answer] - logits[:, rival]).numpy()
    return out


def with_random(model, sae, texts: Sequence[str], chosen: Sequence[int], draws: int, seed: int) -> list[list[int]]:
    """Chosen features, then sets of random ones with about as much activation on some texts (`matched_sets`)."""
    texts = list(texts)
    longest = max(len(text.encode()) for text in texts) + 1  # BOS and, at most, a token a byte
    batch = tokenize(texts, model.tokenizer, longest)
    mass = encode_features(model, sae, batch, token_table(batch, model.tokenizer)).values.sum(axis=0).A1
    return [list(chosen), *matched_sets(mass, chosen, draws, seed=seed).tolist()]


@dataclass(frozen=True, eq=False)
class Nodes:
    """One prompt's activation as a sum of nodes: each feature at each position, and the SAE's error there.

    A node adds `value · direction` at its position. An error node has the value 1, and the error is its direction.

    Attributes:
        x: the activation of all positions.
        position: of each node.
        feature: of each node; `ERROR` for the error.
        value: what the node's activation is.
        off: what it is when the node is switched off.
        direction: the decoder row, or the error.
    """

    x: Float[Tensor, "pos d_in"]
    position: Int[Tensor, " nodes"]
    feature: Int[Tensor, " nodes"]
    value: Float[Tensor, " nodes"]
    off: Float[Tensor, " nodes"]
    direction: Float[Tensor, "nodes d_in"]

    def __len__(self) -> int:
        return len(self.value)

    @property
    def is_error(self) -> Bool[Tensor, " nodes"]:
        """Which nodes are errors."""
        return self.feature == ERROR

    @property
    def size(self) -> Float[Tensor, " nodes"]:
        """How far switching a node off moves the activation: `|value − off| · ‖direction‖`."""
        return (self.value - self.off).abs() * self.direction.norm(dim=1)

    def with_values(self, values: Float[Tensor, "batch nodes"]) -> Float[Tensor, "batch pos d_in"]:
        """The activation with the nodes at other values; differentiable. With their own values it is `x` itself."""
        moved, out = values - self.value, self.x.expand(len(values), -1, -1).clone()
        for position in self.position.unique():
            here = self.position == position
            out[:, position] = out[:, position] + moved[:, here] @ self.direction[here]
        return out


@torch.no_grad()
def take_apart(sae, x: Float[Tensor, "pos d_in"], others: Float[Tensor, "prompts pos d_in"] | None = None) -> Nodes:
    """Split an activation into features and error, each position but BOS for itself.

    The error as a node of its own: Marks et al. 2024 (arXiv 2403.19647).

    Args:
        sae: an SAE of the hook.
        x: one prompt's activation.
        others: activations of other prompts of the same length: a node is off at its mean over them, at its position.
            One twin is a mean of one. None: off is zero.

    Raises:
        ValueError: lengths that differ, or an SAE whose decoder is not `f W_dec + b_dec`.
    """
    if others is not None and others.shape[1:] != x.shape:
        raise ValueError(
            f"a prompt of {len(x)} positions beside others of {others.shape[1]}: give prompts of one length"
        )
    f, error = _encode(sae, x[1:])
    f_off, error_off = torch.zeros_like(f), torch.zeros_like(error)
    if others is not None:
        f_off, error_off = (
            torch.stack(part).mean(0) for part in zip(*(_encode(sae, one[1:]) for one in others), strict=True)
        )
    row, feature = (f != f_off).nonzero(as_tuple=True)
    n = len(error)
    return Nodes(
        x=x,
        position=torch.cat([row, torch.arange(n)]) + 1,
        feature=torch.cat([feature, torch.full((n,), ERROR)]),
        value=torch.cat([f[row, feature], torch.ones(n)]),
        off=torch.cat([f_off[row, feature], torch.zeros(n)]),
        direction=torch.cat([sae.W_dec[feature], error - error_off]),
    )


def _encode(sae, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, "tokens d_sae"], Float[Tensor, "tokens d_in"]]:
    """Features and error."""
    f = sae.encode(x)
    rebuilt = sae.decode(f)
    if not torch.allclose(f @ sae.W_dec + sae.b_dec, rebuilt, rtol=1e-3, atol=1e-3 * float(x.norm(dim=1).mean())):
        raise ValueError(
            "this SAE rescales while it decodes, so its features' contributions are not f · W_dec; "
            "choose an SAE without normalisation of its input"
        )
    return f, x - rebuilt


def scorer(model, hook: str, tokens: Int[Tensor, " pos"], answer: int, rival: int) -> Score:
    """The logit of one next token minus that of another, as a function of a hook's activation in a prompt.

    The prompt runs once up to the hook; from there on a batch of activations takes its place.

    Raises:
        ValueError: no such hook.
    """
    check_hook(model, hook)

    def score(x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, " batch"]:
        with changing(model, hook, lambda activation: x.to(activation)):
            logits = model(tokens[None].to(model.cfg.device), return_type="logits", logits_to_keep=1)
        logits = logits[:, -1].float().cpu()
        return logits[:, answer] - logits[:, rival]

    return score


def open_prompt(
    model, sae, text: str, answer: int, rival: int, others: Sequence[str] | None = None
) -> tuple[Nodes, Score]:
    """A prompt's activation at the SAE's hook as nodes, and what is asked of it (see `scorer`).

    Args:
        others: prompts of the same length that say what 'off' is (see `take_apart`).
    """
    hook = sae.cfg.metadata.hook_name
    rows = [prompt_ids(model.tokenizer, one) for one in (text, *(others or ()))]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"prompts of {sorted({len(row) for row in rows})} tokens: give prompts of one length")
    x = activations_at(model, torch.stack(rows), [hook])[hook]
    return take_apart(sae, x[0], x[1:] if others else None), scorer(model, hook, rows[0], answer, rival)


@torch.no_grad()
def effects(score: Score, nodes: Nodes, sets: Bool[Tensor, "batch nodes"] | None = None) -> Float[Tensor, " batch"]:
    """What really happens: score as it is − score with all nodes of a set switched off, one run of the model a set.

    Args:
        sets: one row a set; None for every node alone.
    """
    sets = torch.eye(len(nodes), dtype=torch.bool) if sets is None else sets
    values = torch.cat([nodes.value[None], torch.where(sets, nodes.off, nodes.value)])
    at_once = max(1, POSITIONS // len(nodes.x))
    scores = torch.cat([score(nodes.with_values(part)) for part in values.split(at_once)])
    return scores[0] - scores[1:]


def node_table(tokenizer, text: str, nodes: Nodes) -> pd.DataFrame:
    """One row a node, to read: node ('954 · keys', 'error · keys'), feature (`ERROR` for an error), size."""
    words = [token_text(tokenizer, token).strip() for token in prompt_ids(tokenizer, text).tolist()]
    pairs = zip(nodes.feature.tolist(), nodes.position.tolist(), strict=True)
    names = [f"{'error' if feature == ERROR else feature} · {words[position]}" for feature, position in pairs]
    return pd.DataFrame({"node": names, "feature": nodes.feature.numpy(), "size": nodes.size.numpy()})


def first_difference(nodes: Nodes) -> int:
    """The first position at which switching nodes off changes the activation: of a pair, the word that differs."""
    return int(nodes.position[nodes.size > 1e-3 * nodes.size.max()].min())
