"""Errors, crashes, their limits and reasons; at most once; history."""

import pytest

from jqd.core import model
from jqd.core.backoff import retry_delay_ms
from jqd.core.model import RetryPolicy
from jqd.errors import InvalidArgument
from tests.support.core import Core, parts_of


def crash(core: Core) -> None:
    """Lease the first job and let the lease run out."""
    core.held(lease_ms=1_000)
    core.wait(1_000)


def error(core: Core, text: str = "") -> None:
    token, job_id = core.held()
    core.fail(token, job_id, error=text)


def until_ready(core: Core) -> None:
    left_ms = core.get(1).due_ms_left
    if left_ms is not None:
        core.wait(left_ms)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_one_error_more_than_max_retries_is_dead(core, max_retries):
    core.submit(b"kept", max_retries=max_retries)
    for count in range(1, max_retries + 1):
        error(core)
        assert (core.get(1).state, core.get(1).errors) == ("delayed", count)
        until_ready(core)
    error(core, "last")
    shown = core.get(1)
    assert (shown.state, shown.reason, shown.error) == ("dead", "retries", "last")
    assert (shown.errors, shown.attempt, shown.payload) == (max_retries + 1, max_retries + 1, b"kept")


def test_default_is_three_retries(core):
    core.submit()
    for _ in range(3):
        error(core)
        until_ready(core)
    error(core)
    assert (core.get(1).reason, core.get(1).attempt) == ("retries", 4)


def test_last_retry_is_not_saved_by_retry_in_ms(core):
    core.submit(max_retries=0)
    token, _ = core.held()
    core.fail(token, 1, retry_in_ms=5)
    assert core.get(1).reason == "retries"


def test_backoff_grows_with_the_errors_and_is_that_of_id_and_attempt(core):
    core.submit(max_retries=5)
    for count in range(1, 6):
        error(core)
        assert core.get(1).due_ms_left == retry_delay_ms(count, 1, count)
        until_ready(core)


def test_crashes_do_not_count_as_errors(core):
    core.submit(max_retries=0, max_crashes=5)
    crash(core)
    assert (core.get(1).state, core.get(1).errors, core.get(1).crashes) == ("ready", 0, 1)
    error(core)
    assert core.get(1).reason == "retries"


def test_errors_do_not_count_as_crashes(core):
    core.submit(max_retries=5, max_crashes=0)
    error(core)
    assert (core.get(1).state, core.get(1).errors, core.get(1).crashes) == ("delayed", 1, 0)
    until_ready(core)
    crash(core)
    assert core.get(1).reason == "crashes"


# --- crashes ------------------------------------------------------------------------------------


def test_first_crash_is_ready_at_once_later_ones_wait_for_the_backoff(core):
    core.submit()
    crash(core)
    assert core.states(1) == ["ready"]
    for crashes in (2, 3, 4, 5):
        crash(core)
        assert core.get(1).due_ms_left == retry_delay_ms(crashes - 1, 1, crashes)
        until_ready(core)


@pytest.mark.parametrize("max_crashes", [0, 1, 2])
def test_one_crash_more_than_max_crashes_is_dead(core, max_crashes):
    core.submit(b"kept", max_crashes=max_crashes)
    for _ in range(max_crashes):
        crash(core)
        assert core.states(1) != ["dead"]
        until_ready(core)
    crash(core)
    shown = core.get(1)
    assert (shown.state, shown.reason, shown.error) == ("dead", "crashes", "lease of 1000 ms ran out")
    assert (shown.errors, shown.crashes, shown.payload) == (0, max_crashes + 1, b"kept")


def test_default_is_five_crashes(core):
    core.submit()
    for _ in range(5):
        crash(core)
        until_ready(core)
    crash(core)
    assert (core.get(1).reason, core.get(1).attempt) == ("crashes", 6)


def test_lease_is_over_exactly_at_its_deadline(core):
    core.submit()
    core.held(lease_ms=1_000)
    core.wait(999)
    assert core.states(1) == ["leased"]
    core.wait(1)
    assert core.states(1) == ["ready"]


def test_deadline_is_told_to_the_driver(core):
    core.submit()
    core.held(lease_ms=1_000)
    assert core.engine.next_deadline(core.now) == core.engine_ms + 1_000


def test_expired_jobs_of_one_grant_go_their_own_ways(core):
    core.submit()
    core.submit(delivery="at_most_once")
    core.submit(max_crashes=0)
    core.lease(count=3)
    core.wait(30_000)
    assert core.states(1, 2, 3) == ["ready", "dead", "dead"]
    assert [core.get(job_id).reason for job_id in (2, 3)] == ["abandoned", "crashes"]


# --- at most once -------------------------------------------------------------------------------


def test_at_most_once_job_that_fails_is_dead(core):
    core.submit(delivery="at_most_once")
    error(core)
    assert (core.get(1).state, core.get(1).reason) == ("dead", "retries")


def test_at_most_once_job_whose_lease_expires_is_abandoned(core):
    core.submit(delivery="at_most_once", max_crashes=9)
    crash(core)
    assert (core.get(1).state, core.get(1).reason, core.get(1).crashes) == ("dead", "abandoned", 1)


