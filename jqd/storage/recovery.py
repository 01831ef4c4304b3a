"""Where recovery begins: one decision, as a table and as a function that a test holds against it.

Knows:         which snapshots are whole, where the log begins, what can be rebuilt from that.
Must not know: files, frames, what a change means.

A state can be rebuilt from a whole snapshot and all of the log behind it, or from nothing and all of the log. Of the
ways that are there the one with the newest snapshot is taken; all of them give the same state.

    the newest snapshot   the older one        the log               recovery begins
    whole, log follows    any                  any                   with the newest
    damaged               whole, log follows   any                   with the older, and says so
    damaged or none       damaged or none      whole                 with nothing, and says so if one is damaged
    anything else                                                    not at all: refused (Corruption)

- "log follows": the segment in which it goes on is there, and none behind it is missing. A whole snapshot whose log
  is gone is of no use: what was acknowledged after it would be missing. An older one cannot help then: its log is
  the same and more.
- A log is whole if segment 1 is there and none behind it is missing. A new store, which has neither a segment nor a
  snapshot yet, has a whole log.
- Of three and more snapshots, which a crash during a trim can leave, the newest is left aside while the two newest
  are damaged.

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
    base, taken = BEGINNING, None
    for each in snapshots:
        if isinstance(each, Snapshot):
            base, taken = each.base, each
            break
        passed_over.append(each)
    is_new = last_no == 0 and taken is None and not passed_over
    # A snapshot knows of a segment that must exist, whatever else is known: the one that it goes on in.
    needed = range(base.segment_no, max(last_no, base.segment_no) + 1)
    missing = next((number for number in needed if number not in there), None)
    if missing is None or is_new:
        return Plan(base, taken, passed_over)
    return NoPlan(missing, passed_over)
