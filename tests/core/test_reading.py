"""get, list, queues, stats, ping: what is shown, and in which order."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.errors import JobNotFound, QueueNotFound
from tests.support.core import IDENTITY, Core


def listed(core: Core, **fields: Any) -> tuple[list[int], int | None]:
    page = core.do(c.ListJobs(**fields))
    return [job.job_id for job in page.jobs], page.cursor


@pytest.mark.parametrize("job_id", [1, 4_095, 4_096, model.JOB_ID_MAX])
def test_get_of_an_unknown_job_is_refused(core, job_id):
    with pytest.raises(JobNotFound) as refusal:
        core.get(job_id)
    assert str(refusal.value) == f"job_id = {job_id}: no such job, or it was purged or forgotten"


def test_list_is_in_order_of_ids_without_payloads(core):
    core.submit(b"one", priority=1)
    core.submit(b"two", queue="b", priority=9)
    page = core.do(c.ListJobs())
    assert [(job.job_id, job.payload, job.payload_bytes) for job in page.jobs] == [(1, None, 3), (2, None, 3)]


def test_list_by_queue_and_state(core):
    core.submit_jobs(2, queue="a")
    core.submit_jobs(2, queue="b")
    core.held("a")
    core.held("b")
    assert listed(core, filter=c.JobFilter(queue="a")) == ([1, 2], None)
    assert listed(core, filter=c.JobFilter(state="leased")) == ([1, 3], None)
    assert listed(core, filter=c.JobFilter(queue="b", state="ready")) == ([4], None)
    with pytest.raises(QueueNotFound):
        listed(core, filter=c.JobFilter(queue="c"))


def test_list_pages_by_limit(core):
    core.submit_jobs(5)
    assert listed(core, limit=2) == ([1, 2], 3)
    assert listed(core, limit=2, cursor=3) == ([3, 4], 5)
    assert listed(core, limit=2, cursor=5) == ([5], None)
    assert listed(core, cursor=6) == ([], None)


def test_list_that_looked_at_enough_jobs_goes_on_where_it_stopped(core, monkeypatch):
    monkeypatch.setattr(model, "SCAN_JOBS_MAX", 3)
    core.submit_jobs(4, queue="a")
    core.submit(queue="b")
    assert listed(core, filter=c.JobFilter(queue="b")) == ([], 4)
    assert listed(core, filter=c.JobFilter(queue="b"), cursor=4) == ([5], None)


def test_list_stops_before_the_limit_of_a_reply_with_at_least_one_job(core, monkeypatch):
    core.submit_jobs(1, metadata={"k": "v"})
    core.submit_jobs(2)
    leased = core.lease(count=3)
    core.ack(leased.token, 2, result=b"r" * 60_000)
    core.fail(leased.token, 3, error="e" * 4_000)
    monkeypatch.setattr(model, "REPLY_BYTES_MAX", 10)
    assert [listed(core, cursor=cursor) for cursor in (0, 2, 3)] == [([1], 2), ([2], 3), ([3], None)]
    monkeypatch.setattr(model, "REPLY_BYTES_MAX", 65_300)
    assert listed(core) == ([1], 2), "metadata and a result do not fit together"
    assert listed(core, cursor=2) == ([2], 3)


def test_time_left_never_shows_below_zero(core):
    core.submit(queue="a")
    core.submit(delay_ms=1_000)
    core.held("a", lease_ms=1_000)
    core.move(5_000)
    assert core.execute(c.Get(job_id=1)).lease_ms_left == 0
    assert core.execute(c.Get(job_id=2)).due_ms_left == 0


def test_queues_are_in_order_of_their_names_with_their_counts(core):
    core.submit_jobs(2, queue="b")
    core.submit(queue="a", delay_ms=5)
    token, job_id = core.held("b")
    core.ack(token, job_id)
    zero: dict[str, Any] = dict.fromkeys(model.STATE_NAMES, 0)
    shown = core.do(c.Queues())
    for info in shown.queues:
        assert info.memory_bytes == core.state.queues[info.queue].bytes > 3_000
        info.memory_bytes = 0
    assert shown == c.QueueList(
        queues=[
            c.QueueInfo(queue="a", **zero | {"delayed": 1}),
            c.QueueInfo(queue="b", ready_age_ms=0, **zero | {"ready": 1, "done": 1}),
        ],
        cursor=None,
    )


def test_queues_page_by_name(core):
    for name in ("b", "a", "c"):
        core.submit(queue=name)
    first = core.do(c.Queues(limit=2))
    assert ([info.queue for info in first.queues], first.cursor) == (["a", "b"], "b")
    second = core.do(c.Queues(limit=2, cursor="b"))
    assert ([info.queue for info in second.queues], second.cursor) == (["c"], None)


def test_stats_count_everything(core):
    assert set(core.do(c.Stats()).jobs.values()) == {0}
    core.submit_jobs(3)
    token, job_id = core.held()
    core.ack(token, job_id, result=b"four")
    core.lease()
    core.submit(caller=core.hello(b"s" * 16))
    core.do(c.Lease(queues=["empty"], wait_ms=9_999))
    core.move(1_000)
    stats = core.execute(c.Stats())
    assert (stats.server, stats.store_id) == (IDENTITY.server, IDENTITY.store_id)
    assert (stats.epoch, stats.engine_ms, stats.wall_ms) == (core.state.epoch, core.engine_ms, core.wall_ms)
    assert (stats.uptime_ms, stats.lsn) == (1_000, core.state.lsn)
    assert {state: count for state, count in stats.jobs.items() if count} == {
        "ready": 2,
        "leased": 1,
        "done": 1,
    }
    assert (stats.queue_count, stats.lease_count, stats.parked_count) == (1, 1, 1)
    assert (stats.session_count, stats.result_bytes) == (1, 4)


def test_ping_tells_the_clocks(core):
    assert core.do(c.Ping()) == c.Pong(wall_ms=core.wall_ms, engine_ms=core.engine_ms)


def test_reading_changes_nothing(core):
    core.submit()
    lsn = core.state.lsn
    for command in (c.Get(job_id=1), c.ListJobs(), c.Queues(), c.Stats(), c.Ping()):
        core.execute(command)
    assert not core.engine.has_changes
    assert core.state.lsn == lsn
