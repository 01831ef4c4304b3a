"""docs/evidence.md: its tables are those of the code, and what it names is there.

`make docs` writes the table of marks and that of planted bugs, of which the figures stay: they are measured.
"""

import re
from pathlib import Path

import pytest

from tests.sim.__main__ import CI_SEEDS
from tests.sim.marks import MARKS
from tests.sim.plan import STEPS
from tests.sim.planted import PLANTED
from tests.sim.runner import ROOT, TWICE_EVERY

PAGE = ROOT / "docs" / "evidence.md"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def table(heading: str, text: str) -> list[list[str]]:
    """Return the rows of the table whose first row is this."""
    _, _, rest = text.partition(f"{heading}\n")
    rows = rest.split("\n\n")[0].splitlines()[1:]
    return [row.strip("|").strip().split(" | ") for row in rows]


def test_marks_are_listed_with_what_they_mean():
    assert table("| mark | what it means |", PAGE.read_text(encoding="utf-8")) == [
        [*each] for each in MARKS.items()
    ]
    assert len(MARKS) >= 40


def test_planted_bugs_are_listed_and_caught_well_within_what_they_are_given():
    rows = table("| planted bug | plans | broke |", PAGE.read_text(encoding="utf-8"))
    assert [name for name, _, _ in rows] == list(PLANTED)
    assert len(rows) >= 20
    for name, plans, broke in rows:
        assert 1 <= int(plans) <= PLANTED[name].seeds, name
        assert re.fullmatch(r"I\d+|SHADOW|CODE", broke), name


def test_profile_of_ci_is_what_the_page_says():
    text = PAGE.read_text(encoding="utf-8")
    assert f"seeds {CI_SEEDS.start} to {CI_SEEDS.stop - 1:,}, and" in text
    assert (len(CI_SEEDS) >= 3_000, STEPS * len(CI_SEEDS) >= 3_000_000, TWICE_EVERY) == (True, True, 50)
    assert "tests.sim run --min-steps 3000000" in MAKEFILE and "fewer than 3,000,000 steps" in text
    assert "suite sim make test-sim" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["test-sim", "test-faults", "sim-long", "images", "flips"])
def test_targets_that_are_named_are_there(target):
    assert f"`make {target}`" in PAGE.read_text(encoding="utf-8")
    assert re.search(rf"^{target}: setup", MAKEFILE, re.MULTILINE)


def test_files_that_are_named_are_there():
    named = set(re.findall(r"`(tests/[\w/.]+\.py)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def write(page: Path) -> None:
    """Put the tables of the code into the page; keep what was measured."""
    text = page.read_text(encoding="utf-8")
    known = {name: rest for name, *rest in table("| planted bug | plans | broke |", text)}
    for heading, rows in (
        ("| mark | what it means |", [[*each] for each in MARKS.items()]),
        ("| planted bug | plans | broke |", [[name, *known.get(name, ["?", "?"])] for name in PLANTED]),
    ):
        before, _, rest = text.partition(f"{heading}\n")
        rule, _, behind = rest.partition("\n\n")
        lines = [heading, rule.splitlines()[0], *(f"| {' | '.join(row)} |" for row in rows)]
        text = before + "\n".join(lines) + "\n\n" + behind
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(PAGE)
