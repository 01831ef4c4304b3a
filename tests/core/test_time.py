"""Time passing: bounded work per turn, the high water, jumps of the wall clock."""

import pytest

from jqd.core import model
from jqd.core.changes import JobsDied, JobsRetried, TimeAdvanced
from jqd.core.commands import Lease, Submit
from tests.support.core import WALL_MS, Core


def promoted(core: Core) -> int:
    return core.state.counts()[1]


def test_a_tick_promotes_the_earliest_that_are_due_up_to_its_limit(core, monkeypatch):
    monkeypatch.setattr(model, "PROMOTIONS_PER_TICK", 2)
    for delay_ms in (30, 10, 40, 20):
        core.submit(delay_ms=delay_ms)
    core.submit(run_at_ms=WALL_MS + 5)
    core.move(30)
    assert core.turn() == [TimeAdvanced(2)]
    assert core.states(1, 2, 3, 4, 5) == ["delayed", "ready", "delayed", "ready", "delayed"]
    assert core.engine.next_deadline(core.now) <= core.engine_ms, "the next tick is due at once"
    core.turn()
    assert core.states(1, 2, 3, 4, 5) == ["ready", "ready", "delayed", "ready", "ready"]


def test_limit_of_a_tick_is_ten_thousand_promotions(core):
    core.submit_jobs(10_000, delay_ms=5)
    core.submit_jobs(1, delay_ms=5)
    core.move(5)
    core.turn()
    assert promoted(core) == 10_000
    core.turn()
    assert promoted(core) == 10_001


def test_limit_of_a_tick_is_one_thousand_expiries(core):
    core.submit_jobs(2_500)
    core.lease(count=1_500, lease_ms=1_000)
    core.lease(count=1_000, lease_ms=1_000)
    core.move(1_000)
    ready = []
    for _ in range(3):
        changes = core.turn()
        assert all(isinstance(change, JobsRetried) for change in changes)
        ready.append(promoted(core))
    assert ready == [1_000, 2_000, 2_500]
    assert core.turn() == []


def test_limit_of_expiries_holds_over_the_parts_of_a_grant(core, monkeypatch):
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 2)
    core.submit_jobs(4)
    leased = core.lease(count=4, lease_ms=1_000)
    core.extend(leased.token, 2, 3)
    core.move(1_000)
    core.turn()
    assert promoted(core) == 2
    core.turn()
    assert promoted(core) == 4


def test_expiry_and_promotion_at_one_ms_happen_in_one_turn(core):
    core.submit(delivery="at_most_once")
    core.submit(delay_ms=1_000, queue="b")
    core.held(lease_ms=1_000)
    core.move(1_000)
    assert [type(change) for change in core.turn()] == [TimeAdvanced, JobsDied]
    assert core.states(1, 2) == ["dead", "ready"]


def test_nothing_to_wait_for_has_no_deadline(core):
    core.submit()
    assert core.engine.next_deadline(core.now) is None
    assert core.wait(1_000_000_000) == []


@pytest.mark.parametrize("kind", ["lease", "delay"])
def test_high_water_is_logged_every_five_seconds_while_a_timer_is_pending(core, kind):
    core.submit(delay_ms=100_000 if kind == "delay" else 0)
    if kind == "lease":
        core.held(lease_ms=100_000)
    for _ in range(3):
        assert core.engine.next_deadline(core.now) == core.engine_ms + 5_000
        assert core.wait(4_999) == []
        assert core.wait(1) == [TimeAdvanced(model.PROMOTIONS_PER_TICK)]


def test_high_water_is_not_logged_for_dates_parked_leases_and_sessions(core):
    core.submit(run_at_ms=WALL_MS + 100_000)
    caller = core.hello(b"s" * 16)
    core.leave(caller)
    core.lease("nowhere", wait_ms=30_000)
    assert core.wait(20_000) == []
    assert core.engine.next_deadline(core.now) == core.engine_ms + 10_000


def test_any_fact_moves_the_high_water(core):
    core.submit(delay_ms=100_000)
    core.wait(4_000)
    core.submit()
    assert core.engine.next_deadline(core.now) == core.engine_ms + 5_000


