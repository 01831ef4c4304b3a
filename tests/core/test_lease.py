"""lease: order, bounds, tokens."""

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.core.changes import EpochRaised, JobsLeased
from jqd.errors import InvalidArgument
from tests.support.core import WALL_MS, ids_of

EPOCH = WALL_MS // 1_000


def test_lease_of_nothing_is_a_reply_with_token_zero(core):
    lsn = core.state.lsn
    assert core.lease("nowhere") == c.Leased(token=0, lease_ms_left=0, wall_ms=WALL_MS, jobs=[])
    assert core.state.lsn == lsn, "nothing has changed"


def test_lease_says_what_a_worker_needs(core):
    core.submit(b"work", queue="q", encoding="text", priority=2, task="t", metadata={"a": "b"})
    assert core.lease("q", lease_ms=5_000) == c.Leased(
        token=EPOCH << 32 | 1,
        lease_ms_left=5_000,
        wall_ms=WALL_MS,
        jobs=[
            c.LeasedJob(
                job_id=1,
                queue="q",
                attempt=1,
                payload=b"work",
                encoding="text",
                priority=2,
                task="t",
                metadata={"a": "b"},
            )
        ],
    )
    shown = core.get(1)
    assert (shown.state, shown.lease_ms_left, shown.attempt) == ("leased", 5_000, 1)


def test_lease_names_its_worker_session_and_principal_in_the_fact(core):
    core.submit()
    caller = model.Caller(principal="key7", session=b"s" * 16, worker="box 1")
    core.hello(b"s" * 16)
    core.execute(c.Lease(), caller)
    change = core.turn()[0]
    assert isinstance(change, JobsLeased)
    assert (change.principal, change.session, change.worker) == ("key7", b"s" * 16, "box 1")
    assert core.get(1).worker == "box 1"


def test_highest_priority_comes_first_then_the_lowest_id(core):
    for priority in (0, 5, -32_768, 5, 32_767, 0):
        core.submit(priority=priority)
    assert core.lease_ids(count=10) == [5, 2, 4, 1, 6, 3]


def test_lease_takes_no_more_than_count(core):
    core.submit_jobs(5)
    assert [core.lease_ids(count=2), core.lease_ids(count=2), core.lease_ids(count=2)] == [
        [1, 2],
        [3, 4],
        [5],
    ]


def test_returned_job_takes_its_place_by_id_among_new_ones(core):
    core.submit_jobs(3)
    token, _ = core.held()
    core.release(token, 1)
    core.submit()
    assert core.lease_ids(count=9) == [1, 2, 3, 4]


def test_job_whose_delay_ended_takes_its_place_by_id(core):
    core.submit(delay_ms=10)
    core.submit(delay_ms=5)
    core.submit()
    core.wait(20)
    assert core.lease_ids(count=9) == [1, 2, 3]


def test_queues_are_taken_in_the_order_given_whatever_their_priorities(core):
    core.submit(queue="a", priority=0)
    core.submit(queue="b", priority=9)
    core.submit(queue="c", priority=5)
    assert core.lease_ids("a", "nowhere", "b", "a", count=2) == [1, 2]
    assert core.lease_ids("a", "c", count=1) == [3]


def test_bad_queue_name_is_refused(core):
    with pytest.raises(InvalidArgument, match="queues = '/': a name must match"):
        core.lease("/")


def test_command_lease_time_wins_over_the_jobs_and_the_default(core):
    core.submit_jobs(1, lease_ms=7_000)
    core.submit_jobs(1)
    token, job_id = core.held(lease_ms=2_000)
    assert core.get(job_id).lease_ms_left == 2_000
    core.release(token, job_id)
    assert core.lease().lease_ms_left == 7_000
    assert core.lease().lease_ms_left == 30_000


def test_grant_ends_at_a_job_with_another_lease_time(core):
    core.submit_jobs(2, lease_ms=7_000)
    core.submit_jobs(2)
    core.submit_jobs(1, lease_ms=7_000)
    assert [core.lease_ids(count=9) for _ in range(3)] == [[1, 2], [3, 4], [5]]


def test_grant_over_two_queues_ends_at_a_job_with_another_lease_time(core):
    core.submit_jobs(2, queue="a", lease_ms=7_000)
    core.submit_jobs(2, queue="b")
    assert core.lease_ids("a", "b", count=9) == [1, 2]


def test_lease_time_of_the_command_spans_jobs_with_their_own(core):
    core.submit_jobs(2, lease_ms=7_000)
    core.submit_jobs(2)
    assert core.lease_ids(count=9, lease_ms=1_000) == [1, 2, 3, 4]


def test_reply_stops_before_its_limit(core):
    for _ in range(5):
        core.submit(b"x" * model.PAYLOAD_BYTES_MAX)
    assert [core.lease_ids(count=9), core.lease_ids(count=9)] == [[1, 2, 3], [4, 5]]


