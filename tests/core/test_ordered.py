"""Lines, lanes and timers against sorted lists."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jqd.core import ordered
from jqd.core.memory import Memory
from jqd.core.ordered import NEVER_MS, Line, ReadyLane, TimerHeap
from tests.support.effort import Counted

picks = st.integers(0, 1_000)


class LaneMachine(RuleBasedStateMachine):
    """A lane, and the list of (-priority, id) that it stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = ReadyLane(Memory())
        self.inside: list[tuple[int, int]] = []
        self.outside: list[tuple[int, int]] = []
        self.next_id = 1

    @rule(priority=st.integers(-1, 1), count=st.integers(1, 8))
    def extend(self, priority, count):
        ids = range(self.next_id, self.next_id + count)
        self.next_id += count
        self.lane.extend(priority, ids)
        self.inside = sorted(self.inside + [(-priority, job_id) for job_id in ids])

    @precondition(lambda self: self.inside)
    @rule(pick=picks)
    def remove_any(self, pick):
        self._remove(pick % len(self.inside), 1)

    @precondition(lambda self: self.inside)
    @rule(count=st.integers(1, 5))
    def take_from_the_head(self, count):
        self._remove(0, self._run_length(0, count))

    @precondition(lambda self: self.inside)
    @rule(pick=picks, count=st.integers(1, 5))
    def remove_run(self, pick, count):
        self._remove(pick % len(self.inside), self._run_length(pick % len(self.inside), count))

    def _run_length(self, at: int, most: int) -> int:
        level, first = self.inside[at]
        length = 1
        while length < most and self.inside[at + length : at + length + 1] == [(level, first + length)]:
            length += 1
        return length

    def _remove(self, at: int, count: int) -> None:
        level, first = self.inside[at]
        self.lane.remove_run(-level, first, count)
        self.outside += self.inside[at : at + count]
        del self.inside[at : at + count]

    @precondition(lambda self: self.outside)
    @rule(pick=picks)
    def put_back(self, pick):
        entry = self.outside.pop(pick % len(self.outside))
        self.lane.put_back(-entry[0], entry[1])
        self.inside = sorted([*self.inside, entry])

    @invariant()
    def order_is_that_of_the_list(self):
        ids = [job_id for _, job_id in self.inside]
        for count in (0, 1, 2, 5, len(ids), len(ids) + 1):
            assert self.lane.peek(count) == ids[:count]
        assert len(self.lane) == len(ids)
        assert self.lane.order == sorted({-level for level, _ in self.inside}, reverse=True)
        assert set(self.lane.lines) == set(self.lane.order)


class TimerMachine(RuleBasedStateMachine):
    """A timer heap, and the list of (ms, key) that it stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: TimerHeap[int] = TimerHeap()
        self.alive: list[tuple[int, int]] = []

    @rule(ms=st.integers(0, 20), key=st.integers(0, 30))
    def push(self, ms, key):
        if (ms, key) not in self.alive:
            self.timers.push(ms, key)
            self.alive = sorted([*self.alive, (ms, key)])

    @precondition(lambda self: self.alive)
    @rule(pick=picks)
    def discard(self, pick):
        self.timers.discard(*self.alive.pop(pick % len(self.alive)))

    @rule(ms=st.integers(0, 25), limit=st.integers(0, 10))
    def pop_due(self, ms, limit):
        due = [entry for entry in self.alive if entry[0] <= ms][:limit]
        assert self.timers.due(ms, limit) == [key for _, key in due]
        assert self.timers.pop_due(ms, limit) == [key for _, key in due]
        self.alive = self.alive[len(due) :]

    @invariant()
    def first_is_that_of_the_list(self):
        assert len(self.timers) == len(self.alive)
        assert bool(self.timers) == bool(self.alive)
        assert self.timers.next_ms() == (self.alive[0][0] if self.alive else NEVER_MS)
        if self.alive:
            assert self.timers.first() == self.alive[0]
        assert sorted(set(self.timers.heap) - self.timers.holes) == self.alive


def test_lane_is_a_sorted_list(monkeypatch):
    monkeypatch.setattr(ordered, "_HOLES_MIN", 2)
    run_state_machine_as_test(LaneMachine, settings=settings(stateful_step_count=40))


def test_timers_are_a_sorted_list(monkeypatch):
    monkeypatch.setattr(ordered, "_HOLES_MIN", 2)
    run_state_machine_as_test(TimerMachine, settings=settings(stateful_step_count=40))


@settings(max_examples=50)
@given(st.lists(st.integers(1, 500), unique=True, min_size=1), st.integers(1, 40))
def test_peek_merges_fresh_and_returned_whatever_came_back(taken, count):
    line = Line()
    line.extend(range(1, 501))
    for job_id in taken:
        line.remove(job_id)
    for job_id in taken[::2]:
        line.put_back(job_id)
    gone = set(taken[1::2])
    left = [job_id for job_id in range(1, 501) if job_id not in gone]
    assert line.peek(count) == left[:count]


def test_holes_are_rebuilt_away_when_they_are_the_larger_half():
    line = Line()
    line.extend(range(1, 2_001))
    for job_id in range(2, 1_999):
        line.remove(job_id)
    assert len(line) == 3
    assert len(line.fresh) < 1_100
    assert line.peek(9) == [1, 1_999, 2_000]


def test_timers_are_rebuilt_when_most_of_them_are_cancelled():
    timers: TimerHeap[int] = TimerHeap()
    for key in range(2_000):
        timers.push(key, key)
    for key in range(1, 1_999):
        timers.discard(key, key)
    assert len(timers) == 2
    assert len(timers.heap) < 1_100
    assert timers.pop_due(9_999, 9) == [0, 1_999]


def test_new_priority_is_put_in_its_place_without_sorting_all_others():
    priorities = list(map(Counted, range(2_000)))
    random.Random(1).shuffle(priorities)
    lane = ReadyLane(Memory())
    Counted.comparisons = 0
    for job_id, priority in enumerate(priorities, 1):
        lane.append(priority, job_id)
    assert 0 < Counted.comparisons < 2_000 * 16, "a binary search takes 11 each, sorting 1,000 and more"
    assert [priorities[job_id - 1] for job_id in lane.peek(2_000)] == list(range(1_999, -1, -1))
    for job_id in range(1, 2_001):
        lane.remove_run(priorities[job_id - 1], job_id, 1)
    assert lane.order == []
