"""ack, fail, extend and release: what they have in common, and what each does."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.errors import InvalidArgument, PayloadTooLarge
from tests.support.core import Core
from tests.support.effort import steps_of

VERBS = ("ack", "fail", "extend", "release")


def command(verb: str, *items: tuple[int, list[tuple[int, int]]]) -> c.Command[Any]:
    if verb == "ack":
        return c.Ack(items=[(token, ranges, None) for token, ranges in items])
    kind: Any = {"fail": c.Fail, "extend": c.Extend, "release": c.Release}[verb]
    made: c.Command[Any] = kind(items=list(items))
    return made


def verdicts(core: Core, verb: str, *items: tuple[int, list[tuple[int, int]]]) -> list[c.Verdict]:
    return core.do(command(verb, *items)).results  # type: ignore[no-any-return]


# --- what holds for all four --------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_current_token_is_accepted_by(core, verb):
    core.submit()
    token, _ = core.held()
    assert verdicts(core, verb, (token, [(1, 1)])) == [(1, 1, "ok")]


@pytest.mark.parametrize("verb", VERBS)
def test_stale_token_is_refused_by(core, verb):
    core.submit()
    stale, _ = core.held()
    core.release(stale, 1)
    token, _ = core.held()
    lsn = core.state.lsn
    assert verdicts(core, verb, (stale, [(1, 1)])) == [(1, 1, "lease_lost")]
    assert core.state.lsn == lsn, "nothing has changed"
    assert core.job(1).lease.token == token


@pytest.mark.parametrize("verb", VERBS)
def test_token_of_another_job_is_refused_by(core, verb):
    core.submit_jobs(2)
    token, _ = core.held()
    other, _ = core.held()
    assert verdicts(core, verb, (token, [(2, 1)]), (other, [(1, 1)])) == [
        (2, 1, "lease_lost"),
        (1, 1, "lease_lost"),
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_token_of_a_job_that_is_not_leased_is_refused_by(core, verb):
    core.submit_jobs(4)
    leased = core.lease(count=3)
    core.ack(leased.token, 1)
    core.fail(leased.token, 2)
    core.fail(leased.token, 3, dead=True)
    assert core.states(1, 2, 3, 4) == ["done", "delayed", "dead", "ready"]
    assert verdicts(core, verb, (leased.token, [(1, 4)])) == [(1, 4, "lease_lost")]


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_job_is_named_by(core, verb):
    assert verdicts(core, verb, (1, [(7, 2)])) == [(7, 2, "job_not_found")]
    top = model.JOB_ID_MAX
    assert verdicts(core, verb, (1, [(top, 1)])) == [(top, 1, "job_not_found")]


@pytest.mark.parametrize("verb", VERBS)
def test_deadline_is_the_very_ms_at_which_a_lease_is_over_for(core, verb):
    core.submit_jobs(2)
    token, _ = core.held(lease_ms=1_000)
    core.move(999)
    assert core.execute(command(verb, (token, [(1, 1)]))).results == [(1, 1, "ok")]
    core.turn()
    token, job_id = core.held(lease_ms=1_000)
    core.move(1_000)
    assert core.execute(command(verb, (token, [(job_id, 1)]))).results == [(job_id, 1, "lease_lost")]


@pytest.mark.parametrize("verb", VERBS)
def test_verdicts_are_one_per_run_in_request_order(core, verb):
    core.submit_jobs(6)
    one = core.lease(count=3)
    two = core.lease(count=3)
    core.release(one.token, 2)
    got = verdicts(core, verb, (two.token, [(5, 2), (9, 1)]), (one.token, [(1, 4)]))
    assert got == [
        (5, 2, "ok"),
        (9, 1, "job_not_found"),
        (1, 1, "ok"),
        (2, 1, "lease_lost"),
        (3, 1, "ok"),
        (4, 1, "lease_lost"),
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_adjoining_runs_with_one_verdict_are_one(core, verb):
    core.submit_jobs(4)
    one, two = core.lease(count=2), core.lease(count=2)
    assert verdicts(core, verb, (one.token, [(1, 1), (2, 1)]), (two.token, [(3, 2)])) == [(1, 4, "ok")]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("ranges", [[(1, 1), (1, 1)], [(1, 3), (2, 1)], [(3, 2), (1, 3)]])
def test_job_named_twice_is_refused_by(core, verb, ranges):
    core.submit_jobs(4)
    leased = core.lease(count=4)
    with pytest.raises(InvalidArgument, match="job_id = [123] is named twice in one request"):
        core.do(command(verb, (leased.token, ranges)))
    with pytest.raises(InvalidArgument, match="named twice"):
        core.do(command(verb, *((leased.token, [one]) for one in ranges)))
    assert core.states(1, 2, 3, 4) == ["leased"] * 4


@pytest.mark.parametrize("verb", VERBS)
def test_more_jobs_than_the_limit_are_refused_by(core, verb):
    with pytest.raises(InvalidArgument) as refusal:
        core.do(command(verb, (1, [(1, 10_000)]), (2, [(20_000, 1)])))
    assert str(refusal.value) == "10001 jobs: the limit is 10000 a request"
    assert verdicts(core, verb, (1, [(1, 10_000)])) == [(1, 10_000, "job_not_found")]


@pytest.mark.parametrize("verb", VERBS)
def test_token_is_a_bearer_for(core, verb):
    core.submit()
    token, _ = core.held(caller=model.Caller(worker="one"))
    reply = core.do(command(verb, (token, [(1, 1)])), model.Caller(worker="two"), ticket="elsewhere")
    assert reply.results == [(1, 1, "ok")]


# --- ack ----------------------------------------------------------------------------------------


def test_acked_job_is_done_without_its_payload(core):
    core.submit(b"work")
    token, _ = core.held()
    core.ack(token, 1)
    shown = core.get(1)
    assert (shown.state, shown.payload, shown.payload_bytes, shown.result) == ("done", None, 0, None)
    assert core.lease_ids() == []


def test_second_ack_is_lease_lost(core):
    core.submit()
    token, _ = core.held()
    assert [core.ack(token, 1), core.ack(token, 1)] == [[(1, 1, "ok")], [(1, 1, "lease_lost")]]


def test_each_item_of_an_ack_keeps_its_own_result(core):
    core.submit_jobs(4)
    leased = core.lease(count=4)
    items = [
        (leased.token, [(1, 1)], b"one"),
        (leased.token, [(2, 2)], b"two"),
        (leased.token, [(4, 1)], None),
    ]
    core.do(c.Ack(items=items, encoding="text"))
    assert [core.get(job_id).result for job_id in range(1, 5)] == [b"one", b"two", b"two", None]
    assert [core.get(job_id).result_encoding for job_id in (1, 4)] == ["text", "raw"]
    assert core.state.result_bytes == 9


def test_result_of_a_lost_lease_is_dropped(core):
    core.submit()
    token, _ = core.held()
    core.ack(token, 1)
    assert core.ack(token, 1, result=b"late") == [(1, 1, "lease_lost")]
    assert core.get(1).result is None


def test_empty_result_is_a_result(core):
    core.submit()
    token, _ = core.held()
    core.ack(token, 1, result=b"")
    assert core.get(1).result == b""


def test_result_over_the_limit_is_refused_and_at_the_limit_taken(core):
    core.submit()
    token, _ = core.held()
    with pytest.raises(PayloadTooLarge) as refusal:
        core.ack(token, 1, result=b"x" * (model.RESULT_BYTES_MAX + 1))
    assert str(refusal.value) == "items[0] result = 65537 bytes: the limit is 65536"
    assert core.states(1) == ["leased"]
    assert core.ack(token, 1, result=b"x" * model.RESULT_BYTES_MAX) == [(1, 1, "ok")]


def test_result_error_makes_the_job_dead_as_refused(core):
    core.submit(b"work", max_retries=1_000)
    token, _ = core.held(caller=model.Caller(worker="box"))
    core.ack(token, 1, result_error="bad input")
    shown = core.get(1)
    assert (shown.state, shown.reason, shown.error, shown.payload) == (
        "dead",
        "refused",
        "bad input",
        b"work",
    )
    assert (shown.errors, shown.crashes) == (1, 0)
    assert [(a.attempt, a.cause, a.worker, a.error) for a in shown.attempts] == [
        (1, "error", "box", "bad input")
    ]


def test_result_beside_result_error_is_refused(core):
    core.submit()
    token, _ = core.held()
    with pytest.raises(
        InvalidArgument, match=r"items\[0\] result = 1 bytes: with result_error there is none"
    ):
        core.ack(token, 1, result=b"r", result_error="e")


# --- extend -------------------------------------------------------------------------------------


def test_extend_without_a_time_gives_what_the_lease_was_given(core):
    core.submit()
    token, _ = core.held(lease_ms=5_000)
    core.wait(3_000)
    assert core.extend(token, 1) == c.Extended(results=[(1, 1, "ok")], lease_ms_left=5_000)
    core.wait(4_999)
    assert core.states(1) == ["leased"]
    core.wait(1)
    assert core.states(1) == ["ready"]


def test_extend_may_also_shorten(core):
    core.submit()
    token, _ = core.held()
    assert core.extend(token, 1, lease_ms=1_000).lease_ms_left == 1_000
    core.wait(1_000)
    assert core.states(1) == ["ready"]


def test_extend_of_a_part_leaves_the_rest_its_deadline(core):
    core.submit_jobs(3)
    leased = core.lease(count=3, lease_ms=2_000)
    core.wait(1_000)
    core.extend(leased.token, 2)
    core.wait(1_000)
    assert core.states(1, 2, 3) == ["ready", "leased", "ready"]
    assert core.ack(leased.token, 2) == [(2, 1, "ok")]


def test_extend_answers_with_the_shortest_time_given(core):
    core.submit_jobs(2)
    leased = core.lease(count=2, lease_ms=4_000)
    core.extend(leased.token, 2, lease_ms=9_000)
    assert core.extend(leased.token, 1, 2).lease_ms_left == 4_000
    assert [core.get(job_id).lease_ms_left for job_id in (1, 2)] == [4_000, 9_000]
    core.extend(leased.token, 1, 2, lease_ms=5_000)
    assert [core.get(job_id).lease_ms_left for job_id in (1, 2)] == [5_000, 5_000]


def test_extend_of_nothing_has_no_time_left(core):
    assert core.extend(1, 1) == c.Extended(results=[(1, 1, "job_not_found")], lease_ms_left=0)


def test_effort_for_a_job_does_not_grow_with_the_parts_of_its_grant():
    def effort(count: int) -> float:
        core = Core()
        core.submit_jobs(count)
        token = core.lease(count=count).token
        items = [(token, [(job_id, 1)]) for job_id in range(1, count + 1)]

        def split_and_end() -> None:
            assert core.do(c.Extend(items=items, lease_ms=60_000)).results == [(1, count, "ok")]
            for job_id in range(1, count + 1, 2):
                core.extend(token, job_id, lease_ms=1_000 + job_id)
            assert core.ack(token, *range(1, count + 1)) == [(1, count, "ok")]

        steps = steps_of(split_and_end)
        core.check()
        return steps / count

    # Eight times the parts, and a logarithm for the timers; comparing each part with all others makes it 5 times.
    assert effort(400) < 1.5 * effort(50)


def test_parts_of_a_grant_with_one_deadline_expire_together(core):
    core.submit_jobs(4)
    leased = core.lease(count=4, lease_ms=2_000)
    core.extend(leased.token, 1)
    core.extend(leased.token, 2)
    core.extend(leased.token, 3, lease_ms=3_000)
    core.state.check()
    core.ack(leased.token, 1)
    core.state.check()
    core.wait(2_000)
    assert core.states(1, 2, 3, 4) == ["done", "ready", "leased", "ready"]


# --- fail ---------------------------------------------------------------------------------------


def test_failed_job_waits_for_its_backoff(core):
    core.submit()
    token, _ = core.held()
    core.fail(token, 1, error="no route")
    shown = core.get(1)
    assert (shown.state, shown.errors, shown.crashes, shown.error) == ("delayed", 1, 0, "no route")
    assert 800 <= shown.due_ms_left <= 1_200


@pytest.mark.parametrize(("retry_in_ms", "state"), [(0, "ready"), (1, "delayed"), (86_400_000, "delayed")])
def test_retry_in_ms_replaces_the_backoff(core, retry_in_ms, state):
    core.submit()
    token, _ = core.held()
    core.fail(token, 1, retry_in_ms=retry_in_ms)
    assert (core.get(1).state, core.get(1).due_ms_left or 0) == (state, retry_in_ms)


def test_fail_with_dead_kills_whatever_retries_are_left(core):
    core.submit(max_retries=1_000)
    token, _ = core.held()
    core.fail(token, 1, dead=True, error="no use")
    assert (core.get(1).state, core.get(1).reason, core.get(1).error) == ("dead", "killed", "no use")


def test_dead_beside_retry_in_ms_is_refused(core):
    core.submit()
    token, _ = core.held()
    with pytest.raises(InvalidArgument, match="retry_in_ms = 0: with dead there is no retry"):
        core.fail(token, 1, dead=True, retry_in_ms=0)
    assert core.states(1) == ["leased"]


def test_one_fail_may_retry_some_and_bury_others(core):
    core.submit_jobs(2, max_retries=0)
    core.submit_jobs(2)
    leased = core.lease(count=4)
    assert core.fail(leased.token, 1, 2, 3, 4) == [(1, 4, "ok")]
    assert core.states(1, 2, 3, 4) == ["dead", "dead", "delayed", "delayed"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x" * 4096, "x" * 4096),
        ("x" * 5000, "x" * 4096),
        ("x" * 4095 + "ä", "x" * 4095),  # never half a letter
        ("a\ud800b", "a?b"),
    ],
)
def test_long_error_text_is_cut_not_refused(core, text, kept):
    core.submit_jobs(2)
    token, _ = core.held()
    core.fail(token, 1, error=text)
    assert core.get(1).error == kept
    token, _ = core.held()
    core.ack(token, 2, result_error=text)
    assert core.get(2).error == kept


# --- release ------------------------------------------------------------------------------------


def test_released_job_is_ready_and_its_attempt_does_not_count(core):
    core.submit()
    token, _ = core.held()
    core.release(token, 1)
    shown = core.get(1)
    assert (shown.state, shown.attempt, shown.errors, shown.crashes, shown.attempts) == ("ready", 0, 0, 0, [])
    assert core.lease().jobs[0].attempt == 1


def test_release_with_a_delay_waits(core):
    core.submit()
    token, _ = core.held()
    core.release(token, 1, delay_ms=500)
    assert core.get(1).due_ms_left == 500
    core.wait(500)
    assert core.lease_ids() == [1]


def test_release_of_a_range_over_two_queues_and_priorities(core):
    core.submit(queue="a")
    core.submit(queue="b")
    core.submit(queue="b", priority=1)
    leased = core.lease("a", "b", count=3)
    assert core.release(leased.token, 1, 2, 3) == [(1, 3, "ok")]
    assert core.lease_ids("a", "b", count=3) == [1, 3, 2]
