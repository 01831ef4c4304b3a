"""Where recovery begins: one decision, as a table and as a function that a test holds against it.

Knows:         which snapshots are whole, where the log begins, what can be rebuilt from that.
Must not know: files, frames, what a change means.

A state can be rebuilt from a whole snapshot and all of the log behind it, or from nothing and all of the log. Of the
ways that are there the one with the newest snapshot is taken; all of them give the same state.

    the newest snapshot   the older one        the log begins        recovery begins
    whole, log follows    any                  anywhere              with the newest
    damaged               whole, log follows   anywhere              with the older, and says so
    damaged or none       damaged or none      with segment 1        with nothing, and says so if one is damaged
    anything else                                                    not at all: refused (Corruption)

"log follows": the segment in which it goes on is there, and none behind it is missing. A whole snapshot whose log
is gone is of no use: what was acknowledged after it would be missing. Three and more snapshots, which a crash during
a trim can leave, are tried like the first two, newest first.

Source: TigerBeetle's journal recovery cases: every combination matches exactly one row.
"""

from collections.abc import Iterable
from typing import NamedTuple

from jqd.storage.snapshot import Base, Damaged, Snapshot

BEGINNING = Base(lsn=0, segment_no=1, crc=0)


class Plan(NamedTuple):
    """Where recovery begins."""

    base: Base
    snapshot: Snapshot | None  # None: with nothing
    passed_over: list[Damaged]  # newer ones that are damaged


class NoPlan(NamedTuple):
    """There is no way to rebuild the state."""

    missing_segment: int  # the first segment that would be needed
    passed_over: list[Damaged]


def choose(snapshots: Iterable[Snapshot | Damaged], segments: list[int], last_no: int) -> Plan | NoPlan:
    """Decide where recovery begins.

    Args:
        snapshots: newest first; those behind the one that is taken are not looked at.
        segments: numbers of the segments that exist, rising.
        last_no: of the newest segment that is known to have existed.
    """
    there = set(segments)
    passed_over: list[Damaged] = []
    missing: int | None = None
    for each in snapshots:
        if isinstance(each, Damaged):
            passed_over.append(each)
            continue
        gap = _first_missing(each.base.segment_no, last_no, there)
        if gap is None:
            return Plan(each.base, each, passed_over)
        missing = gap if missing is None else missing
    gap = _first_missing(BEGINNING.segment_no, last_no, there)
    if gap is None:
        return Plan(BEGINNING, None, passed_over)
    return NoPlan(gap if missing is None else missing, passed_over)


def _first_missing(first_no: int, last_no: int, there: set[int]) -> int | None:
    return next((number for number in range(first_no, last_no + 1) if number not in there), None)
