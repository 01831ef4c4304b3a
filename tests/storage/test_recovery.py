"""Where recovery begins: the table in recovery.py's header and choose(), held against each other.

The table is read from the header, so it cannot say one thing and the code another.
"""

import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

from jqd.storage import recovery
from jqd.storage.recovery import BEGINNING, NoPlan, Plan, choose
from jqd.storage.snapshot import Base, Damaged, Snapshot

Found = Snapshot | Damaged
NEWEST_SEGMENT, OLDER_SEGMENT, OLDEST_SEGMENT, LAST_SEGMENT = 7, 5, 3, 8


class Case(NamedTuple):
    """What a start may find. `known_no` is what the file `store` says."""

    snapshots: list[Found]
    segments: list[int]
    known_no: int

    @property
    def last_no(self) -> int:
        return max([self.known_no, *self.segments])

    @property
    def newest_two(self) -> list[Found | None]:
        """What the columns of the table are about."""
        rest = list(self.snapshots)
        while len(rest) > 2 and all(isinstance(each, Damaged) for each in rest[:2]):
            del rest[0]
        return [*rest, None, None][:2]

    def follows(self, segment_no: int) -> bool:
        return set(range(segment_no, max(self.last_no, segment_no) + 1)) <= set(self.segments)

    @property
    def is_new(self) -> bool:
        return self == Case([], [], 0)


def is_damaged(_: Case, each: Found | None) -> bool:
    return isinstance(each, Damaged)


def is_damaged_or_none(_: Case, each: Found | None) -> bool:
    return each is None or isinstance(each, Damaged)


def is_followed(case: Case, each: Found | None) -> bool:
    return isinstance(each, Snapshot) and case.follows(each.base.segment_no)


SNAPSHOT_CELLS: dict[str, Callable[[Case, Found | None], bool]] = {
    "whole, log follows": is_followed,
    "damaged": is_damaged,
    "damaged or none": is_damaged_or_none,
    "any": lambda case, each: True,
}
LOG_CELLS: dict[str, Callable[[Case], bool]] = {
    "any": lambda case: True,
    "whole": lambda case: case.follows(1) or case.is_new,
}
BEGINS_WITH: dict[str, Callable[[Case], Found | None]] = {
    "with the newest": lambda case: case.newest_two[0],
    "with the older, and says so": lambda case: case.newest_two[1],
    "with nothing, and says so if one is damaged": lambda case: None,
}


class Row(NamedTuple):
    newest: str
    older: str
    log: str
    begins: str

    def matches(self, case: Case) -> bool:
        newest, older = case.newest_two
        return (
            SNAPSHOT_CELLS[self.newest](case, newest)
            and SNAPSHOT_CELLS[self.older](case, older)
            and LOG_CELLS[self.log](case)
        )


def table() -> list[Row]:
    """Return the rows in the header but the last, which is for whatever matches none of them."""
    _, _, below = recovery.__doc__.partition("    the newest snapshot ")
    lines = below.split("\n\n")[0].splitlines()[1:]
    *rows, (rest, refused) = (re.split(r" {2,}", line.strip()) for line in lines)
    assert (rest, refused) == ("anything else", "not at all: refused (Corruption)")
    return [Row(*cells) for cells in rows]


TABLE = table()


def snapshot(lsn: int, segment_no: int) -> Snapshot:
    return Snapshot(Base(lsn, segment_no, lsn * 7), 1, 300)


def damaged(lsn: int) -> Damaged:
    return Damaged(lsn, f"/data/{lsn:016x}.snap", 68, "no frame begins here")


def every_case() -> list[Case]:
    """Every kind of snapshots, in every place, over every kind of log.

    Whether a snapshot's log follows is not chosen but comes from the segments: each segment is there or missing,
    and the file `store` knows of the last one or only of an earlier one.
    """
    choices: list[list[list[Found]]] = [
        [[], [snapshot(70, NEWEST_SEGMENT)], [damaged(70)]],
        [[], [snapshot(50, OLDER_SEGMENT)], [damaged(50)]],
        [[], [snapshot(30, OLDEST_SEGMENT)], [damaged(30)]],
    ]
    return [
        Case(
            [*newest, *older, *oldest], [number for number, is_there in enumerate(kept, 1) if is_there], known
        )
        for kept in itertools.product((False, True), repeat=LAST_SEGMENT)
        for known in (0, 1, NEWEST_SEGMENT - 1, NEWEST_SEGMENT, LAST_SEGMENT)
        for newest, older, oldest in itertools.product(*choices)
    ]


def test_every_case_matches_one_row_at_most_and_choose_says_what_it_says():
    used: dict[Row | None, int] = dict.fromkeys([*TABLE, None], 0)
    for case in every_case():
        rows = [row for row in TABLE if row.matches(case)]
        assert len(rows) <= 1, case
        plan = choose(case.snapshots, case.segments, case.last_no)
        used[rows[0] if rows else None] += 1
        if not rows:
            assert isinstance(plan, NoPlan), case
            assert plan.missing_segment not in case.segments
            continue
        taken = BEGINS_WITH[rows[0].begins](case)
        passed_over = case.snapshots[: case.snapshots.index(taken)] if taken else case.snapshots
        assert all(isinstance(each, Damaged) for each in passed_over)
        assert isinstance(plan, Plan), case
        assert plan == (taken.base if taken else BEGINNING, taken, passed_over), case
    assert min(used.values()) > 30, used


def test_refusal_names_the_first_segment_that_is_missing_and_what_was_passed_over():
    whole = snapshot(50, OLDER_SEGMENT)
    assert choose([damaged(70), whole], [4, 5, 8], 8) == NoPlan(6, [damaged(70)])
    assert choose([damaged(70), damaged(50)], [5, 6, 7, 8], 8) == NoPlan(1, [damaged(70), damaged(50)])
    assert choose([whole], [1, 2, 3, 4], 4) == NoPlan(5, [])


def test_snapshots_behind_the_one_that_is_taken_are_not_looked_at():
    def found():
        yield damaged(70)
        yield snapshot(50, OLDER_SEGMENT)
        pytest.fail("reading one costs seconds")

    assert choose(found(), [5, 6, 7, 8], 8).base.lsn == 50


def test_new_store_begins_with_nothing_and_only_a_new_one_may_lack_its_first_segment():
    assert choose([], [], 0) == Plan(BEGINNING, None, [])
    assert choose([damaged(70)], [], 0) == NoPlan(1, [damaged(70)])
    assert choose([snapshot(70, 1)], [], 0) == NoPlan(1, [])
    assert choose([], [], 1) == NoPlan(1, [])
