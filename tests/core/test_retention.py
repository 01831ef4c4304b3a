"""What is forgotten, and when."""

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.core.changes import JobsForgotten
from jqd.errors import QueueNotFound
from tests.support.core import Core

HOUR_MS = 3_600_000
MONTH_MS = 30 * 86_400_000


def finish(core: Core, how: str, count: int = 1, queue: str = "default") -> list[int]:
    """End new jobs in one of the ways that retention is about; return their ids."""
    ids = core.submit_jobs(count, queue=queue)
    if how == "cancelled":
        core.cancel(*ids)
        return ids
    leased = core.lease(queue, count=count)
    if how == "done":
        core.ack(leased.token, *ids)
    else:
        core.fail(leased.token, *ids, dead=True)
    return ids


@pytest.mark.parametrize(("how", "age_ms"), [("done", HOUR_MS), ("cancelled", HOUR_MS), ("dead", MONTH_MS)])
def test_finished_job_is_forgotten_exactly_at_its_age(core, how, age_ms):
    finish(core, how)
    assert core.engine.next_deadline(core.now) == core.engine_ms + age_ms
    assert core.wait(age_ms - 1) == []
    assert core.states(1) == [how]
    assert core.wait(1) == [JobsForgotten([(1, 1)])]
    assert core.states(1) == ["gone"]
    assert core.engine.next_deadline(core.now) is None


def test_age_is_engine_time(core):
    finish(core, "done")
    core.wait(HOUR_MS - 1, wall_ms=10 * HOUR_MS)
    assert core.states(1) == ["done"]


def test_age_counts_from_the_end_not_from_the_submit(core):
    core.submit()
    core.wait(10 * HOUR_MS)
    token, _ = core.held()
    core.ack(token, 1)
    core.wait(HOUR_MS - 1)
    assert core.states(1) == ["done"]


def test_live_jobs_are_never_forgotten(core):
    core.submit()
    core.submit(delay_ms=366 * 86_400_000)
    core.submit(queue="b")
    core.held("b", lease_ms=86_400_000)
    finish(core, "dead", queue="c")
    finish(core, "done", queue="c")
    core.wait(HOUR_MS)
    assert core.states(1, 2, 3, 4, 5) == ["ready", "delayed", "leased", "dead", "gone"]
    core.wait(MONTH_MS)
    assert core.states(1, 2, 3, 4, 5) == ["ready", "delayed", "ready", "gone", "gone"]


def test_requeued_job_is_not_forgotten_with_the_dead(core):
    finish(core, "dead", 2)
    core.requeue(1)
    core.wait(MONTH_MS)
    assert core.states(1, 2) == ["ready", "gone"]


def test_job_that_died_again_begins_its_age_anew(core):
    finish(core, "dead")
    core.wait(MONTH_MS - 1)
    core.requeue(1)
    token, _ = core.held()
    core.fail(token, 1, dead=True)
    core.wait(MONTH_MS - 1)
    assert core.states(1) == ["dead"]
    core.wait(1)
    assert core.states(1) == ["gone"]


@pytest.mark.parametrize(
    ("limit", "how"),
    [("FINISHED_COUNT_MAX", "done"), ("FINISHED_COUNT_MAX", "cancelled"), ("DEAD_COUNT_MAX", "dead")],
)
def test_oldest_over_the_count_of_their_queue_are_forgotten(core, monkeypatch, limit, how):
    monkeypatch.setattr(model, limit, 2)
    finish(core, how, 2)
    finish(core, how, 1, queue="other")
    assert core.states(1, 2, 3) == [how] * 3
    finish(core, how, 3)
    core.settle()
    assert core.states(1, 2, 3, 4, 5, 6) == ["gone", "gone", how, "gone", how, how]
    assert core.state.overfull == {}


def test_finished_jobs_of_all_kinds_share_one_count(core, monkeypatch):
    monkeypatch.setattr(model, "FINISHED_COUNT_MAX", 2)
    for how in ("done", "cancelled", "done", "dead"):
        finish(core, how)
    core.settle()
    assert core.states(1, 2, 3, 4) == ["gone", "cancelled", "done", "dead"]


def test_limits_are_a_hundred_thousand_jobs_and_256_mib():
    assert model.FINISHED_COUNT_MAX == model.DEAD_COUNT_MAX == 100_000
    assert model.RESULTS_BYTES_MAX == 256 << 20


