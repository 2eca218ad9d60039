"""Answers to every exercise, however a reader may write them: `RIGHT` are accepted, `WRONG` get the named hint."""

from exercise_answers import phase_5, phase_6a, phase_6b, phase_6c, phase_6d, phase_6e, phase_6f, phases_0_to_4

_TABLES = (phases_0_to_4, phase_5, phase_6a, phase_6b, phase_6c, phase_6d, phase_6e, phase_6f)
RIGHT = [entry for table in _TABLES for entry in table.RIGHT]  # (check, answer)
WRONG = [entry for table in _TABLES for entry in table.WRONG]  # (check, answer, a part of what the check says)
