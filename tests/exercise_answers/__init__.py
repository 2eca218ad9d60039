"""Answers to every exercise, however a reader may write them: `RIGHT` are accepted, `WRONG` get the named hint."""

from importlib import import_module
from pathlib import Path

_TABLES = [import_module(f"{__name__}.{path.stem}") for path in sorted(Path(__file__).parent.glob("phase*.py"))]
RIGHT = [entry for table in _TABLES for entry in table.RIGHT]  # (check, answer)
WRONG = [entry for table in _TABLES for entry in table.WRONG]  # (check, answer, a part of what the check says)