def test_neighbours_that_ended_in_several_ways_are_forgotten_together(core):
    core.submit_jobs(3)
    token, _ = core.held()
    core.cancel(2)
    core.ack(token, 1)
    token, _ = core.held()
    core.ack(token, 3, result=b"r")
    core.wait(HOUR_MS)
    assert core.states(1, 2, 3) == ["gone"] * 3
    assert core.state.result_bytes == 0


@pytest.mark.parametrize("how", ["done", "dead"])
def test_a_tick_forgets_at_most_a_thousand(core, monkeypatch, how):
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 2)
    finish(core, how, 5)
    core.move(HOUR_MS if how == "done" else MONTH_MS)
    assert [core.turn() for _ in range(4)] == [
        [JobsForgotten([(1, 2)])],
        [JobsForgotten([(3, 2)])],
        [JobsForgotten([(5, 1)])],
        [],
    ]


def test_a_tick_forgets_at_most_a_thousand_over_the_count(core, monkeypatch):
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 2)
    finish(core, "done", 5, queue="a")
    finish(core, "done", 2, queue="b")
    monkeypatch.setattr(model, "FINISHED_COUNT_MAX", 1)
    finish(core, "done", 1, queue="a")  # a limit is looked at when something ends
    finish(core, "done", 1, queue="b")
    left = []
    for _ in range(6):
        core.turn()
        left.append(sum(core.state.counts()))
    assert left[-1] == 2
    assert core.state.overfull == {}


def with_results(core: Core, *results: bytes) -> None:
    for result in results:
        core.submit()
        token, job_id = core.held()
        core.ack(token, job_id, result=result)


def test_oldest_results_go_when_all_together_are_over_the_limit(core, monkeypatch):
    monkeypatch.setattr(model, "RESULTS_BYTES_MAX", 10)
    with_results(core, b"four", b"", b"four")
    finish(core, "done")
    assert core.settle() == []
    with_results(core, b"nine.....")
    core.settle()
    assert core.states(1, 2, 3, 4, 5) == ["gone", "gone", "gone", "done", "done"]
    assert core.state.result_bytes == 9
    core.wait(HOUR_MS)
    assert core.state.result_bytes == 0


def test_a_tick_forgets_few_jobs_for_their_results(core, monkeypatch):
    monkeypatch.setattr(model, "RESULTS_PER_TICK", 1)
    with_results(core, b"four", b"four", b"four")
    monkeypatch.setattr(model, "RESULTS_BYTES_MAX", 4)
    assert core.engine.next_deadline(core.now) == core.engine_ms
    assert core.turn() == [JobsForgotten([(1, 1)])]
    assert core.turn() == [JobsForgotten([(2, 1)])]
    assert core.turn() == []


def test_result_that_was_forgotten_by_age_frees_nothing_again(core, monkeypatch):
    with_results(core, b"old")
    core.wait(HOUR_MS - 1)
    with_results(core, b"new", b"newer")
    core.wait(1)
    assert core.states(1, 2, 3) == ["gone", "done", "done"]
    monkeypatch.setattr(model, "RESULTS_BYTES_MAX", 5)
    core.settle()
    assert core.states(1, 2, 3) == ["gone", "gone", "done"]


def test_result_that_was_forgotten_by_the_count_of_its_queue_is_passed_by(core, monkeypatch):
    with_results(core, b"one")
    monkeypatch.setattr(model, "FINISHED_COUNT_MAX", 1)
    for _ in range(2):
        job_id = core.submit(queue="other")
        core.ack(core.held("other")[0], job_id, result=b"two")
    core.settle()
    assert core.states(1, 2, 3) == ["done", "gone", "done"]
    monkeypatch.setattr(model, "RESULTS_BYTES_MAX", 2)
    core.settle()
    assert core.states(1, 3) == ["gone", "gone"]


def test_results_in_the_middle_of_their_age_may_go_first(core, monkeypatch):
    finish(core, "done")
    with_results(core, b"four")
    finish(core, "done")
    monkeypatch.setattr(model, "RESULTS_BYTES_MAX", 3)
    core.settle()
    assert core.states(1, 2, 3) == ["done", "gone", "done"]


def test_queue_is_gone_with_its_last_job(core):
    core.submit(queue="once")
    core.submit(queue="stays")
    core.purge(1)
    assert list(core.state.queues) == ["stays"]
    with pytest.raises(QueueNotFound, match="queue = 'once': it has no jobs"):
        core.do(c.ListJobs(filter=c.JobFilter(queue="once")))
    core.submit(queue="once")
    assert core.lease_ids("once") == [3]
    core.check()
