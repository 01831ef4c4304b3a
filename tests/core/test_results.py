"""Results: how long they are kept, and how far a job says that it has come."""

from collections.abc import Iterator
from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import model, state
from jqd.core.changes import (
    JobsDone,
    JobsForgotten,
    LeasesExtended,
    ProgressReported,
    ResultsForgotten,
    TimeAdvanced,
)
from jqd.errors import InvalidArgument
from tests.support.core import Core, parts_of

HOUR_MS = 3_600_000


@pytest.fixture(autouse=True)
def _whole(core: Core) -> Iterator[None]:
    yield
    core.check()


def finished(core: Core, *results: bytes, **fields: Any) -> list[int]:
    """Submit a job for each result, and ack it with that."""
    ids = core.submit_jobs(len(results), **fields)
    token = core.lease(count=len(results)).token
    for job_id, result in zip(ids, results, strict=True):
        core.ack(token, job_id, result=result)
    return ids


def shown(core: Core, job_id: int = 1) -> tuple[bytes | None, bool]:
    """Return the result as get, list and wait agree on it, and whether its time is over."""
    info = core.get(job_id)
    (listed,) = (job for job in core.do(c.ListJobs()).jobs if job.job_id == job_id)
    (ended,) = core.do(c.Wait(ids=[(job_id, 1)])).jobs
    seen = {(one.result, one.result_encoding, one.result_expired) for one in (info, listed, ended)}
    assert len(seen) == 1, seen
    return info.result, info.result_expired


# --- its time -----------------------------------------------------------------------------------


def test_a_result_is_shown_for_its_time_and_dropped_at_that_very_ms(core):
    finished(core, b"four", result_ttl_ms=4_000)
    assert core.engine.next_deadline(core.now) == core.engine_ms + 4_000
    assert core.wait(3_999) == []
    assert shown(core) == (b"four", False)
    assert core.wait(1) == [ResultsForgotten([(1, 1)])]
    assert shown(core) == (None, True)
    assert (core.get(1).state, core.state.result_bytes) == ("done", 0)


def test_it_is_not_shown_after_its_time_whatever_the_timer_did(core):
    finished(core, b"four", result_ttl_ms=5_000)
    core.move(5_000)
    info = core.execute(c.Get(job_id=1))
    assert (info.result, info.result_expired) == (None, True)


def test_its_time_counts_from_the_ack_by_the_engine_clock(core):
    core.submit(result_ttl_ms=5_000)
    core.wait(60_000)
    token, _ = core.held()
    core.ack(token, 1, result=b"r")
    core.wait(4_999, wall_ms=10 * HOUR_MS)
    assert shown(core) == (b"r", False)


def test_without_a_time_it_lives_as_long_as_its_job(core):
    finished(core, b"r")
    core.wait(HOUR_MS - 1)
    assert shown(core) == (b"r", False)
    assert core.wait(1) == [JobsForgotten([(1, 1)])]


def test_of_time_0_none_is_kept_nor_written(core):
    core.submit_jobs(2, result_ttl_ms=0)
    core.submit()
    leased = core.lease(count=3)
    core.execute(c.Ack(items=[(leased.token, [(1, 3)], b"r")]))
    assert core.turn() == [JobsDone([(3, 1)], b"r"), JobsDone([(1, 2)])]
    assert [core.get(job_id).result for job_id in (1, 2, 3)] == [None, None, b"r"]
    assert not core.get(1).result_expired


def test_its_time_goes_on_over_a_restart_and_a_snapshot(core):
    finished(core, b"one", b"two", result_ttl_ms=4_000)
    core.wait(3_000)
    core.submit()
    parts = parts_of(core.engine.begin_dump())
    core.restart(parts=parts)
    assert shown(core) == (b"one", False)
    core.wait(999)
    assert shown(core) == (b"one", False)
    assert core.wait(1) == [ResultsForgotten([(1, 2)])]
    core.restart()
    assert shown(core, 2) == (None, True)


