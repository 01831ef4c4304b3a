"""docs/faults.md names a test for each fault that jqd is said to survive, and each of these tests exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = {int(number): cells for number, cells in re.findall(r"^\| (\d+) (.*) \|$", PAGE, re.MULTILINE)}

WANTED = {*range(1, 18), 19, 28, 29, 30, 32, 33, 35}
# Nothing makes these happen yet.
UNTESTED: set[int] = set()


def named(row: str) -> list[str]:
    return re.findall(r"`(tests/[^`]+)`", row)


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_fault_has_its_row():
    assert set(ROWS) == WANTED
    assert {number for number, row in ROWS.items() if not named(row)} == UNTESTED


@pytest.mark.parametrize("number", sorted(WANTED - UNTESTED))
def test_tests_of_a_fault_exist(number):
    for name in named(ROWS[number]):
        file, _, test = name.partition("::")
        assert test.startswith("test_") and test in functions_of(file), f"row {number}: there is no {name}"
