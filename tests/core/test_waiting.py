"""Requests that wait for jobs to come to their end."""

from collections.abc import Iterator
from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import model, waiting
from jqd.errors import InvalidArgument, Overloaded
from tests.support.core import Core


@pytest.fixture(autouse=True)
def _whole(core: Core) -> Iterator[None]:
    yield
    core.check()


def ask(core: Core, *ids: int, ticket: str = "one", wait_ms: int = 30_000, **fields: Any) -> Any:
    return core.do(c.Wait(ids=c.to_ranges(list(ids)), wait_ms=wait_ms, **fields), ticket=ticket)


def park(core: Core, *ids: int, **fields: Any) -> None:
    assert ask(core, *ids, **fields) is None


def answers(core: Core) -> list[tuple[object, list[int], int]]:
    """Return (connection, ids that ended or went, how many did not) of what was answered since the last look."""
    got = []
    for ticket, _, waited in core.answers:
        gone = [job_id for first, count in waited.gone for job_id in range(first, first + count)]
        got.append((ticket, [job.job_id for job in waited.jobs] + gone, waited.pending))
    core.answers.clear()
    return got


def done(core: Core, *ids: int, result: bytes | None = None) -> None:
    """Lease jobs, which have to be the next ones, and ack them."""
    core.ack(core.lease(count=len(ids)).token, *ids, result=result)


def test_a_wait_is_answered_as_soon_as_the_job_is_done_with_its_result(core):
    core.submit()
    core.do(c.Wait(ids=[(1, 1)], wait_ms=5_000), request_id=77, ticket="one")
    assert core.do(c.Stats()).waiting_count == 1
    core.wait(4_000)
    assert core.answers == []
    done(core, 1, result=b"res")
    ended = c.EndedJob(job_id=1, state="done", changed_wall_ms=core.wall_ms, result=b"res")
    assert core.answers == [("one", 77, c.Waited(jobs=[ended], pending=0))]
    assert core.do(c.Stats()).waiting_count == 0
    assert not core.state.watched


@pytest.mark.parametrize("how", ["dead", "cancelled", "expired", "purged"])
def test_every_end_of_a_job_answers(core, how):
    core.submit(expires_ms=1_000)
    park(core, 1)
    if how == "dead":
        core.fail(core.held()[0], 1, error="no", dead=True)
    elif how == "cancelled":
        core.cancel(1)
    elif how == "purged":
        core.purge(1)
    else:
        core.wait(1_000)
    ((_, _, waited),) = core.answers
    if how == "purged":
        assert (waited.jobs, waited.gone, waited.pending) == ([], [(1, 1)], 0)
    else:
        (job,) = waited.jobs
        assert (job.state, waited.pending) == (how, 0)
        assert (job.reason, job.error) == (("killed", "no") if how == "dead" else (None, ""))


def test_what_holds_already_is_answered_at_once(core):
    core.submit_jobs(2)
    done(core, 1)
    waited = ask(core, 1, 2)
    assert ([job.job_id for job in waited.jobs], waited.pending) == ([1], 1)
    park(core, 1, 2, all=True)


def test_without_a_time_it_only_looks(core):
    core.submit()
    assert ask(core, 1, wait_ms=0) == c.Waited(jobs=[], pending=1)


def test_unknown_ids_are_told_and_not_waited_for(core):
    assert ask(core, 7, 8, 9) == c.Waited(jobs=[], pending=0, gone=[(7, 3)])


def test_one_of_several_or_all_of_them(core):
    core.submit_jobs(3)
    park(core, 1, 2, 3, ticket="any")
    park(core, 1, 2, 3, ticket="all", all=True)
    done(core, 1)
    assert answers(core) == [("any", [1], 2)]
    done(core, 2, 3)
    assert answers(core) == [("all", [1, 2, 3], 0)]


def test_the_time_of_a_wait_ends_with_what_there_is(core):
    core.submit_jobs(2)
    park(core, 1, 2, all=True, wait_ms=5_000)
    done(core, 1)
    core.wait(4_999)
    assert answers(core) == []
    core.wait(1)
    assert answers(core) == [("one", [1], 1)]