def test_reply_has_at_least_one_job(core, monkeypatch):
    monkeypatch.setattr(model, "REPLY_BYTES_MAX", 10)
    core.submit_jobs(2)
    assert core.lease_ids(count=9) == [1]


def test_metadata_counts_against_the_reply(core, monkeypatch):
    monkeypatch.setattr(model, "REPLY_BYTES_MAX", 2 * model.METADATA_BYTES_MAX)
    core.submit_jobs(5, metadata={"a": "b"})
    assert core.lease_ids(count=9) == [1]


def test_attempt_numbers_deliveries_from_one(core):
    core.submit()
    for attempt in (1, 2, 3):
        leased = core.lease()
        assert leased.jobs[0].attempt == attempt
        core.fail(leased.token, 1, retry_in_ms=0)


def test_token_rises_with_each_grant_also_after_a_release(core):
    core.submit()
    tokens = []
    for _ in range(3):
        token, job_id = core.held()
        core.release(token, job_id)
        tokens.append(token)
    assert tokens == [EPOCH << 32 | 1, EPOCH << 32 | 2, EPOCH << 32 | 3]


def test_jobs_of_one_command_share_a_token(core):
    core.submit_jobs(3)
    leased = core.lease(count=3)
    assert {core.job(job_id).lease.token for job_id in ids_of(leased)} == {leased.token}


def test_epoch_is_the_unix_time_of_the_start_or_one_more_than_the_last(core):
    assert core.state.epoch == EPOCH
    core.restart()
    assert core.state.epoch == EPOCH + 1
    core.restart(down_ms=60_000)
    assert core.state.epoch == EPOCH + 60
    core.restart(wall_ms=-3_600_000)
    assert core.state.epoch == EPOCH + 61


def test_clock_that_is_far_ahead_does_not_use_up_the_epochs(core):
    core.submit()
    core.restart(wall_ms=model.EPOCH_DATE_MAX * 1_000 - core.wall_ms)
    assert core.state.epoch == model.EPOCH_DATE_MAX
    core.restart(wall_ms=1_000)
    assert core.state.epoch == model.EPOCH_DATE_MAX + 1, "one more than the last"
    core.restart(wall_ms=10 * 365 * model.DAY_MS)
    token, _ = core.held()
    assert token == model.EPOCH_DATE_MAX + 2 << 32 | 1 < 1 << 64


def test_token_rises_over_a_restart_with_the_clock_set_back(core):
    core.submit()
    token, job_id = core.held()
    core.release(token, job_id)
    core.restart(wall_ms=-86_400_000)
    assert core.held()[0] > token


def test_full_grant_counter_begins_a_new_epoch(core, monkeypatch):
    monkeypatch.setattr(model, "GRANT_MAX", 3)
    core.submit_jobs(5)
    tokens = [core.held()[0] for _ in range(3)]
    assert tokens == [EPOCH << 32 | grant for grant in (1, 2, 3)]
    core.execute(c.Lease())
    changes = core.turn()
    assert changes[0] == EpochRaised(EPOCH + 1)
    assert isinstance(changes[1], JobsLeased)
    assert changes[1].token == (EPOCH + 1) << 32 | 1 > tokens[-1]
    core.restart()
    assert core.held()[0] == (EPOCH + 2) << 32 | 1


def test_taken_back_lease_leaves_no_attempt_and_its_token_is_stale(core):
    core.submit_jobs(2, delivery="at_most_once")
    leased = core.lease(count=2)
    core.engine.take_back(leased.token, core.now)
    core.turn()
    assert core.states(1, 2) == ["ready", "ready"]
    assert core.ack(leased.token, 1, 2) == [(1, 2, "lease_lost")]
    again = core.lease(count=2)
    assert [(job.job_id, job.attempt) for job in again.jobs] == [(1, 1), (2, 1)]
    assert again.token > leased.token


def test_take_back_leaves_alone_what_was_acked_or_leased_anew(core):
    core.submit_jobs(3)
    leased = core.lease(count=3)
    core.ack(leased.token, 1)
    core.release(leased.token, 2)
    other = core.lease()
    core.engine.take_back(leased.token, core.now)
    core.turn()
    assert core.states(1, 2, 3) == ["done", "leased", "ready"]
    assert core.job(2).lease.token == other.token
    lsn = core.state.lsn
    core.engine.take_back(leased.token, core.now)
    assert core.state.lsn == lsn


def test_own_lease_time_that_is_the_default_ends_no_grant(core):
    core.submit()
    core.submit(lease_ms=model.LEASE_MS_DEFAULT)
    assert core.lease_ids(count=2) == [1, 2]


def test_at_most_once_job_says_so_to_its_worker(core):
    core.submit(delivery="at_most_once")
    assert core.lease().jobs[0].delivery == "at_most_once"
