"""The rooms of `prism`: a public name stands on one face alone, and imports run one way."""

import ast
from itertools import combinations
from pathlib import Path

import prism

ROOT = Path(prism.__file__).parent
FACES = ("sae", "training", "models", "evaluation", "analysis", "features", "interventions", "visualization",
         "autointerp", "explorer", "exercises", "fast")  # fmt: skip


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def public_names(face):
    """What a room's `__init__` defines or takes over from its modules."""
    names = set()
    for node in parsed(ROOT / face / "__init__.py").body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith(f"prism.{face}"):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets}
    return {name for name in names if not name.startswith("_")}


def test_no_public_name_stands_on_two_faces():
    names = {face: public_names(face) for face in FACES}
    assert all(names.values())
    assert {(a, b): shared for a, b in combinations(FACES, 2) if (shared := names[a] & names[b])} == {}


def rooms_used(room):
    """The other rooms and modules of `prism` that a room's modules import, at any depth."""
    names = set()
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("prism.")} - {room}


def test_training_knows_no_model_and_the_quick_twins_know_the_plain_maths_alone():
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert rooms_used("sae") & rooms == set()
    assert rooms_used("fast") <= {"sae", "data"}
    assert rooms_used("training") & rooms <= {"sae", "fast"}