def test_a_crash_takes_five_seconds_of_its_time_at_most(core):
    finished(core, b"r", result_ttl_ms=12_000)
    assert core.wait(5_000) == [TimeAdvanced(10_000)]
    core.wait(4_000)
    core.restart()
    core.wait(6_999)
    assert shown(core) == (b"r", False)
    core.wait(1)
    assert shown(core) == (None, True)


def test_many_results_are_dropped_in_parts(core, monkeypatch):
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 2)
    finished(core, b"a", b"b", b"c", result_ttl_ms=1_000)
    core.move(1_000)
    assert core.turn() == [ResultsForgotten([(1, 2)])]
    assert core.settle() == [ResultsForgotten([(3, 1)])]


def test_a_job_that_goes_takes_its_timer_along(core):
    core.do(c.SetQueue(queue="default", retention_ms=5_000))
    finished(core, b"r", result_ttl_ms=5_000)
    assert JobsForgotten([(1, 1)]) in core.wait(5_000)
    assert core.engine.next_deadline(core.now) is None


# --- no longer than the job ---------------------------------------------------------------------


def test_a_time_above_the_retention_of_the_queue_is_refused_with_the_way_out(core):
    core.submit(result_ttl_ms=HOUR_MS)
    with pytest.raises(InvalidArgument) as refusal:
        core.submit(result_ttl_ms=HOUR_MS + 1)
    assert str(refusal.value) == (
        "result_ttl_ms = 3600001: the limit is 3600000, the retention_ms of queue default: a result goes with its "
        "job; set_queue raises it"
    )
    core.do(c.SetQueue(queue="default", retention_ms=2 * HOUR_MS))
    core.submit(result_ttl_ms=HOUR_MS + 1)


def test_a_retention_that_was_lowered_holds_for_the_same_submit_again(core):
    core.submit(result_ttl_ms=5_000)
    core.do(c.SetQueue(queue="default", retention_ms=4_999))
    with pytest.raises(InvalidArgument, match="the limit is 4999"):
        core.submit(result_ttl_ms=5_000)
    with pytest.raises(InvalidArgument, match=r"groups\[0\].result_ttl_ms = 5000"):
        core.submit_jobs(1, result_ttl_ms=5_000)


@pytest.mark.parametrize("key", ["dedupe_key", "idempotency_key"])
def test_a_known_key_has_its_answer_although_the_retention_was_lowered(core, key):
    fields: dict[str, Any] = {key: "k", "result_ttl_ms": 5_000}
    first = core.do(c.Submit(**fields))
    core.do(c.SetQueue(queue="default", retention_ms=0))
    again = core.do(c.Submit(**fields))
    assert (again.job_id, again.existing) == (first.job_id, True)
    with pytest.raises(InvalidArgument, match="the limit is 0"):
        core.do(c.Submit(**fields | {key: "l"}))


# --- their bytes --------------------------------------------------------------------------------


def test_results_keep_their_bytes_the_oldest_first_over_a_restart(core, monkeypatch):
    monkeypatch.setattr(model, "RESULTS_BYTES_MAX", 10)
    finished(core, b"aaaa", b"bbbb")
    core.restart()
    core.submit_jobs(2)
    token = core.lease(count=2).token
    core.ack(token, 3, result=b"cccc")
    assert core.states(1, 2, 3) == ["gone", "done", "done"]
    core.restart(parts=parts_of(core.engine.begin_dump()))
    core.ack(core.lease(count=1).token, 4, result=b"x")
    assert core.state.result_bytes == 8


def test_results_whose_time_is_over_make_room_before_any_job_goes(core, monkeypatch):
    monkeypatch.setattr(model, "RESULTS_BYTES_MAX", 10)
    finished(core, b"old")
    finished(core, b"timed", result_ttl_ms=1_000)
    core.submit()
    token, job_id = core.held()
    core.move(1_000)
    core.execute(c.Ack(items=[(token, [(job_id, 1)], b"1234567")]))
    core.turn()
    assert core.states(1, 2, 3) == ["done", "done", "done"]


