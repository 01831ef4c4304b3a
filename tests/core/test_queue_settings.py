"""What is set of a queue: defaults for its jobs, how long they are kept, how many fit in, and whether it is paused."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.core.changes import QueueSet, QueuesRestored
from jqd.core.model import QueueSettings, RetryPolicy
from jqd.errors import InvalidArgument, Overloaded, QueueFull, QueueNotFound
from tests.support.core import Core, ids_of

FIXED = RetryPolicy(kind="fixed", base_ms=5_000, jitter_percent=0)


def set_queue(core: Core, queue: str = "q", **said: Any) -> Any:
    return core.do(c.SetQueue(queue=queue, **said))


def shown(core: Core, queue: str = "q") -> Any:
    return core.do(c.GetQueue(queue=queue))


def names(core: Core) -> list[str]:
    return [one.queue for one in core.do(c.Queues()).queues]


# --- defaults ---------------------------------------------------------------------------------


def test_what_is_set_holds_for_jobs_that_say_nothing_themselves(core):
    set_queue(core, lease_ms=5_000, max_retries=1, max_crashes=2, retry=FIXED)
    quiet = core.submit(queue="q")
    loud = core.submit(queue="q", lease_ms=9_000, max_retries=7, max_crashes=8, retry=RetryPolicy())
    one, two = core.get(quiet), core.get(loud)
    assert (one.lease_ms, one.max_retries, one.max_crashes, one.retry) == (5_000, 1, 2, FIXED)
    assert (two.lease_ms, two.max_retries, two.max_crashes, two.retry) == (9_000, 7, 8, RetryPolicy())


def test_a_change_holds_for_jobs_that_are_there_already(core):
    job_id = core.submit(queue="q")
    set_queue(core, lease_ms=5_000, max_retries=0)
    leased = core.lease("q")
    assert leased.lease_ms_left == 5_000
    core.fail(leased.token, job_id)
    assert core.get(job_id).reason == "retries"


def test_the_retry_policy_of_the_queue_says_when_the_next_attempt_is(core):
    set_queue(core, retry=FIXED)
    job_id = core.submit(queue="q")
    token, _ = core.held("q")
    core.fail(token, job_id)
    assert core.get(job_id).due_ms_left == 5_000
    core.check()


def test_an_at_most_once_job_is_not_retried_whatever_the_queue_says(core):
    set_queue(core, max_retries=5)
    job_id = core.submit(queue="q", delivery="at_most_once")
    token, _ = core.held("q")
    core.fail(token, job_id)
    assert core.states(job_id) == ["dead"]


def test_retention_follows_the_queue_at_once(core):
    core.submit_jobs(2, queue="q")
    leased = core.lease("q", count=2)
    core.ack(leased.token, 1)
    core.fail(leased.token, 2, dead=True)
    core.wait(10_000)
    set_queue(core, retention_ms=10_001, dead_retention_ms=20_000)
    core.check()
    core.wait(0)
    assert core.states(1, 2) == ["done", "dead"]
    core.wait(1)
    assert core.states(1, 2) == ["gone", "dead"]
    core.wait(9_999)
    assert core.states(2) == ["gone"]
    core.submit(queue="other")
    core.ack(core.lease("other").token, 3)
    core.wait(20_000)
    assert core.states(3) == ["done"]


# --- setting ----------------------------------------------------------------------------------


def test_what_is_not_said_stays_and_reset_begins_anew(core):
    set_queue(core, lease_ms=5_000, max_retries=1)
    set_queue(core, max_retries=2, length_max=9)
    details = shown(core)
    assert (details.lease_ms, details.max_retries, details.length_max) == (5_000, 2, 9)
    set_queue(core, reset=True, max_crashes=1)
    details = shown(core)
    assert (details.lease_ms, details.max_retries, details.length_max) == (30_000, 3, 0)
    assert details.max_crashes == 1 and details.retry == RetryPolicy()
    assert (details.retention_ms, details.dead_retention_ms) == (3_600_000, 30 * model.DAY_MS)


def test_setting_what_is_set_already_changes_nothing(core):
    set_queue(core, lease_ms=5_000)
    lsn = core.state.lsn
    assert set_queue(core, lease_ms=5_000) == c.QueueChanged(queue="q", paused=False)
    assert core.do(c.Resume(queue="q")) == c.QueueChanged(queue="q", paused=False)
    assert core.state.lsn == lsn


def test_a_set_queue_is_there_without_jobs_until_it_is_reset(core):
    set_queue(core)
    assert names(core) == ["q"]
    core.submit(queue="q")
    core.submit(queue="other")
    core.purge(1, 2)
    assert names(core) == ["q"]
    core.check()
    set_queue(core, reset=True)
    assert names(core) == []
    with pytest.raises(QueueNotFound, match="queue = 'q': it has no jobs and no settings"):
        shown(core)


def test_a_queue_with_jobs_outlives_its_settings(core):
    set_queue(core, lease_ms=5_000)
    core.submit(queue="q")
    set_queue(core, reset=True)
    assert names(core) == ["q"]
    core.purge(1)
    assert names(core) == []


def test_what_was_set_is_in_the_log_and_in_snapshots(core):
    set_queue(core, lease_ms=5_000, retry=FIXED, length_max=1)
    core.do(c.Pause(queue="p"))
    core.check()
    dump = core.engine.begin_dump()
    set_queue(core, lease_ms=6_000)
    images = []
    while part := dump.take_slice():
        images += part
    (restored,) = [image for image in images if isinstance(image, QueuesRestored)]
    assert restored.queues == {
        "q": QueueSettings(lease_ms=5_000, retry=FIXED, length_max=1, kept=True),
        "p": QueueSettings(paused=True),
    }
    core.restart()
    assert shown(core).lease_ms == 6_000
    assert shown(core, "p").info.paused


def test_one_fact_says_all_that_holds(core):
    core.do(c.SetQueue(queue="q", lease_ms=5_000))
    core.execute(c.SetQueue(queue="q", max_retries=1))
    (fact,) = core.turn()
    assert fact == QueueSet("q", QueueSettings(lease_ms=5_000, max_retries=1, kept=True))


@pytest.mark.parametrize("command", [c.SetQueue(queue="a/b"), c.Pause(queue="a/b")])
def test_a_queue_needs_a_name(core, command):
    with pytest.raises(InvalidArgument, match="queue = 'a/b': a name must match"):
        core.do(command)


def test_a_policy_that_makes_no_sense_is_refused(core):
    with pytest.raises(InvalidArgument, match="retry.delays_ms is missing"):
        set_queue(core, retry=RetryPolicy(kind="list"))
    assert names(core) == []


def test_the_number_of_set_queues_is_bounded(core, monkeypatch):
    monkeypatch.setattr(model, "QUEUES_SET_MAX", 2)
    set_queue(core, "a")
    core.do(c.Pause(queue="b"))
    with pytest.raises(Overloaded, match="2 queues have settings: the limit is 2"):
        set_queue(core, "c")
    with pytest.raises(Overloaded, match="2 queues have settings"):
        core.do(c.Pause(queue="c"))
    set_queue(core, "a", lease_ms=5_000)
    set_queue(core, "a", reset=True)
    set_queue(core, "c")


# --- pause ------------------------------------------------------------------------------------


def test_a_paused_queue_hands_out_nothing_and_takes_jobs(core):
    core.submit(queue="q")
    assert core.do(c.Pause(queue="q")) == c.QueueChanged(queue="q", paused=True)
    assert core.lease_ids("q") == []
    core.submit(queue="other")
    assert core.lease_ids("q", "other", count=2) == [2]
    assert core.submit(queue="q") == 3
    core.restart()
    assert core.lease_ids("q", count=9) == []
    core.do(c.Resume(queue="q"))
    assert core.lease_ids("q", count=9) == [1, 3]


def test_a_held_job_of_a_paused_queue_goes_on(core):
    core.submit(queue="q")
    token, job_id = core.held("q")
    core.do(c.Pause(queue="q"))
    assert core.extend(token, job_id).results == [(1, 1, "ok")]
    assert core.ack(token, job_id) == [(1, 1, "ok")]


def test_a_lease_waits_for_a_paused_queue_and_is_served_when_it_goes_on(core):
    core.submit(queue="q")
    core.do(c.Pause(queue="q"))
    assert core.do(c.Lease(queues=["q"], wait_ms=20_000), ticket="w") is None
    core.submit(queue="q")
    assert core.answers == []
    core.do(c.Resume(queue="q"))
    ((ticket, _, leased),) = core.answers
    assert (ticket, ids_of(leased)) == ("w", [1])


def test_a_queue_is_paused_before_its_first_job_and_stays_so_over_a_reset(core):
    core.do(c.Pause(queue="q"))
    set_queue(core, reset=True)
    core.submit(queue="q")
    assert core.lease_ids("q") == []
    core.do(c.Resume(queue="q"))
    assert core.lease_ids("q") == [1]


def test_resume_of_a_queue_that_is_not_there(core):
    with pytest.raises(QueueNotFound):
        core.do(c.Resume(queue="q"))


# --- length -----------------------------------------------------------------------------------


def test_a_full_queue_refuses_new_jobs_with_its_figures(core):
    set_queue(core, length_max=2)
    core.submit(queue="q")
    core.submit(queue="q", delay_ms=5_000)
    with pytest.raises(QueueFull) as refusal:
        core.submit(queue="q")
    assert str(refusal.value) == "queue = q: it holds 2 jobs and would hold 3: the limit is 2"
    assert refusal.value.details == {"length": 2, "length_max": 2}
    assert refusal.value.retryable
    assert core.submit(queue="other") == 3
    set_queue(core, length_max=0)
    assert core.submit(queue="q") == 4


def test_held_jobs_count_and_finished_ones_do_not(core):
    set_queue(core, length_max=1)
    core.submit(queue="q", max_retries=0)
    token, _ = core.held("q")
    with pytest.raises(QueueFull):
        core.submit(queue="q")
    core.fail(token, 1)
    assert core.submit(queue="q") == 2


def test_what_comes_back_is_not_refused(core):
    core.submit(queue="q", max_retries=0)
    token, _ = core.held("q")
    core.fail(token, 1)
    core.submit_jobs(3, queue="q")
    set_queue(core, length_max=2)
    core.requeue(1)
    token, job_id = core.held("q")
    core.release(token, job_id)
    assert core.states(1, 2, 3, 4) == ["ready"] * 4


def test_submit_many_is_taken_whole_or_not_at_all(core):
    set_queue(core, length_max=3)
    groups = [
        c.SubmitGroup(queue="q", payloads=[b""] * 2),
        c.SubmitGroup(queue="other", payloads=[b""]),
        c.SubmitGroup(queue="q", payloads=[b""] * 2, priority=1),
    ]
    with pytest.raises(QueueFull, match="it holds 0 jobs and would hold 4"):
        core.do(c.SubmitMany(groups=groups))
    assert core.state.pages.next_id == 1
    core.do(c.SubmitMany(groups=groups[:2]))
    assert core.submit(queue="q") == 4


def test_of_submits_that_came_together_those_that_fit_are_taken(core):
    set_queue(core, length_max=2)
    run = [(n, c.Submit(queue=queue)) for n, queue in enumerate(["q", "q", "q", "other", "q"], 1)]
    got = core.submit_run(run)
    assert [one if isinstance(one, str) else one.job_id for one in got] == [
        1,
        2,
        "queue_full",
        3,
        "queue_full",
    ]


def test_a_submit_that_is_answered_with_a_job_that_is_there_needs_no_room(core):
    set_queue(core, length_max=1)
    keyed = c.Submit(queue="q", dedupe_key="k")
    first = core.do(keyed)
    again = core.do(keyed)
    assert (again.job_id, again.existing) == (first.job_id, True)
    with pytest.raises(QueueFull):
        core.do(c.Submit(queue="q", dedupe_key="l"))
    group = c.SubmitGroup(queue="q", payloads=[b""], dedupe_key="k")
    assert core.do(c.SubmitMany(groups=[group])).jobs == [(first.job_id, 1, True)]
    with pytest.raises(QueueFull):
        core.do(c.SubmitMany(groups=[c.SubmitGroup(queue="q", payloads=[b""], dedupe_key="l")]))


# --- what is measured -------------------------------------------------------------------------


def test_the_age_of_the_oldest_ready_job(core):
    core.submit(queue="q", priority=5)
    core.wait(1_000)
    core.submit(queue="q")
    core.wait(500)
    assert shown(core).info.ready_age_ms == 1_500
    (info,) = core.do(c.Queues()).queues
    assert info.ready_age_ms == 1_500
    core.held("q")
    assert shown(core).info.ready_age_ms == 500
    core.held("q")
    assert shown(core).info.ready_age_ms is None


def test_waits_and_runs_are_counted_by_powers_of_two(core):
    core.submit_jobs(3, queue="q")
    core.wait(1_000)
    leased = core.lease("q", count=3)
    core.wait(7)
    core.ack(leased.token, 1, 2)
    core.wait(1)
    core.ack(leased.token, 3)
    details = shown(core)
    assert details.waits == [(1_024, 3)]
    assert details.runs == [(8, 2), (16, 1)]


def test_a_wait_of_no_time_and_jobs_that_came_at_different_times(core):
    core.submit(queue="q")
    core.wait(10)
    core.submit(queue="q")
    leased = core.lease("q", count=2)
    assert shown(core).waits == [(1, 1), (16, 1)]
    core.fail(leased.token, 1, dead=True)
    assert shown(core).runs == []
    core.restart()
    assert shown(core).waits == []


def test_showing_queues_counts_as_work(core):
    for priority in range(50):
        core.submit(queue="q", priority=priority)
    work = core.state.work
    core.do(c.Queues())
    assert core.state.work - work == 51
