"""Written labels: what people take features to mean, one hypothesis a line of a file beside a model's SAEs."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path

from prism.files import damaged, reading
from prism.manifest import intact
from prism.models import SaeSpec

FILE = "labels.jsonl"  # beside the folder that holds the SAEs' folders; a model may have none


@dataclass(frozen=True)
class Label:
    """One line of the file.

    Attributes:
        sae: name of the SAE, which is its folder's.
        feature: its number.
        label: what it responds to, in words.
        author: who thinks so.
        date: when it was written, such as 2025-03-31.
        status: 'hypothesis'; there is no other.
        refuted_by: what would show that it is wrong.
    """

    sae: str
    feature: int
    label: str
    author: str
    date: str
    status: str
    refuted_by: str


def read_labels(sae: SaeSpec, d_sae: int) -> dict[int, Label]:
    """Feature -> its label, of an SAE; empty where there is no file.

    Raises:
        ValueError: a line is not what it should be; the message names file and line.
    """
    if sae.folder is None or not (path := sae.folder.parent.with_name(FILE)).is_file():
        return {}
    with reading(intact(path)):
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    found: dict[tuple[str, int], Label] = {}
    for number, line in enumerate(lines, 1):
        try:
            label = _label(json.loads(line), sae.folder.parent)
            if (key := (label.sae, label.feature)) in found:
                raise ValueError(f"feature {label.feature} of '{label.sae}' has a label above")
            if label.sae == sae.name and label.feature >= d_sae:
                raise ValueError(f"'{sae.name}' has no feature {label.feature}, only 0 to {d_sae - 1}")
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"line {number}: {getattr(error, 'msg', error)}") from None
        found[key] = label
    return {feature: label for (name, feature), label in found.items() if name == sae.name}


def _label(entry: object, saes: Path) -> Label:
    """A line's label, each of its fields looked at."""
    names = [field.name for field in fields(Label)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise ValueError(f"it is no object with the fields {', '.join(names)}")
    if isinstance(entry["feature"], bool) or not isinstance(entry["feature"], int) or entry["feature"] < 0:
        raise ValueError(f"feature is {entry['feature']!r}, not a number from 0")
    for name in names:
        if name != "feature" and not (isinstance(entry[name], str) and entry[name].strip()):
            raise ValueError(f"{name} is {entry[name]!r}, not some words")
    if entry["status"] != "hypothesis":
        raise ValueError(f"status is {entry['status']!r}, not 'hypothesis'")
    if entry["sae"] not in (known := sorted(path.name for path in saes.iterdir() if path.is_dir())):
        raise ValueError(f"no SAE '{entry['sae']}'; choose from {', '.join(known)}")
    date.fromisoformat(entry["date"])  # its error says what is wrong
    return Label(**entry)
