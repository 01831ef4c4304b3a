"""Jobs that nobody started in time are expired."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import model, passing
from jqd.core.engine import FailStop
from jqd.errors import InvalidArgument
from tests.support.core import parts_of, restored_from


def test_job_that_is_not_started_in_time_is_expired(core):
    core.submit(b"old", expires_ms=5_000)
    core.submit(b"old", expires_at_ms=core.wall_ms + 5_001)
    core.wait(4_999)
    assert core.states(1, 2) == ["ready", "ready"]
    core.wait(1)
    assert core.states(1, 2) == ["expired", "ready"]
    shown = core.get(1)
    assert (shown.payload, shown.attempt) == (None, 0)
    assert shown.expires_at_ms == shown.changed_wall_ms
    assert core.lease_ids(count=9) == [2]


def test_a_date_goes_by_the_wall_clock(core):
    core.submit(expires_ms=5_000)
    core.wait(10, wall_ms=5_000)
    assert core.states(1) == ["expired"]
    core.submit(expires_ms=5_000)
    core.wait(5_000, wall_ms=0)
    assert core.states(2) == ["ready"]


def test_a_date_that_has_passed_expires_at_once(core):
    core.submit(expires_at_ms=1)
    assert core.states(1) == ["expired"]


def test_a_delayed_job_expires_too(core):
    core.submit(delay_ms=4_000, expires_ms=5_000)
    core.do(c.Update(job_id=1, delay_ms=9_000))
    core.wait(5_000)
    assert core.states(1) == ["expired"]
    core.wait(9_000)
    assert core.states(1) == ["expired"]


def test_lease_gets_no_job_whose_date_has_come_in_this_very_turn(core):
    core.submit(expires_ms=5_000, priority=5)
    core.submit()
    core.move(5_000)
    assert core.lease_ids(count=2) == [2]
    assert core.states(1) == ["expired"]


def test_lease_ends_before_what_has_expired_and_could_not_be_ended_yet(core, monkeypatch):
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 1)
    core.submit_jobs(3, expires_ms=5_000, priority=5)
    core.submit_jobs(2)
    core.move(5_000)
    assert core.lease_ids(count=9) == []
    core.settle()
    assert core.states(1, 2, 3) == ["expired"] * 3
    assert core.lease_ids(count=9) == [4, 5]


def test_parked_lease_waits_until_what_stands_before_its_jobs_has_expired(core, monkeypatch):
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 1)
    core.submit_jobs(3, delay_ms=4_000, expires_ms=5_000, priority=5)
    core.submit(delay_ms=6_000)
    core.execute(c.Lease(count=9, wait_ms=20_000))
    core.turn()
    core.move(6_000)
    core.settle()
    ((_, _, leased),) = core.answers
    assert [job.job_id for job in leased.jobs] == [4]


def test_started_job_does_not_expire(core):
    core.submit(expires_ms=5_000)
    token, job_id = core.held()
    core.fail(token, job_id, retry_in_ms=10_000)
    core.wait(9_999)
    assert core.states(1) == ["delayed"]
    core.wait(1)
    assert core.lease_ids() == [1]


def test_job_that_was_given_back_unworked_expires(core):
    core.submit(expires_ms=5_000)
    core.submit(expires_ms=5_000)
    leased = core.lease(count=2)
    core.release(leased.token, 1)
    core.wait(5_000)
    assert core.states(1, 2) == ["expired", "leased"]
    core.release(leased.token, 2)
    assert core.states(2) == ["expired"]


@pytest.mark.parametrize("how", ["cancel", "purge"])
def test_job_that_has_ended_does_not_expire(core, how):
    core.submit(expires_ms=5_000)
    getattr(core, how)(1)
    assert len(core.state.expiry_timers) == 0
    core.wait(5_000)
    assert core.states(1) == ["cancelled" if how == "cancel" else "gone"]


def test_expired_jobs_are_kept_as_finished_ones(core):
    core.submit(expires_ms=5_000)
    core.wait(5_000)
    core.wait(model.FINISHED_RETENTION_MS)
    assert core.states(1) == ["gone"]


def test_expired_job_frees_its_key(core):
    core.submit(expires_ms=5_000, dedupe_key="k")
    core.wait(5_000)
    assert core.submit(dedupe_key="k") == 2


def test_dates_hold_over_restarts_and_snapshots(core):
    core.submit_jobs(3, expires_ms=5_000)
    core.submit(delay_ms=1_000, expires_ms=5_000)
    core.held()
    core.check()
    for parts in (None, parts_of(core.engine.begin_dump())):
        if parts:
            restored_from(parts).check()
        core.restart(parts=parts)
    core.restart(wall_ms=5_000)
    core.settle()
    assert core.states(1, 2, 3, 4) == ["leased", "expired", "expired", "expired"]
    core.check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expires_ms": 5, "expires_at_ms": 6}, "expires_ms = 5 and expires_at_ms = 6: give one of them"),
        (
            {"expires_ms": 5, "delay_ms": 5},
            r"expires_ms = 5: it would expire before it is ready .delay_ms = 5",
        ),
        ({"expires_at_ms": 5, "run_at_ms": 5}, r"expires_at_ms = 5: it would expire .* .run_at_ms = 5"),
        ({"expires_at_ms": 5, "delay_ms": 1}, r"expires_at_ms = 5: it would expire .* .delay_ms = 1"),
    ],
)
def test_dates_that_make_no_sense_are_refused(core, fields, message):
    with pytest.raises(InvalidArgument, match=message):
        core.submit(**fields)


def test_options_with_a_date_are_not_remembered(core):
    core.submit()
    before = len(core.state.options_by_fields)
    for _ in range(3):
        core.submit(expires_ms=5_000)
        core.wait(1)
    assert len(core.state.options_by_fields) == before
    assert core.get(4).expires_at_ms == core.wall_ms - 1 + 5_000


@pytest.mark.parametrize("after", [False, True])
def test_failure_while_jobs_expire_is_not_survived_after_the_first_change(core, monkeypatch, after):
    expire_jobs = passing.expire_jobs

    def broken(*arguments: Any) -> None:
        if after:
            expire_jobs(*arguments)
        raise ZeroDivisionError

    core.submit(expires_ms=1)
    core.move(1)
    monkeypatch.setattr(passing, "expire_jobs", broken)
    with pytest.raises(FailStop if after else ZeroDivisionError):
        core.execute(c.Lease())
