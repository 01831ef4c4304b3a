"""A session that asked for `release` and lost its last connection: it comes back in time, or others get its jobs."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.core.changes import JobsDied, JobsReleased, JobsRetried
from jqd.core.model import Caller
from jqd.errors import InvalidArgument
from tests.support.core import Core

S = b"s" * 16
T = b"t" * 16
GRACE_MS = 500
LOST = "its worker's connection was lost"


def come(core: Core, session: bytes = S, on_disconnect: Any = "release") -> Caller:
    return core.connect(session, worker="box", on_disconnect=on_disconnect)[0]


def held(core: Core, caller: Caller, **options) -> int:
    """Submit a job, and have the caller lease it."""
    job_id = core.submit(**options)
    assert [job.job_id for job in core.do(c.Lease(lease_ms=60_000), caller).jobs] == [job_id]
    return job_id


def test_the_grace_is_half_a_second():
    assert model.DISCONNECT_GRACE_MS == GRACE_MS and Core().engine.disconnect_grace_ms == GRACE_MS


def test_jobs_go_to_others_when_the_grace_is_over(core):
    caller = come(core)
    job_id = held(core, caller)
    core.leave(caller)
    assert core.engine.next_deadline(core.now) == core.engine_ms + GRACE_MS
    assert core.wait(GRACE_MS - 1) == []
    assert core.wait(1) == [JobsRetried([(job_id, 0)], "crash", LOST)]
    job = core.job(job_id)
    assert (job.crashes, job.errors, job.outcome.attempts[-1].worker) == (1, 0, "box")
    assert core.do(c.Lease()).jobs[0].attempt == 2
    core.check()


def test_who_comes_back_in_time_holds_its_jobs(core):
    caller = come(core)
    job_id = held(core, caller)
    token = core.job(job_id).lease.token
    core.leave(caller)
    core.wait(GRACE_MS - 1)
    caller = come(core)
    core.wait(10 * GRACE_MS)
    assert core.do(c.Ack(items=[(token, [(job_id, 1)], None)]), caller).results == [(job_id, 1, "ok")]


def test_a_lease_that_is_asked_for_again_is_the_same_but_for_jobs_that_may_have_begun(core):
    """At-most-once jobs are never sent twice: the reply may have been read."""
    caller = come(core)
    once, more = core.submit(delivery="at_most_once"), core.submit()
    first = core.execute(c.Lease(count=2, lease_ms=60_000), caller, request_id=7)
    core.turn()
    core.leave(caller)
    caller = come(core)
    again = core.execute(c.Lease(count=2, lease_ms=60_000), caller, request_id=7)
    assert [job.job_id for job in first.jobs] == [once, more]
    assert (again.token, [job.job_id for job in again.jobs]) == (first.token, [more])


def test_only_the_last_connection_counts(core):
    one, two = come(core), come(core)
    job_id = held(core, one)
    core.leave(one)
    core.wait(10 * GRACE_MS)
    assert core.job(job_id).lease is not None
    core.leave(two)
    core.wait(GRACE_MS)
    assert core.job(job_id).lease is None


@pytest.mark.parametrize("reason", ["keep", "cut", "newest hello says keep"])
def test_others_wait_for_the_lease(core, reason):
    caller = come(core, on_disconnect="keep" if reason == "keep" else "release")
    job_id = held(core, caller)
    if reason.startswith("newest"):
        core.leave(caller)
        caller = come(core, on_disconnect="keep")
    core.leave(caller, lost=reason != "cut")
    core.wait(59_000)
    assert core.job(job_id).lease is not None
    core.wait(1_000)
    assert core.job(job_id).crashes == 1


def test_the_second_crash_waits_and_one_too_many_is_dead(core):
    job_id = core.submit(max_crashes=2)
    changes: list[Any] = []
    for crashes in (1, 2, 3):
        caller = come(core)
        core.do(c.Lease(lease_ms=60_000), caller)
        core.leave(caller)
        changes = core.wait(GRACE_MS)
        assert core.job(job_id).crashes == crashes
        core.wait(5_000)
    assert changes == [JobsDied([(job_id, 1)], "crashes", "crash", LOST)]
    assert core.job(job_id).outcome.reason == "crashes"


def test_an_at_most_once_job_may_have_run(core):
    caller = come(core)
    job_id = held(core, caller, delivery="at_most_once")
    core.leave(caller)
    assert core.wait(GRACE_MS) == [JobsDied([(job_id, 1)], "abandoned", "crash", LOST)]


def test_what_no_socket_has_seen_is_left_to_be_taken_back(core):
    caller = come(core)
    job_id = held(core, caller)
    token = core.job(job_id).lease.token
    core.engine.unsent_grants[token] = 1
    core.leave(caller)
    assert core.wait(GRACE_MS) == []
    core.engine.take_back(token, core.now)
    assert core.settle() == [JobsReleased([(job_id, 1)])]
    assert (core.job(job_id).attempt, core.job(job_id).crashes) == (0, 0)


def test_only_its_own_leases_end_and_part_of_a_grant_as_well(core):
    caller, other = come(core), come(core, T)
    mine = [core.submit() for _ in range(3)]
    grant = core.do(c.Lease(count=3, lease_ms=60_000), caller)
    core.do(c.Extend(items=[(grant.token, [(mine[1], 1)])], lease_ms=90_000), caller)
    theirs = held(core, other)
    core.leave(caller)
    core.wait(GRACE_MS)
    assert [core.job(each).lease is None for each in (*mine, theirs)] == [True, True, True, False]
    core.check()


def test_many_jobs_go_in_bounded_steps(core, monkeypatch):
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 4)
    one, two = come(core), come(core, T)
    for caller in (one, two):
        core.do(c.SubmitMany(groups=[c.SubmitGroup(payloads=[b""] * 6)]))
        core.do(c.Lease(count=6, lease_ms=60_000), caller)
        core.leave(caller)
    core.move(GRACE_MS)
    steps = [sum(len(change.jobs) for change in core.turn()) for _ in range(4)]
    assert steps == [4, 4, 4, 0]
    assert core.engine.next_deadline(core.now) > core.engine_ms


def test_a_restart_gives_every_lease_its_time(core):
    caller = come(core)
    job_id = held(core, caller)
    core.leave(caller)
    core.restart()
    core.wait(20_000)
    assert core.job(job_id).lease is not None
    caller = come(
        core
    )  # and who comes back, and goes, costs no crash of a lease that it did not extend since
    core.leave(caller)
    assert core.wait(GRACE_MS) == [JobsRetried([(job_id, 0)], "restart", LOST)]
    assert core.job(job_id).crashes == 0


def test_a_standstill_of_the_daemon_is_not_charged(core):
    caller = come(core)
    job_id = held(core, caller)
    core.leave(caller)
    core.submit(delay_ms=GRACE_MS + 1_000)
    core.engine.forgive(2_000)
    core.wait(GRACE_MS + 1_000)  # something else is due
    core.wait(999)
    assert core.job(job_id).lease is not None
    assert core.engine.next_deadline(core.now) == core.engine_ms + 1
    core.wait(1)
    assert core.job(job_id).lease is None


def test_it_takes_a_session(core):
    with pytest.raises(InvalidArgument, match="on_disconnect = 'release': give a session"):
        core.connect(on_disconnect="release")


def test_a_session_that_changed_nothing_leaves_nothing(core):
    core.leave(come(core))
    assert core.wait(GRACE_MS) == []
    assert core.engine.next_deadline(core.now) is None
