"""docs/faults.md names a test for each fault that jqd is said to survive, and each of these tests exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
FOUND = re.findall(r"^\| (\d+) (.*) \|$", PAGE, re.MULTILINE)
ROWS = {int(number): cells for number, cells in FOUND}

WANTED = {*range(1, 20), 23, 25, 26, 28, 29, 30, 32, 33, 35}


def named(row: str) -> list[str]:
    return re.findall(r"`(tests/[^`]+)`", row)


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_fault_has_one_row():
    assert [int(number) for number, _ in FOUND] == sorted(WANTED)


@pytest.mark.parametrize("number", sorted(WANTED))
def test_tests_of_a_fault_exist(number):
    names = named(ROWS[number])
    assert names
    for name in names:
        file, _, test = name.partition("::")
        assert test.startswith("test_") and test in functions_of(file), f"row {number}: there is no {name}"