def test_time_that_passes_while_the_daemon_is_down_is_not_engine_time(core):
    core.submit(delay_ms=10_000)
    core.wait(5_000)
    core.wait(4_000)
    core.restart(down_ms=1_000_000)
    assert core.get(1).due_ms_left == 5_000, "the last 4 s were not on disk"


def test_date_is_never_early_when_the_wall_clock_is_set_back(core):
    core.submit(run_at_ms=WALL_MS + 1_000)
    core.wait(900, wall_ms=-3_600_000)
    assert core.engine.next_deadline(core.now) == core.engine_ms + 3_601_000
    core.wait(3_600_999)
    assert core.states(1) == ["delayed"]
    core.wait(1)
    assert core.states(1) == ["ready"]


def test_date_is_reached_when_the_wall_clock_is_set_forward(core):
    core.submit(run_at_ms=WALL_MS + 3_600_000)
    core.wait(0, wall_ms=3_600_000)
    assert core.states(1) == ["ready"]


@pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000])
def test_durations_do_not_care_for_the_wall_clock(core, jump_ms):
    core.submit(delay_ms=2_000)
    core.submit(queue="b")
    core.held("b", lease_ms=2_000)
    core.wait(1_999, wall_ms=jump_ms)
    assert core.states(1, 2) == ["delayed", "leased"]
    core.wait(1)
    assert core.states(1, 2) == ["ready", "ready"]


def test_two_readings_of_the_clock_in_one_turn_are_a_bug(core):
    core.execute(Submit())
    core.move(1)
    with pytest.raises(AssertionError, match="one reading of the clocks a turn"):
        core.execute(Submit())
    core.move(-1)


# --- time that no lease is charged for ------------------------------------------------------------


def test_lease_is_judged_as_of_when_workers_could_be_heard(core):
    core.submit_jobs(5)
    token = core.lease(count=5, lease_ms=1_000).token
    core.submit(delay_ms=3_000)
    core.move(3_000)
    core.engine.forgive(2_001)
    assert core.turn() == [TimeAdvanced(model.PROMOTIONS_PER_TICK)], "a tick for other reasons ends no lease"
    assert core.ack(token, 2) == [(2, 1, "ok")]
    assert core.extend(token, 1, 2, 3).results == [(1, 1, "ok"), (2, 1, "lease_lost"), (3, 1, "ok")]
    assert core.ack(token, 4, 5) == [(4, 2, "ok")]
    assert core.get(1).lease_ms_left == 1_000, "it counts from when it was heard"
    core.check()


def test_lease_that_had_ended_before_is_lost(core):
    core.submit()
    token = core.lease(lease_ms=1_000).token
    core.move(3_000)
    core.engine.forgive(2_000)
    assert core.ack(token, 1) == [(1, 1, "lease_lost")]
    assert core.states(1) == ["ready"]


def test_next_deadline_is_when_the_lease_ends_by_the_clock_that_is_behind(core):
    core.submit()
    core.lease(lease_ms=1_000)
    core.move(3_000)
    core.engine.forgive(2_500)
    assert core.engine.next_deadline(core.now) == core.engine_ms + 500
    assert core.wait(499) == []
    assert isinstance(core.wait(1)[0], JobsRetried)
    core.engine.forgive(0)


def test_time_that_is_not_charged_holds_up_nothing_else(core):
    core.submit(delay_ms=1_000)
    core.move(1_000)
    core.engine.forgive(5_000)
    core.turn()
    assert core.states(1) == ["ready"]
    assert core.engine.next_deadline(core.now) is None


def test_retried_lease_that_is_still_held_is_answered_with_its_jobs(core):
    caller = core.hello(b"s" * 16)
    core.submit()
    first = core.do(Lease(lease_ms=1_000), caller, request_id=5)
    core.move(3_000)
    core.engine.forgive(2_500)
    again = core.execute(Lease(lease_ms=1_000), caller, request_id=5)
    assert (again.token, again.jobs, again.lease_ms_left) == (first.token, first.jobs, 0)


def test_restart_charges_everything_again(core):
    core.submit()
    core.lease(lease_ms=1_000)
    core.engine.forgive(5_000)
    core.restart()
    core.wait(1_000)
    assert core.states(1) == ["ready"]
