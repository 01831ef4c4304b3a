"""A new run of the daemon: grace for live leases, clocks, what is remembered."""

import pytest

from jqd.core import model
from jqd.core.changes import DaemonStarted, IdsSkipped, TimeAdvanced, encode_batch
from jqd.core.engine import Batch, Engine, ReplayFailed
from jqd.core.model import Now
from jqd.core.pages import PAGE_JOBS
from jqd.core.state import State
from tests.support.core import ENGINE_MS, IDENTITY, WALL_MS, Core, replayed


def test_start_is_a_fact_with_the_epoch_and_the_version():
    engine = Engine(State(), IDENTITY)
    engine.start(Now(5, WALL_MS), "1.2")
    assert engine.has_changes
    core = Core()
    core.engine = engine
    assert core.write() == [DaemonStarted(WALL_MS // 1_000, "1.2")]
    assert not engine.has_changes


def test_engine_clock_never_goes_back(core):
    core.submit()
    state = replayed(core.log)
    with pytest.raises(AssertionError, match="the engine clock never goes back"):
        Engine(state, IDENTITY).start(Now(ENGINE_MS - 1, WALL_MS), "0")


@pytest.mark.parametrize("lease_ms", [1_000, 29_999, 30_000, 30_001, 86_400_000])
def test_live_lease_has_the_lesser_of_its_time_and_half_a_minute_left(core, lease_ms):
    core.submit()
    core.held(lease_ms=lease_ms)
    core.move(lease_ms - 1)
    core.turn()  # the high water is on disk
    core.restart(down_ms=10_000_000)
    grace_ms = min(lease_ms, 30_000)
    assert core.get(1).lease_ms_left == grace_ms
    core.wait(grace_ms - 1)
    assert core.states(1) == ["leased"]
    core.wait(1)
    assert core.states(1) == ["ready"]


def test_lease_that_has_more_left_keeps_it(core):
    core.submit()
    core.held(lease_ms=86_400_000)
    core.restart(down_ms=10_000)
    assert core.get(1).lease_ms_left == 86_400_000


def test_worker_that_held_a_lease_over_the_restart_acks_with_its_old_token(core):
    core.submit()
    token, _ = core.held()
    core.restart(down_ms=3_600_000)
    assert core.ack(token, 1) == [(1, 1, "ok")]


def test_expiry_of_a_lease_from_before_the_restart_counts_no_crash(core):
    core.submit(max_crashes=0)
    for _ in range(3):
        core.held()
        core.restart()
        core.wait(30_000)
        assert core.states(1) == ["ready"]
    shown = core.get(1)
    assert (shown.errors, shown.crashes, shown.attempt) == (0, 0, 3)
    assert [attempt.cause for attempt in shown.attempts] == ["restart"] * 3


def test_lease_extended_since_the_restart_counts_its_crash(core):
    core.submit(max_crashes=0)
    token, _ = core.held()
    core.restart()
    core.extend(token, 1)
    core.wait(30_000)
    assert (core.get(1).reason, core.get(1).crashes) == ("crashes", 1)


def test_part_of_a_grant_that_was_not_extended_counts_no_crash(core):
    core.submit_jobs(2, max_crashes=0)
    leased = core.lease(count=2)
    core.restart()
    core.extend(leased.token, 1)
    core.wait(30_000)
    assert core.states(1, 2) == ["dead", "ready"]


def test_lease_given_after_the_restart_counts_its_crash(core):
    core.restart()
    core.submit(max_crashes=0)
    core.held()
    core.wait(30_000)
    assert core.get(1).reason == "crashes"


def test_fail_after_a_restart_counts_its_error(core):
    core.submit(max_retries=0)
    token, _ = core.held()
    core.restart()
    core.fail(token, 1)
    assert core.get(1).reason == "retries"


def test_parts_of_a_grant_share_one_timer_after_a_restart(core):
    core.submit_jobs(3)
    leased = core.lease(count=3, lease_ms=2_000)
    core.extend(leased.token, 2, lease_ms=3_000)
    core.move(1_500)
    core.extend(leased.token, 3, lease_ms=60_000)
    core.restart()
    core.state.check()
    core.wait(3_000)
    core.state.check()
    assert core.states(1, 2, 3) == ["ready", "ready", "leased"]


def test_two_restarts_in_a_row_give_the_grace_twice(core):
    core.submit()
    core.held(lease_ms=5_000)
    core.restart()
    core.wait(4_000)
    core.restart()
    assert core.get(1).lease_ms_left == 5_000


def test_delayed_and_dated_jobs_wait_on_after_a_restart(core):
    core.submit(delay_ms=5_000)
    core.submit(run_at_ms=WALL_MS + 5_000)
    core.restart(down_ms=4_000)
    assert core.states(1, 2) == ["delayed", "delayed"]
    core.wait(1_000)
    assert core.states(1, 2) == ["delayed", "ready"]
    core.wait(4_000)
    assert core.states(1, 2) == ["ready", "ready"]


def test_clean_stop_logs_the_high_water_and_sends_parked_leases_away(core):
    core.submit(delay_ms=5_000)
    assert core.lease(wait_ms=30_000) is None
    core.move(4_000)
    core.engine.stop(core.now)
    ((_, _, answer),) = core.engine.outbox
    assert (answer.token, answer.jobs) == (0, [])
    assert core.write() == [TimeAdvanced(model.PROMOTIONS_PER_TICK)]
    core.restart()
    assert core.get(1).due_ms_left == 1_000


def test_everything_is_there_after_a_restart(core):
    core.submit_jobs(3, queue="a")
    core.submit_jobs(2, queue="b", priority=4, metadata={"k": "v"})
    leased = core.lease("a", "b", count=4)
    core.ack(leased.token, 1, result=b"r")
    core.fail(leased.token, 2, error="e")
    core.fail(leased.token, 3, dead=True)
    before = [core.get(job_id) for job_id in range(1, 6)]
    core.restart()
    after = [core.get(job_id) for job_id in range(1, 6)]
    assert before == after


@pytest.mark.parametrize("before", [0, 5, PAGE_JOBS - 2, PAGE_JOBS - 1, PAGE_JOBS])
@pytest.mark.parametrize("skipped", [0, 1, 3, PAGE_JOBS, 10_000])
def test_ids_that_are_skipped_are_given_to_no_job(core, before, skipped):
    if before:
        core.submit_jobs(before)
    next_id = core.state.pages.next_id + skipped
    core.log.append(Batch(core.state.lsn + 1, 1, encode_batch(core.now, [IdsSkipped(next_id)])))
    core.restart()
    core.check()
    assert core.submit() == next_id
    assert core.submit_jobs(10)[0] == next_id + 1
    assert [job.id for job in core.state.pages.jobs_from(before + 1)] == list(range(next_id, next_id + 11))
    core.check()


def test_ids_never_go_back():
    core = Core()
    core.submit_jobs(5)
    core.log.append(Batch(core.state.lsn + 1, 1, encode_batch(core.now, [IdsSkipped(3)])))
    with pytest.raises(ReplayFailed, match="ids only rise: 3 after 5"):
        core.restart()