@pytest.mark.parametrize("down_ms", [0, 100_000])
def test_at_most_once_job_is_not_delivered_again_after_a_restart(core, down_ms):
    core.submit(delivery="at_most_once")
    core.held()
    core.restart(down_ms=down_ms)
    assert core.lease_ids() == []
    core.wait(30_000)
    assert (core.get(1).state, core.get(1).reason) == ("dead", "abandoned")
    assert core.lease_ids() == []


def test_at_most_once_job_held_over_a_restart_can_be_acked(core):
    core.submit(delivery="at_most_once")
    token, _ = core.held()
    core.restart()
    assert core.ack(token, 1) == [(1, 1, "ok")]


def test_released_at_most_once_job_was_not_worked_on(core):
    core.submit(delivery="at_most_once")
    token, _ = core.held()
    core.release(token, 1)
    assert core.lease_ids() == [1]


# --- history ------------------------------------------------------------------------------------


def test_history_names_attempt_cause_time_worker_and_error(core):
    core.submit()
    token, _ = core.held(caller=model.Caller(worker="box"))
    core.move(500)
    core.fail(token, 1, error="no", retry_in_ms=0)
    crash(core)
    first, second = core.get(1).attempts
    assert (first.attempt, first.cause, first.worker, first.error) == (1, "error", "box", "no")
    assert (second.attempt, second.cause, second.worker) == (2, "crash", "")
    assert second.error == "lease of 1000 ms ran out"
    assert second.wall_ms - first.wall_ms == 1_000


def test_history_keeps_the_newest_sixteen(core):
    core.submit(max_retries=1_000)
    for number in range(1, 20):
        token, _ = core.held()
        core.fail(token, 1, error=str(number), retry_in_ms=0)
        assert len(core.get(1).attempts) == min(number, 16)
    assert [attempt.attempt for attempt in core.get(1).attempts] == list(range(4, 20))
    assert core.get(1).errors == 19


def test_done_job_keeps_the_story_of_its_failures(core):
    core.submit()
    token, _ = core.held()
    core.fail(token, 1, error="no", retry_in_ms=0)
    token, _ = core.held()
    core.ack(token, 1, result=b"r")
    shown = core.get(1)
    assert (shown.state, shown.errors, len(shown.attempts), shown.result) == ("done", 1, 1, b"r")


# --- policies -----------------------------------------------------------------------------------

FIXED = RetryPolicy(kind="fixed", base_ms=700, jitter_percent=0)
LIST = RetryPolicy(kind="list", delays_ms=(10, 20), jitter_percent=0)


def test_errors_wait_by_the_policy_of_the_job(core):
    core.submit(retry=LIST, max_retries=3)
    for delay_ms in (10, 20, 20):
        error(core)
        assert core.get(1).due_ms_left == delay_ms
        until_ready(core)
    assert core.get(1).retry == LIST


def test_first_crash_is_ready_at_once_and_later_ones_wait_by_the_policy(core):
    core.submit(retry=LIST)
    crash(core)
    assert core.states(1) == ["ready"]
    for delay_ms in (10, 20, 20):
        crash(core)
        assert core.get(1).due_ms_left == delay_ms
        until_ready(core)


def test_policy_of_a_fail_holds_for_this_time(core):
    core.submit(retry=LIST)
    token, job_id = core.held()
    core.fail(token, job_id, retry=FIXED)
    assert (core.get(1).due_ms_left, core.get(1).retry) == (700, LIST)
    until_ready(core)
    error(core)
    assert core.get(1).due_ms_left == 20


def test_policy_of_a_fail_is_no_further_retry(core):
    core.submit(max_retries=0)
    token, job_id = core.held()
    core.fail(token, job_id, retry=FIXED)
    assert core.get(1).reason == "retries"


def test_policy_survives_restarts_and_snapshots(core):
    core.submit(retry=FIXED)
    core.check()
    core.restart(parts=parts_of(core.engine.begin_dump()))
    error(core)
    assert core.get(1).due_ms_left == 700
    core.check()


def test_delay_of_nothing_is_at_once(core):
    core.submit(retry=RetryPolicy(kind="list", delays_ms=(0,)))
    error(core)
    assert core.states(1) == ["ready"]


def test_job_that_says_nothing_shows_no_policy(core):
    core.submit()
    assert core.get(1).retry is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retry_in_ms": 5, "retry": FIXED}, "retry_in_ms = 5 and retry.kind = fixed: give one of them"),
        ({"dead": True, "retry": FIXED}, "retry.kind = fixed: with dead there is no retry"),
        ({"retry": RetryPolicy(kind="list")}, "retry.delays_ms is missing"),
    ],
)
def test_fail_that_contradicts_itself_is_refused(core, fields, message):
    core.submit()
    token, job_id = core.held()
    with pytest.raises(InvalidArgument, match=message):
        core.fail(token, job_id, **fields)
    assert core.states(1) == ["leased"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retry": RetryPolicy(kind="list")}, "retry.delays_ms is missing"),
        ({"retry": FIXED, "delivery": "at_most_once"}, "retry.kind = fixed: with delivery at_most_once"),
    ],
)
def test_submit_with_a_policy_that_makes_no_sense_is_refused(core, fields, message):
    with pytest.raises(InvalidArgument, match=message):
        core.submit(**fields)
    with pytest.raises(InvalidArgument, match="groups.0..retry"):
        core.submit_jobs(2, **fields)
