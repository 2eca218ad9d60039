"""The glossary is in order and its links, like those of the other documents, lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "outputs/README.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]
GLOSSARY = (ROOT / "docs" / "GLOSSARY.md").read_text(encoding="utf-8")


def _plain(term: str) -> str:
    return "".join(letter for letter in term.lower() if letter.isalnum() or letter == " ")


def test_glossary_is_alphabetical() -> None:
    terms = [_plain(term) for term in re.findall(r"^### (.+)$", GLOSSARY, re.M)]
    assert len(terms) > 40 and terms == sorted(terms)


def test_glossary_anchors_are_unique_and_complete() -> None:
    anchors = re.findall(r'id="([^"]+)"', GLOSSARY)
    assert len(anchors) == len(set(anchors))
    blocks = re.split(r"^### .+$", GLOSSARY, flags=re.M)[:-1]
    assert all(re.search(r'<a id="[\w-]+"></a>\s*$', block) for block in blocks), "a term without an anchor above it"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        assert (path.parent / file).exists() if file else True, f"{name}: {target}"
        if anchor:
            where = (path.parent / file).read_text(encoding="utf-8") if file else text
            assert f'id="{anchor}"' in where, f"{name}: {target}"


@pytest.mark.parametrize("module", sorted((ROOT / "src" / "prism").glob("[!_]*")), ids=lambda path: path.stem)
def test_readme_names_every_module(module: Path) -> None:
    assert f"| `{module.stem}` |" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_requirements_are_pinned_and_explained() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted[-1] == "-e ."
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ +# .+", line) for line in wanted[:-1])
