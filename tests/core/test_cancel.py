"""Held jobs are marked to end: whoever holds them is told, and they end when they are given back."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core.model import Caller
from jqd.errors import WrongState
from tests.support.core import Core, parts_of, restored_from

SESSION, OTHER = b"s" * 16, b"t" * 16


def mark(core: Core, *job_ids: int, **fields: Any) -> c.Swept:
    return core.do(c.Cancel(ids=c.to_ranges(list(job_ids)), running=True, **fields))  # type: ignore[no-any-return]


def join(core: Core, session: bytes, ticket: str) -> Caller:
    """Say hello over a connection of its own."""
    caller, _ = core.engine.hello(c.Hello(version=1, session=session), core.now, ticket)
    return caller


def events(core: Core) -> list[tuple[Any, list[Any]]]:
    found = [(ticket, event.items) for ticket, event in core.engine.events]
    core.engine.events.clear()
    return found


def held_and_marked(core: Core, **fields: Any) -> int:
    """Submit job 1, lease it and mark it; return its token."""
    core.submit(b"p", **fields)
    token, _ = core.held()
    mark(core, 1)
    return token


# --- marking ------------------------------------------------------------------------------------


def test_held_job_is_marked_and_goes_on(core):
    core.submit_jobs(3)
    token, _ = core.held()
    swept = mark(core, 1, 2)
    assert (swept.count, swept.marked, swept.results) == (2, 1, [(1, 2, "ok")])
    assert core.states(1, 2, 3) == ["leased", "cancelled", "ready"]
    shown = core.get(1)
    assert (shown.cancel_marked, shown.payload, shown.attempts) == (True, b"", [])
    assert core.extend(token, 1).cancel_marked == [(1, 1)]


def test_held_job_is_not_meant_unless_it_is_said(core):
    core.submit()
    core.held()
    assert core.cancel(1).results == [(1, 1, "wrong_state")]
    with pytest.raises(WrongState, match="filter.state = leased: cancel takes delayed ready"):
        core.do(c.Cancel(filter=c.JobFilter(state="leased")))
    assert core.do(c.Cancel(filter=c.JobFilter())).count == 0
    assert core.get(1).cancel_marked is False


@pytest.mark.parametrize(("state", "count", "marked"), [(None, 3, 2), ("leased", 2, 2), ("ready", 1, 0)])
def test_filter_means_held_jobs_too(core, state, count, marked):
    core.submit_jobs(3)
    core.lease(count=2)
    swept = core.do(c.Cancel(filter=c.JobFilter(state=state), running=True))
    assert (swept.count, swept.marked) == (count, marked)


def test_dry_run_counts_and_marks_nothing(core):
    core.submit()
    core.held()
    swept = mark(core, 1, dry_run=True)
    assert (swept.count, swept.marked, core.get(1).cancel_marked) == (1, 1, False)


def test_marking_twice_is_once(core):
    held_and_marked(core)
    lsn = core.state.lsn
    assert mark(core, 1).results == [(1, 1, "ok")]
    assert core.state.lsn == lsn


# --- how it ends --------------------------------------------------------------------------------


def test_ack_is_done(core):
    token = held_and_marked(core)
    assert core.ack(token, 1, result=b"r") == [(1, 1, "ok")]
    assert (core.get(1).state, core.get(1).result, core.get(1).cancel_marked) == ("done", b"r", False)


def test_ack_with_an_error_is_dead(core):
    token = held_and_marked(core)
    core.ack(token, 1, result_error="no")
    assert core.get(1).reason == "refused"
    core.requeue(1)
    assert core.get(1).cancel_marked is False


@pytest.mark.parametrize("fields", [{}, {"dead": True}, {"retry_in_ms": 0}])
def test_fail_is_cancelled_and_keeps_the_attempt(core, fields):
    token = held_and_marked(core)
    core.fail(token, 1, error="interrupted", **fields)
    shown = core.get(1)
    assert (shown.state, shown.payload, shown.errors, shown.error) == ("cancelled", None, 1, "interrupted")
    assert [(one.attempt, one.cause) for one in shown.attempts] == [(1, "error")]


def test_release_is_cancelled(core):
    token = held_and_marked(core)
    core.release(token, 1, delay_ms=500)
    assert (core.get(1).state, core.get(1).attempts) == ("cancelled", [])


def test_end_of_the_lease_is_cancelled(core):
    held_and_marked(core)
    core.wait(30_000)
    shown = core.get(1)
    assert (shown.state, shown.crashes, shown.error) == ("cancelled", 1, "lease of 30000 ms ran out")


def test_at_most_once_job_is_cancelled_too(core):
    held_and_marked(core, delivery="at_most_once")
    core.wait(30_000)
    assert core.states(1) == ["cancelled"]


def test_lease_whose_reply_was_lost_is_cancelled(core):
    token = held_and_marked(core)
    core.engine.take_back(token, core.now)
    assert core.states(1) == ["cancelled"]


def test_neighbours_that_are_not_marked_go_their_own_way(core):
    core.submit_jobs(6)
    leased = core.lease(count=6)
    mark(core, 2, 5)
    core.release(leased.token, 1, 2, 3)
    core.fail(leased.token, 4, 5, 6)
    assert core.states(*range(1, 7)) == ["ready", "cancelled", "ready", "delayed", "cancelled", "delayed"]
    core.check()


def test_cancelled_job_frees_its_key(core):
    token = held_and_marked(core, dedupe_key="k")
    core.fail(token, 1)
    assert core.submit(dedupe_key="k") == 2


def test_mark_holds_over_restarts_and_snapshots(core):
    held_and_marked(core)
    core.check()
    for parts in (None, parts_of(core.engine.begin_dump())):
        core.restart(parts=parts)
        assert core.get(1).cancel_marked
    core.wait(30_000)
    assert (core.get(1).state, core.get(1).crashes) == ("cancelled", 0)
    core.check()


def test_snapshot_has_the_mark_as_it_was_when_it_began(core):
    core.submit_jobs(2)
    leased = core.lease(count=2)
    mark(core, 1)
    digest = core.state.digest()
    dump = core.engine.begin_dump()
    mark(core, 2)
    core.fail(leased.token, 1)
    before = restored_from(parts_of(dump))
    before.check()
    assert before.digest() == digest


# --- who is told --------------------------------------------------------------------------------


def test_every_connection_of_the_session_that_holds_it_is_told(core):
    caller = join(core, SESSION, "one")
    join(core, SESSION, "two")
    join(core, OTHER, "three")
    core.submit_jobs(4)
    token = core.lease(count=2, caller=caller).token
    newer = core.lease(caller=caller).token
    mark(core, 1, 2, 3, 4)
    items = [(token, [(1, 2)]), (newer, [(3, 1)])]
    assert events(core) == [("one", items), ("two", items)]
    mark(core, 1)
    core.turn()
    assert events(core) == []


def test_connection_that_has_ended_is_not_told(core):
    caller = join(core, SESSION, "one")
    join(core, SESSION, "two")
    core.submit_jobs(2)
    core.lease(caller=caller)
    core.engine.disconnect(caller, "one", core.now)
    mark(core, 1)
    assert [ticket for ticket, _ in events(core)] == ["two"]
    core.engine.disconnect(caller, "two", core.now)
    core.lease(caller=caller)
    mark(core, 2)
    assert events(core) == []


def test_nobody_is_told_of_a_lease_without_a_session_or_of_what_ended_in_the_same_turn(core):
    caller = join(core, SESSION, "one")
    core.submit_jobs(2)
    core.held()
    token, job_id = core.held(caller=caller)
    core.execute(c.Cancel(ids=[(1, 2)], running=True))
    core.execute(c.Ack(items=[(token, [(job_id, 1)], None)]))
    core.turn()
    assert events(core) == []


def test_restart_tells_nothing_of_what_was_marked_before(core):
    caller = join(core, SESSION, "one")
    core.submit()
    core.lease(caller=caller)
    mark(core, 1)
    core.restart()
    join(core, SESSION, "one")
    core.turn()
    assert events(core) == []
