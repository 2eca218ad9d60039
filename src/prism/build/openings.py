"""What the sampled corpora begin with: first words and requests, all written for this project, in `openings.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path

OPENINGS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))  # kind -> what -> texts


def beginnings(kind: str, what: str) -> list[str]:
    """The `words` or `requests` of a kind with every subject in place of `{}`, each once."""
    ours = OPENINGS[kind]
    return list(dict.fromkeys(text.replace("{}", subject) for subject in ours["subjects"] for text in ours[what]))
