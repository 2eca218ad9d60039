"""`prism gallery`: a folder of feature pages and their index, made from one model and one of its SAEs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from prism.analysis import most_frequent, specialists
from prism.explorer.pages import Section, compose, feature_page
from prism.explorer.rows import rows
from prism.explorer.sample import CORPUS, Sample
from prism.explorer.session import Reading
from prism.features import FeatureMatrix
from prism.files import write_text
from prism.models import ModelSpec, SaeSpec, load_model, load_sae
from prism.visualization.style import category_title


def write_gallery(spec: ModelSpec, sae_spec: SaeSpec, n: int = 100, out: Path = Path("outputs/gallery")) -> Path:
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
        raise ValueError(f"{n} pages; give at least 1, better 100")
    sae = load_sae(spec, sae_spec.name)
    if n > sae.cfg.d_sae:
        raise ValueError(f"{n:,} pages; the SAE '{sae_spec.name}' has {sae.cfg.d_sae:,} features, give at most as many")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder '{out}' ({error.strerror}); choose another one") from None
    reading = Reading.of(spec, sae_spec, load_model(spec, sae), sae)
    chosen = choose_features(reading.sample, n)
    features = write_pages(spec, reading, chosen, out)
    n_tokens = f"{reading.matrix.n_tokens:,} tokens of labelled texts and {CORPUS.lower()}"
    write_text(out / "index.html", gallery_index(features, f"{reading.dictionary.title}; {n_tokens}", rules(chosen)))
    return out / "index.html"


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
        [(feature, f"specialist: {category_title(name)}") for feature in part["feature"]]
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
    }
    return [f"{kinds.count(kind)} {text}." for kind, text in words.items() if kind in kinds]


def write_pages(spec: ModelSpec, reading: Reading, chosen: dict[int, str], out: Path) -> list[dict[str, object]]:
    """A page for each chosen feature; returns the rows that the index shows."""
    pages = {feature: page_name(spec, reading.spec, feature) for feature in chosen}
    scores = []
    for feature, page in tqdm(pages.items(), desc="pages", unit="page"):
        facts = reading.facts(feature)
        text = feature_page(
            feature,
            title=reading.dictionary.title,
            link=reading.spec.feature_url(feature),
            index="index.html",
            link_to=pages.get,
            **facts,
        )
        write_text(out / page, text)
        scores.append(facts["scores"].get("detection", np.nan))
    frame = pd.DataFrame({"feature": [*chosen], "chosen": chosen.values(), "detection": scores})
    frame["density"] = reading.density[frame["feature"]]
    return [one | {"page": pages[one["feature"]]} for one in rows(reading, frame)]


def page_name(spec: ModelSpec, sae_spec: SaeSpec, feature: int) -> str:
    """File name of a feature's page: letters, digits, dots and hyphens only, so that it is an address as it stands."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{spec.name}_{sae_spec.name}_{feature}.html")


def gallery_index(features: Sequence[Mapping[str, object]], title: str, rules: Sequence[str]) -> str:
    """The index of a gallery: by which rules the features were chosen, and one row a feature.

    Args:
        features: as `rows` has them, with the address of its `page` each.
        title: where the features come from, plain text.
        rules: sentences, plain text.

    Returns:
        A complete HTML document.
    """
    note = (
        "Of each: what somebody takes it to mean, a hypothesis, or else what counting found; where it is strongest in "
        "the texts; which rule chose it. Detection: how well what counting found tells, on held-out text, where the "
        "feature fires (balanced accuracy; 1 is perfect, 0.5 a guess)."
    )
    return compose(
        "document.html",
        "Feature gallery",
        [Section("rules", "How they were chosen", "", rules), Section("gallery", "Features", note, features)],
        [],
        [],
        about=title,
        stats={},
        index=None,
        elsewhere=None,
        styles=["page.css", "document.css", "rows.css"],
    )
