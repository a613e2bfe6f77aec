"""Every named crash point is a row of the matrix of kills, and the other way round.

Tests infra/crashpoints.py too.
"""

from __future__ import annotations

import ast

from tests.e2e.matrix import CASES, PLACES, TWIST
from tests.test_structure import SOURCES


def names_in_the_code() -> list[str]:
    """The argument of every call of `crashpoint`; one that is not a plain string is the empty name."""
    return [
        node.args[0].value if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str) else ""
        for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "crashpoint"]


def test_every_crash_point_is_a_row_of_the_matrix() -> None:
    names = names_in_the_code()
    assert len(names) == len(set(names)), "a name is one place"
    assert set(names) == set(PLACES)


def test_the_matrix_has_at_least_104_faults_no_two_of_them_the_same() -> None:
    faults = {(case.point, case.signal, PLACES[case.point][case.second], case.twist) for case in CASES}
    assert len(faults) == len(CASES) >= 104
    assert all(case.twist for case in CASES if case.second)
    assert {case.twist for case in CASES} == {"", *TWIST.values()}
