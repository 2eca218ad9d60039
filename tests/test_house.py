"""The house: which room may import which, who uses a public name, and what is declared to be installed."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "prism"

# From the ground up: a room imports those before its own line, and of its own line none.
FLOORS = (
    ("stopping", "device", "threads"),
    ("files",),
    ("hub", "manifest"),
    ("data",),
    ("sae",),
    ("fast",),
    ("training",),
    ("models",),
    ("features", "parameters"),
    ("analysis", "evaluation"),
    ("interventions", "autointerp"),
    ("visualization",),
    ("exercises",),
    ("phases",),
    ("explorer",),
    ("press", "build"),
    ("cli",),
    ("__main__", "__init__"),
)
LAYER = (
    "analysis",
    "autointerp",
    "data",
    "device",
    "evaluation",
    "features",
    "fast",
    "files",
    "hub",
    "interventions",
    "models",
    "sae",
    "training",
    "visualization",
)
# Declared and never imported by name: the kernels, `make lab`, a version for nbformat.
AT_WORK = {"ipykernel", "jupyterlab", "jsonschema"}
# Imported, and a part of what is declared: of gradio, ipykernel, transformer-lens, and for `make execute` of kaleido.
COME_WITH = {"fastapi", "starlette", "uvicorn", "ipython", "accelerate", "choreographer"}


def room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that is imported; the name is empty for a whole module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SRC.rglob("*.py"))}


def edges() -> set[tuple[str, str]]:
    """(room, other) for every room that imports another."""
    found = set()
    for path, tree in trees().items():
        for module, name in imports(tree):
            if module.split(".")[0] == "prism" and (module, name) != ("prism", "__version__"):
                found.add((room(path), [*module.split("."), name][1]))
    return {(one, other) for one, other in found if one != other}


def test_imports_run_one_way():
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    assert not {(one, other) for one, other in edges() if floor[other] >= floor[one]}


def test_the_quick_twins_know_the_plain_maths_alone():
    assert {other for one, other in edges() if one == "fast"} <= {"sae", "data"}


def test_no_public_name_stands_on_two_faces():
    where = defaultdict(set)
    for face, name in faces():
        where[name].add(face)
    assert not {name: rooms for name, rooms in where.items() if len(rooms) > 1}


def test_no_phase_imports_another():
    for path, tree in trees().items():
        if room(path) == "phases":
            own = path.relative_to(SRC).parts[1].removesuffix(".py")
            others = {module for module, _ in imports(tree) if module.startswith("prism.phases.phase_")}
            assert all(module.split(".")[2] == own for module in others), path
    for path in (ROOT / "notebooks").glob("phase_*.ipynb"):
        rooms = set(re.findall(r"prism\.phases(?:\.| import )(phase_[0-9][a-z]?)\b", path.read_text(encoding="utf-8")))
        assert rooms == {re.match(r"phase_[0-9][a-z]?", path.stem)[0]}, path


def used_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(room, name) of every public name of ours that a module or a notebook touches."""
    alias = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prism":
            for one in node.names:
                if node.module == "prism":
                    alias[one.asname or one.name] = one.name
                else:
                    yield node.module.split(".")[1], one.name
                    if (SRC / Path(*node.module.split(".")[1:]) / f"{one.name}.py").exists():
                        alias[one.asname or one.name] = node.module.split(".")[1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in alias:
            yield alias[node.value.id], node.attr


def faces() -> Iterator[tuple[str, str]]:
    """(room, name) of all that a room of the layer shows: what its `__init__` exports, or its one file defines."""
    for path, tree in trees().items():
        if room(path) not in LAYER or path.parent != SRC and path.name != "__init__.py":
            continue
        for node in tree.body:
            names = []
            if path.parent == SRC and isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif path.parent != SRC and isinstance(node, ast.ImportFrom):
                names = [alias.asname or alias.name for alias in node.names]
            yield from ((room(path), name) for name in names if not name.startswith("_"))


def users() -> dict[tuple[str, str], set[str]]:
    """Who touches each public name of the layer: phases, products, and other rooms of the layer."""
    found = defaultdict(set)
    for path, tree in trees().items():
        own = room(path)
        who = path.relative_to(SRC).parts[1].removesuffix(".py") if own == "phases" else own
        for name in used_names(tree):
            if name[0] != own or own == "phases":
                found[name].add(who)
    for path in (ROOT / "notebooks").glob("phase_*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        tree = ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", code))
        phase = re.match(r"phase_[0-9][a-z]?", path.stem)[0]
        for name in used_names(tree):
            found[name].add(phase)
    return found


def test_a_public_name_has_two_users():
    """A phase and another phase, or a phase and a product, or a room of the layer: else it belongs to its one user."""
    found = users()
    lonely = sorted(
        {
            f"{where}.{name}"
            for where, name in faces()
            if len(found[where, name]) < 2 and not found[where, name] & set(LAYER)
        }
    )
    assert not lonely, f"give these a second user, or a place with their only one: {lonely}"


def test_what_is_declared_is_imported_and_the_other_way_round():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in project["dependencies"]}
    modules = {module.split(".")[0] for tree in trees().values() for module, _ in imports(tree)} - {"prism"}
    of = packages_distributions()
    used = {of[name][0].lower().replace("_", "-") for name in modules - sys.stdlib_module_names}
    assert used - declared == COME_WITH, "imported, and not declared in pyproject.toml"
    assert declared - used == AT_WORK, "declared, and imported nowhere"


@pytest.mark.parametrize(
    "code",
    [
        "from prism.models import load_model",
        "from prism.models.loading import load_model",
        "from prism import models as m\nm.load_model()",
    ],
)
def test_a_use_is_seen(code):
    assert ("models", "load_model") in set(used_names(ast.parse(code)))