def test_several_waits_stand_side_by_side_and_one_end_answers_all(core):
    core.submit()
    for ticket in ("one", "one", "two"):
        park(core, 1, ticket=ticket)
    done(core, 1)
    assert sorted(answers(core)) == [("one", [1], 0), ("one", [1], 0), ("two", [1], 0)]


def test_a_dead_job_that_is_revived_is_waited_for_again(core):
    core.submit_jobs(2)
    park(core, 1, 2, all=True)
    token = core.lease(count=1).token
    core.fail(token, 1, dead=True)
    core.requeue(1)
    core.cancel(2)
    assert answers(core) == []
    done(core, 1)
    assert answers(core) == [("one", [1, 2], 0)]


def test_dead_and_revived_in_one_turn_is_no_end(core):
    core.submit()
    park(core, 1)
    token, _ = core.held()
    core.execute(c.Fail(items=[(token, [(1, 1)])], dead=True))
    core.execute(c.Requeue(ids=[(1, 1)]))
    core.turn()
    assert answers(core) == []
    done(core, 1)
    assert answers(core) == [("one", [1], 0)]


def test_of_those_at_their_end_before_it_came_none_is_missed(core):
    core.submit_jobs(2)
    done(core, 1)
    park(core, 1, 2, 99, all=True)
    done(core, 2)
    assert answers(core) == [("one", [1, 2, 99], 0)]


def test_a_job_that_goes_at_its_end_is_seen_before_it_goes(core):
    core.do(c.SetQueue(queue="default", retention_ms=0, dead_retention_ms=0))
    core.submit()
    park(core, 1)
    done(core, 1, result=b"r")
    assert [waited.jobs[0].result for _, _, waited in core.answers] == [b"r"]
    assert core.states(1) == ["gone"]
    core.answers.clear()
    core.submit(max_crashes=0)
    park(core, 2)
    core.held(lease_ms=1_000)
    core.wait(1_000)
    ((_, _, waited),) = core.answers
    assert (waited.jobs[0].reason, core.states(2)) == ("crashes", ["gone"])


def test_a_job_that_retention_takes_is_told(core):
    core.submit_jobs(2)
    core.fail(core.lease(count=1).token, 1, dead=True)
    core.do(c.SetQueue(queue="default", dead_retention_ms=1_000))
    park(core, 1, 2, all=True, wait_ms=30_000)
    core.wait(1_000)
    core.cancel(2)
    assert answers(core) == [("one", [2, 1], 0)]


def test_the_end_of_a_connection_ends_its_waits(core):
    core.submit_jobs(2)
    park(core, 1, ticket="one")
    park(core, 1, 2, ticket="one")
    park(core, 1, ticket="two")
    core.engine.disconnect(model.LOCAL, "one", core.now)
    assert list(core.state.watched) == [1]
    done(core, 1)
    assert answers(core) == [("two", [1], 0)]


def test_a_stop_sends_everybody_away_with_what_there_is(core):
    core.submit_jobs(2)
    park(core, 1, 2, all=True)
    done(core, 1)
    core.engine.stop(core.now)
    core.turn()
    assert answers(core) == [("one", [1], 1)]


def test_a_wait_changes_nothing_and_nobody_pays_for_those_who_do_not_wait(core):
    core.submit()
    lsn = core.state.lsn
    park(core, 1, wait_ms=1_000)
    core.wait(1_000)
    assert core.state.lsn == lsn
    done(core, 1)
    assert not core.state.ended


def test_a_reply_stops_before_its_limit_with_at_least_one_job(core, monkeypatch):
    monkeypatch.setattr(model, "REPLY_BYTES_MAX", 1_000)
    core.submit_jobs(4)
    token = core.lease(count=4).token
    for job_id in range(1, 5):
        core.ack(token, job_id, result=bytes(300 if job_id < 4 else 5_000))
    assert [job.job_id for job in ask(core, 1, 2, 3, 4).jobs] == [1, 2]
    assert [job.job_id for job in ask(core, 3, 4).jobs] == [3]
    assert [job.job_id for job in ask(core, 4).jobs] == [4]
    assert ask(core, 3, 4).pending == 0