def test_the_list_of_results_does_not_grow_behind_one_that_stays(core, monkeypatch):
    monkeypatch.setattr(state, "_RESULT_HOLES_MIN", 2)
    finished(core, b"stays")
    for _ in range(10):
        finished(core, b"goes", result_ttl_ms=1)
        core.wait(1)
    assert len(core.state._results) <= 2 * core.state.result_count + 2
    assert [job.id for job in core.state.oldest_results()] == [1]


# --- progress -----------------------------------------------------------------------------------


def progress(core: Core, job_id: int = 1) -> tuple[int | None, str]:
    info = core.get(job_id)
    return info.progress_percent, info.progress_text


def test_progress_is_said_with_extend_for_all_that_are_held(core):
    core.submit_jobs(3)
    token = core.lease(count=2).token
    items = [(token, [(1, 2), (3, 1)])]
    command = c.Extend(items=items, progress_percent=40, progress_text="half")
    assert core.execute(command).results == [(1, 2, "ok"), (3, 1, "lease_lost")]
    assert core.turn() == [ProgressReported([(1, 2)], 40, "half"), LeasesExtended(token, 30_000, [(1, 2)])]
    assert [progress(core, job_id) for job_id in (1, 2, 3)] == [(40, "half"), (40, "half"), (None, "")]
    assert core.do(c.ListJobs()).jobs[0].progress_text == "half"


def test_an_extend_that_says_nothing_of_it_leaves_it_and_one_that_does_replaces_it_whole(core):
    core.submit()
    token, _ = core.held()
    core.extend(token, 1, progress_percent=0)
    assert progress(core) == (0, "")
    core.extend(token, 1)
    assert progress(core) == (0, "")
    core.extend(token, 1, progress_text="loads")
    assert progress(core) == (None, "loads")


def test_progress_with_a_stale_token_is_refused(core):
    core.submit()
    stale, _ = core.held()
    core.release(stale, 1)
    token, _ = core.held()
    core.extend(token, 1, progress_percent=10)
    assert core.extend(stale, 1, progress_percent=99).results == [(1, 1, "lease_lost")]
    assert progress(core) == (10, "")


@pytest.mark.parametrize("how", ["fail", "release", "crash", "requeue"])
def test_progress_stays_with_the_attempt_and_the_next_hand_out_clears_it(core, how):
    core.submit(max_crashes=1)
    token, _ = core.held(lease_ms=1_000)
    core.extend(token, 1, progress_percent=90)
    if how == "crash":
        core.wait(1_000)
    elif how == "release":
        core.release(token, 1)
    else:
        core.fail(token, 1, retry_in_ms=0, dead=False) if how == "fail" else core.fail(token, 1, dead=True)
    if how == "requeue":
        assert progress(core) == (90, "")
        core.requeue(1)
    assert progress(core) == (90, "")
    core.held()
    assert progress(core) == (None, "")


def test_progress_is_kept_over_restart_snapshot_and_ack(core):
    core.submit()
    token, _ = core.held()
    core.extend(token, 1, progress_percent=100, progress_text="ä" * 128)
    core.restart(parts=parts_of(core.engine.begin_dump()))
    assert progress(core) == (100, "ä" * 128)
    core.ack(token, 1)
    core.restart()
    assert progress(core) == (100, "ä" * 128)
    core.wait(HOUR_MS)
    assert core.state.progress_count == 0


def test_progress_text_over_its_bytes_is_refused(core):
    core.submit()
    token, _ = core.held()
    with pytest.raises(InvalidArgument) as refusal:
        core.extend(token, 1, progress_text="ä" * 129)
    assert str(refusal.value) == "progress_text = 258 bytes: the limit is 256"
