"""requeue, cancel and purge, by ids and by filter."""

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.errors import InvalidArgument, QueueNotFound, WrongState
from tests.support.core import Core, ids_of

STATES = ("delayed", "ready", "leased", "done", "dead", "cancelled")


def one_in_each_state(core: Core, queue: str = "q") -> dict[str, int]:
    """Return state -> id."""
    *_, five = core.submit_jobs(5, queue=queue)
    leased = core.lease(queue, count=4)
    one, two, three, four = ids_of(leased)
    core.ack(leased.token, two)
    core.fail(leased.token, three, dead=True)
    core.fail(leased.token, four, retry_in_ms=5_000)
    core.cancel(five)
    ready = core.submit(queue=queue)
    return {"leased": one, "done": two, "dead": three, "delayed": four, "cancelled": five, "ready": ready}


@pytest.mark.parametrize(
    ("kind", "accepted", "after"),
    [
        (c.Cancel, {"delayed", "ready"}, "cancelled"),
        (c.Requeue, {"dead"}, "ready"),
        (c.Purge, {"delayed", "ready", "dead"}, "gone"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_bulk_action_by_ids_judges_each_job_by_its_state(core, kind, accepted, after, dry_run, state):
    job_id = one_in_each_state(core)[state]
    swept = core.do(kind(ids=[(job_id, 1), (99, 2)], dry_run=dry_run))
    code = "ok" if state in accepted else "wrong_state"
    assert swept == c.Swept(
        count=int(code == "ok"), cursor=None, results=[(job_id, 1, code), (99, 2, "job_not_found")]
    )
    assert core.states(job_id) == [after if code == "ok" and not dry_run else state]


@pytest.mark.parametrize(
    ("kind", "meant"),
    [(c.Cancel, {"delayed", "ready"}), (c.Requeue, {"dead"}), (c.Purge, {"delayed", "ready"})],
)
def test_filter_without_a_state_means_what_the_action_is_for(core, kind, meant):
    ids = one_in_each_state(core)
    one_in_each_state(core, "other")
    swept = core.do(kind(filter=c.JobFilter(queue="q")))
    assert swept == c.Swept(count=len(meant), cursor=None, results=[])
    assert {state for state, job_id in ids.items() if core.states(job_id) != [state]} == meant
    assert core.state.counts()[model.JobState.DEAD] == 2 - ("dead" in meant)


def test_filter_without_a_queue_means_all_queues(core):
    one_in_each_state(core)
    one_in_each_state(core, "other")
    assert core.do(c.Cancel(filter=c.JobFilter())).count == 4


@pytest.mark.parametrize(
    ("kind", "state"), [(c.Purge, "dead"), (c.Purge, "ready"), (c.Cancel, "delayed"), (c.Requeue, "dead")]
)
def test_filter_with_a_state_means_only_that(core, kind, state):
    ids = one_in_each_state(core)
    assert core.do(kind(filter=c.JobFilter(queue="q", state=state))).count == 1
    assert [name for name, job_id in ids.items() if core.states(job_id) != [name]] == [state]


@pytest.mark.parametrize(
    ("kind", "state", "names"),
    [
        (c.Cancel, "leased", "delayed ready"),
        (c.Requeue, "done", "dead"),
        (c.Purge, "done", "delayed ready dead"),
    ],
)
def test_filter_with_a_state_that_cannot_be_meant_is_refused(core, kind, state, names):
    with pytest.raises(WrongState) as refusal:
        core.do(kind(filter=c.JobFilter(state=state)))
    assert str(refusal.value) == f"filter.state = {state}: {kind.verb} takes {names}"


@pytest.mark.parametrize("kind", [c.Cancel, c.Requeue, c.Purge])
def test_ids_and_filter_exclude_each_other_and_one_is_needed(core, kind):
    with pytest.raises(InvalidArgument, match=f"{kind.verb} takes either ids or filter"):
        core.do(kind())
    with pytest.raises(InvalidArgument, match=f"{kind.verb} takes either ids or filter"):
        core.do(kind(ids=[(1, 1)], filter=c.JobFilter()))


@pytest.mark.parametrize(("field", "value"), [("cursor", 5), ("limit", 9)])
def test_paging_makes_no_sense_with_ids(core, field, value):
    core.submit()
    with pytest.raises(InvalidArgument, match=f"{field} = {value}: with ids"):
        core.do(c.Cancel(ids=[(1, 1)], **{field: value}))


def test_unknown_queue_and_doubled_id_are_refused(core):
    with pytest.raises(QueueNotFound, match="queue = 'nowhere': it has no jobs"):
        core.do(c.Purge(filter=c.JobFilter(queue="nowhere")))
    with pytest.raises(InvalidArgument, match="job_id = 2 is named twice"):
        core.do(c.Purge(ids=[(1, 2), (2, 1)]))


def test_cursor_leads_through_all_jobs_and_dry_run_changes_none(core):
    ids = core.submit_jobs(7, queue="q")
    for dry_run in (True, False):
        cursor: int | None = 0
        counts = []
        while cursor is not None:
            swept = core.do(c.Cancel(filter=c.JobFilter(queue="q"), cursor=cursor, limit=3, dry_run=dry_run))
            counts.append(swept.count)
            cursor = swept.cursor
        assert counts == [3, 3, 1]
        assert core.states(*ids) == ["ready" if dry_run else "cancelled"] * 7


def test_call_that_looked_at_enough_jobs_answers_with_a_cursor(core, monkeypatch):
    monkeypatch.setattr(model, "SCAN_JOBS_MAX", 4)
    core.submit_jobs(6, queue="a")
    core.submit(queue="b")
    swept = core.do(c.Cancel(filter=c.JobFilter(queue="b")))
    assert (swept.count, swept.cursor) == (0, 5)
    swept = core.do(c.Cancel(filter=c.JobFilter(queue="b"), cursor=5))
    assert (swept.count, swept.cursor) == (1, None)


def test_neighbours_in_several_states_and_queues_are_one_action(core):
    core.submit(queue="a")
    core.submit(queue="a", delay_ms=5)
    core.submit(queue="a", run_at_ms=core.wall_ms + 5)
    core.submit(queue="b")
    assert core.cancel(1, 2, 3, 4).results == [(1, 4, "ok")]
    core.submit(queue="a", delay_ms=5)
    core.submit(queue="a")
    core.state.check()
    assert core.purge(5, 6).results == [(5, 2, "ok")]
    core.wait(10)
    assert core.lease_ids("a", "b", count=9) == []


def test_requeued_job_has_new_budgets_its_history_and_a_higher_token(core):
    core.submit(b"work", max_retries=0)
    token, _ = core.held()
    core.fail(token, 1, error="no")
    core.requeue(1)
    shown = core.get(1)
    assert (shown.state, shown.errors, shown.crashes, shown.reason) == ("ready", 0, 0, None)
    assert (shown.attempt, len(shown.attempts), shown.error) == (1, 1, "no")
    again = core.lease()
    assert (again.jobs[0].attempt, again.jobs[0].payload) == (2, b"work")
    assert again.token > token
    assert core.ack(token, 1) == [(1, 1, "lease_lost")]
    core.fail(again.token, 1)
    assert (core.get(1).reason, core.get(1).errors) == ("retries", 1)


def test_requeue_gives_new_crashes_too(core):
    core.submit(max_crashes=1)
    for _ in range(2):
        core.held(lease_ms=1_000)
        core.wait(1_000)
    assert core.get(1).reason == "crashes"
    core.requeue(1)
    core.held(lease_ms=1_000)
    core.wait(1_000)
    assert (core.get(1).state, core.get(1).crashes) == ("ready", 1)


def test_requeue_from_the_middle_keeps_the_order_of_the_dead(core):
    core.submit_jobs(3)
    leased = core.lease(count=3)
    core.fail(leased.token, 1, 2, 3, dead=True)
    core.requeue(2)
    core.state.check()
    assert core.states(1, 2, 3) == ["dead", "ready", "dead"]


def test_purged_job_is_unknown_and_its_id_is_not_used_again(core):
    core.submit()
    core.purge(1)
    assert core.purge(1).results == [(1, 1, "job_not_found")]
    assert core.submit() == 2


def test_cancelled_job_keeps_no_payload(core):
    core.submit(b"secret")
    core.cancel(1)
    assert (core.get(1).state, core.get(1).payload) == ("cancelled", None)
