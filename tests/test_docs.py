"""The glossary is in order, links lead somewhere, and what documents and docstrings say of the code is true."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import re
import tomllib
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

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


def _with_examples() -> list[str]:
    paths = sorted((ROOT / "src" / "prism").rglob("*.py"))
    shown = [path for path in paths if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in shown]


@pytest.mark.parametrize("module", _with_examples())
def test_examples_in_docstrings_are_right(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_templates_are_shipped() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    files = [path for path in (ROOT / "src").rglob("templates/*") if path.is_file()]
    assert len(files) > 10 and all(path.match(shipped["*"][0]) for path in files)
    elsewhere = {path.suffix for path in (ROOT / "src" / "prism").rglob("*.*") if path.parent.name != "templates"}
    assert elsewhere <= {".py", ".pyc", ".toml"} and shipped["prism.build"] == ["*.toml"]


def test_requirements_are_pinned_and_explained() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted[-1] == "-e ."
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ +# .+", line) for line in wanted[:-1])


# --- troubleshooting: what it quotes is what the code says -----------------------------------------------------------

TROUBLESHOOTING = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
MESSAGES = re.findall(r"^\| `([^`]+)` \|", TROUBLESHOOTING, re.M) + re.findall(
    r"`(preflight of[^`]+|training a[^`]+|is truncated[^`]+|is needed;[^`]+|did you[^`]+|choose from|not verifiable)`",
    TROUBLESHOOTING,
)


def test_troubleshooting_quotes_messages_of_the_code() -> None:
    assert len(MESSAGES) >= 13
    assert [message for message in MESSAGES if message not in SOURCE] == []


def test_troubleshooting_names_what_exists() -> None:
    for name in set(re.findall(r"\bPRISM_[A-Z]+\b", TROUBLESHOOTING)):
        assert f'"{name}"' in SOURCE, name
    for command in set(re.findall(r"\bprism (\w+)`|\bprism (\w+) gpt2", TROUBLESHOOTING)):
        assert f'add_parser("{"".join(command)}"' in SOURCE, command
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake (\w+)", TROUBLESHOOTING)) - {"by"}:
        assert re.search(rf"^{target}:", makefile, re.M), target
    torch = re.search(r"^torch==[\d.]+", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M).group()
    assert torch in TROUBLESHOOTING
    for name, phase in (("CORPUS_DOCUMENTS", 1), ("D_SAE", 4), ("TOKENS", 4)):
        (notebook,) = (ROOT / "notebooks").glob(f"phase_{phase}_*.ipynb")
        assert f"{name} = " in notebook.read_text(encoding="utf-8"), name
    for part in ("PATIENCE = 3.0", "FETCH_PATIENCE = 15.0"):
        assert part in SOURCE, "the waiting times in TROUBLESHOOTING.md"
    tries = inspect.signature(file_download.http_get).parameters["_nb_retries"].default
    assert (constants.DEFAULT_DOWNLOAD_TIMEOUT, tries) == (10, 5), "and those of a download"


def test_dev_container_builds_what_make_builds() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert container["postCreateCommand"].endswith("make .venv/.installed-dev .venv/.model")
    assert "VENV := .venv" in makefile and "$(VENV)/.installed-dev:" in makefile and "$(VENV)/.model:" in makefile
    version = container["image"].rpartition(":")[2]
    assert version in ("3.11", "3.12", "3.13")
    assert "-r ../requirements.txt" in (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