def test_a_crowd_is_served_in_parts_and_a_job_stays_until_all_have_seen_it(core, monkeypatch):
    monkeypatch.setattr(waiting, "_LOOKS_PER_TURN", 2)
    core.do(c.SetQueue(queue="default", retention_ms=0))
    core.submit()
    for number in range(5):
        park(core, 1, ticket=str(number))
    token, _ = core.held()
    core.execute(c.Ack(items=[(token, [(1, 1)], b"r")]))
    core.turn()
    assert len(core.answers) < 5
    assert core.engine.next_deadline(core.now) == core.engine_ms
    core.settle()
    assert [waited.jobs[0].result for _, _, waited in core.answers] == [b"r"] * 5
    for number in range(5):
        park(core, core.submit(), ticket=str(number), wait_ms=1_000)
    core.answers.clear()
    core.wait(1_000)
    assert len(core.answers) == 5


@pytest.mark.parametrize("why", ["memory", "results"])
def test_a_job_that_has_to_make_room_at_its_end_is_seen_before_it_goes(core, monkeypatch, why):
    monkeypatch.setattr(waiting, "_LOOKS_PER_TURN", 2)
    core.submit_jobs(3)
    for number in range(5):
        park(core, 1, ticket=str(number))
    if why == "memory":
        core.state.memory.limit(0)
    else:
        monkeypatch.setattr(model, "RESULTS_BYTES_MAX", 0)
    core.execute(c.Ack(items=[(core.lease(count=3).token, [(1, 3)], b"r")]))
    core.turn()
    assert 0 < len(core.answers) < 5
    core.settle()
    assert [waited.jobs[0].result for _, _, waited in core.answers] == [b"r"] * 5
    assert core.states(1, 2, 3) == ["gone"] * 3


@pytest.mark.parametrize(
    ("result", "count_max"), [(b"", waiting._LOOKS_PER_TURN // 20), (bytes(60_000), 600)]
)
def test_a_turn_counts_answers_and_what_is_in_them(core, result, count_max):
    core.submit()
    for number in range(3_000):
        core.execute(c.Wait(ids=[(1, 1)], wait_ms=1_000), ticket=number)
    token, _ = core.held()
    core.ack(token, 1, result=result)
    assert 0 < len(core.answers) <= count_max
    core.settle()
    assert [ticket for ticket, _, _ in core.answers] == list(range(3_000))
    core.answers.clear()
    job_id = core.submit()
    for number in range(3_000):
        core.execute(c.Wait(ids=[(job_id, 1)], wait_ms=1_000), ticket=number)
    core.move(1_000)
    core.turn()
    assert 0 < len(core.answers) <= waiting._LOOKS_PER_TURN // 20


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([(1, 1_001)], "ids = 1001 jobs: the limit is 1000 a wait"),
        ([(1, 500), (900, 501)], "ids = 1001 jobs: the limit is 1000 a wait"),
        ([(5, 2), (1, 5)], "job_id = 5 is named twice in one request"),
    ],
)
def test_too_many_jobs_or_one_named_twice_is_refused(core, ids, message):
    with pytest.raises(InvalidArgument) as refusal:
        core.do(c.Wait(ids=ids, wait_ms=1))
    assert str(refusal.value) == message


def test_jobs_that_are_waited_for_have_a_limit_in_all(core, monkeypatch):
    monkeypatch.setattr(model, "WAITED_JOBS_MAX", 3)
    core.submit_jobs(3)
    park(core, 1, 2)
    park(core, 1)
    with pytest.raises(Overloaded) as refusal:
        ask(core, 3)
    assert str(refusal.value) == "3 jobs are waited for: the limit is 3"
    assert refusal.value.retry_after_ms == 1_000
    core.cancel(1)
    park(core, 3)
