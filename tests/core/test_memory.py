"""What the state takes in memory: counted with each change, limited, given back."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import memory, model
from jqd.core.changes import JobsDied, JobsForgotten, JobsRetried
from jqd.core.ordered import LINE_BYTES
from jqd.errors import Overloaded
from tests.support.core import Core, held_items, ids_of, parts_of, replayed, restored_from


def taken(core: Core) -> int:
    return core.state.memory.bytes


def limited(core: Core, soft_bytes: int) -> Core:
    core.state.memory.limit(soft_bytes)
    return core


def full(core: Core) -> Core:
    """Set the limit to what is taken."""
    return limited(core, taken(core))


def refused(core: Core, command: c.Command[Any]) -> Overloaded:
    with pytest.raises(Overloaded) as refusal:
        core.do(command)
    core.turn()
    return refusal.value


# --- counting -----------------------------------------------------------------------------------


def test_payload_and_metadata_count_by_their_bytes(core):
    core.submit(b"", queue="q")
    before = taken(core)
    core.submit(bytes(1_000), queue="q")
    assert taken(core) - before == memory.JOB_BYTES + 1_000
    before = taken(core)
    core.submit(b"", queue="q", metadata={"k": "v" * 1_000})
    assert taken(core) - before > 1_000 + memory.JOB_BYTES + memory.OPTIONS_BYTES
    core.check()


def test_text_that_is_not_ascii_counts_by_what_it_takes_in_memory():
    assert memory.text_bytes("x" * 4_000 + "☹") > 4 * 4_000
    assert memory.text_bytes("x" * 4_000) < 4_100


def test_all_is_given_back_when_the_jobs_are_gone(core):
    start = taken(core)
    core.submit(b"x" * 99, queue="a", metadata={"k": "v"}, tenant="acme", dedupe_key="d")
    core.submit(b"y", queue="b", priority=7, delay_ms=50, expires_ms=99_999)
    core.submit(b"z", queue="c", idempotency_key="i", idempotency_ttl_ms=1_000, max_retries=0)
    core.do(c.SetQueue(queue="d", retry=model.RetryPolicy(kind="list", delays_ms=(1, 2, 3))))
    core.fail(*core.held("a"), error="ä" * 99)
    token, job_id = core.held("c")
    core.extend(token, job_id)
    core.check()
    core.fail(token, job_id, error="no")
    core.do(c.Purge(ids=[(1, 3)]))
    core.do(c.SetQueue(queue="d", reset=True))
    core.wait(1_000)
    core.check()
    assert taken(core) == start == 0
    assert not core.state.tenants and not core.state.queues


def test_ack_gives_the_payload_back_and_counts_the_result(core):
    core.submit(bytes(5_000))
    before = taken(core)
    token, job_id = core.held()
    core.ack(token, job_id, result=bytes(300))
    assert before - 5_000 - LINE_BYTES < taken(core) < before - 4_000 - LINE_BYTES
    assert core.state.memory.ended_bytes == memory.job_bytes(core.job(job_id)) > 300
    core.check()


def test_queues_and_tenants_know_what_is_theirs(core):
    core.submit(bytes(10_000), queue="a", tenant="acme")
    core.submit(bytes(500), queue="a", tenant="globex", idempotency_key="k")
    core.submit(bytes(70), queue="b", tenant="globex")
    stats = core.do(c.Stats())
    sizes = {info.queue: info.memory_bytes for info in core.do(c.Queues()).queues}
    assert sizes["a"] - sizes["b"] > 10_000
    assert stats.tenants.keys() == {"acme", "globex"} and stats.tenant_count == 2
    assert 10_000 < stats.tenants["acme"] < 11_500
    assert 570 + memory.KEY_BYTES < stats.tenants["globex"] < stats.tenants["acme"]
    assert stats.memory_bytes == taken(core) > sum(sizes.values())


def test_stats_show_the_tenants_that_take_most(core):
    for number in range(30):
        core.submit(bytes(number * 100), tenant=f"t{number}")
    stats = core.do(c.Stats())
    assert stats.tenant_count == 30
    assert list(stats.tenants) == [f"t{number}" for number in range(29, 9, -1)]


def test_of_tenants_that_take_the_same_the_first_by_name_are_shown(core):
    for number in reversed(range(10, 40)):
        core.submit(tenant=f"t{number}")
    assert list(core.do(c.Stats()).tenants) == [f"t{number}" for number in range(10, 30)]


def test_snapshot_and_log_give_the_same_count(core):
    caller = core.hello(b"s" * 16)
    core.submit(b"x" * 99, caller, queue="a", metadata={"k": "v"}, tenant="acme", dedupe_key="d")
    core.submit_jobs(9, queue="b", priority=3, delay_ms=70)
    core.submit_jobs(9, queue="c", group="g")
    leased = core.lease("c", count=5)
    core.fail(leased.token, leased.jobs[0].job_id, error="no", dead=True)
    core.ack(leased.token, leased.jobs[1].job_id, result=b"yes")
    for state in (replayed(core.log), restored_from(parts_of(core.engine.begin_dump()))):
        state.check()
        assert state.memory.bytes == taken(core)
        assert state.memory.ended_bytes == core.state.memory.ended_bytes
        assert {name: one.bytes for name, one in state.tenants.items()} == {
            name: one.bytes for name, one in core.state.tenants.items()
        }


# --- the soft limit -----------------------------------------------------------------------------


def test_nothing_is_taken_that_adds_to_memory_beyond_the_limit(core):
    core.submit(bytes(100))
    full(core)
    for command in (
        c.Submit(payload=b"x"),
        c.Submit(payload=b"x", dedupe_key="k"),
        c.Submit(payload=b"x", idempotency_key="k"),
        c.SubmitMany(groups=[c.SubmitGroup(payloads=[b""])]),
        c.SubmitMany(groups=[c.SubmitGroup(payloads=[b""], dedupe_key="k")]),
        c.Update(job_id=1, payload=bytes(101)),
        c.Update(job_id=1, metadata={"k": "v"}),
        c.SetQueue(queue="new", lease_ms=1_000),
        c.Pause(queue="new"),
    ):
        error = refused(core, command)
        added_bytes = int(error.details.pop("added_bytes"))
        assert added_bytes > 0 and f"{added_bytes} more would come" in str(error)
        assert error.details == {"memory_bytes": taken(core), "memory_soft_bytes": taken(core)}
        assert error.retry_after_ms == 1_000
        assert f"memory = {taken(core)} bytes" in str(error) and f"the limit is {taken(core)}" in str(error)
    assert core.submit_run([(1, c.Submit(payload=b"x")), (2, c.Submit())]) == ["overloaded"] * 2


def test_the_rest_goes_on_beyond_the_limit(core):
    core.submit(b"x", idempotency_key="i")
    core.submit_jobs(5)
    full(core)
    assert core.do(c.Submit(payload=b"x", idempotency_key="i")).job_id == 1  # its answer is there
    core.do(c.Update(job_id=2, priority=-1))
    core.do(c.Pause(queue="default"))
    core.do(c.Resume(queue="default"))
    leased = core.lease(count=3)
    core.extend(leased.token, 1)
    core.release(leased.token, 3)
    core.fail(leased.token, 4, error="no")
    core.ack(leased.token, 1)
    core.do(c.Cancel(ids=[(2, 1)]))
    assert core.do(c.Purge(ids=[(3, 4)])).count == 4
    assert core.submit() == 7
    core.check()


def test_progress_is_not_kept_beyond_the_limit_and_the_lease_is_extended(core):
    core.submit_jobs(2)
    leased = core.lease(count=2)
    core.extend(leased.token, 1, 2, progress_percent=1, progress_text="so")
    full(core)
    core.move(9_000)
    extended = core.extend(leased.token, 1, 2, progress_percent=50, progress_text="far" * 20)
    assert (extended.results, extended.lease_ms_left) == ([(1, 2, "ok")], 30_000)
    assert (core.get(1).progress_percent, core.get(1).progress_text) == (1, "so")
    assert taken(core) <= core.state.memory.soft_bytes
    limited(core, 2 * taken(core))
    core.extend(leased.token, 1, 2, progress_percent=50)
    assert core.get(2).progress_percent == 50
    core.check()


def test_leases_are_not_split_far_beyond_the_limit(core):
    core.submit_jobs(2_000)
    limited(core, taken(core) // 2)
    core.state.memory.split_bytes = 0
    leased = core.lease(count=2_000)
    ids = ids_of(leased)
    before = taken(core)
    error = refused(core, c.Extend(items=[(leased.token, [(job_id, 1)]) for job_id in ids]))
    assert f"the limit is {core.state.memory.split_bytes}" in str(error)
    refused(core, c.Extend(items=[(leased.token, [(ids[0], 1)])]))
    refused(core, c.Extend(items=[(leased.token, [(job_id, 1) for job_id in ids])], lease_ms=5_000))
    assert core.extend(leased.token, *ids).results == [(1, 2_000, "ok")]
    assert taken(core) == before
    core.ack(leased.token, *ids[:1_000])
    core.extend(leased.token, *ids[1_000:])
    core.check()


def test_held_jobs_are_not_marked_far_beyond_the_limit(core):
    core.submit_jobs(3)
    core.lease(count=2)
    full(core)
    core.state.memory.split_bytes = taken(core) + memory.EMPTY_OUTCOME_BYTES
    error = refused(core, c.Cancel(filter=c.JobFilter(), running=True))
    assert f"marks would take {2 * memory.EMPTY_OUTCOME_BYTES} more" in str(error)
    assert core.states(1, 2, 3) == ["leased", "leased", "ready"] and not core.state.marked_count
    core.do(c.Cancel(ids=[(1, 1)], running=True))
    core.do(c.Cancel(ids=[(3, 1)], running=True))
    assert core.states(1, 2, 3) == ["leased", "leased", "cancelled"] and core.job(1).cancel_marked
    core.check()


def test_an_extend_that_would_split_too_many_leases_is_refused_before_it_does(core):
    core.submit_jobs(100)
    leased = core.lease(count=100)
    full(core).state.memory.split_bytes = taken(core) + 40 * (memory.LEASE_BYTES + memory.RANGE_BYTES)
    items = [(leased.token, [(job_id, 1)]) for job_id in ids_of(leased)]
    refused(core, c.Extend(items=[*items[:41], (leased.token, [(5_000, 1)])]))
    core.do(c.Extend(items=items[:40]))
    assert taken(core) <= core.state.memory.split_bytes


def test_a_limit_leaves_room_to_split_leases(core):
    limited(core, 800 << 20)
    assert core.state.memory.split_bytes == 900 << 20
    core.submit_jobs(1_000)
    full(core)
    leased = core.lease(count=1_000)
    for job_id in ids_of(leased)[::100]:
        core.move(1)
        assert core.extend(leased.token, job_id).results == [(job_id, 1, "ok")]


def test_run_is_taken_as_far_as_there_is_room(core):
    core.submit()
    limited(core, taken(core) + 2 * memory.JOB_BYTES + 100)
    run = [(number, c.Submit(payload=payload)) for number, payload in enumerate([b"", bytes(101), b"", b""])]
    assert [type(answer) is str for answer in core.submit_run(run)] == [False, True, False, True]


def test_submit_many_is_measured_as_a_whole(core):
    core.submit()
    limited(core, taken(core) + 10 * memory.JOB_BYTES)
    refused(core, c.SubmitMany(groups=[c.SubmitGroup(payloads=[b""] * 11)]))
    group = c.SubmitGroup(payloads=[b""] * 5)
    assert core.do(c.SubmitMany(groups=[group, group])).jobs == [(2, 5, False), (7, 5, False)]
    refused(core, c.Submit(payload=b"x"))


def grown(kind: type[c.SubmitMany] | None, groups: list[c.SubmitGroup]) -> int:
    """Return what the jobs of these groups take in a core that has others, in one request or in a run."""
    core = Core()
    core.submit(queue="there", tenant="acme")
    before = taken(core)
    if kind is None:
        core.submit_run(
            [(n, c.Submit(queue=each.queue, tenant=each.tenant)) for n, each in enumerate(groups)]
        )
    else:
        core.do(kind(groups=groups))
    return taken(core) - before


NEWCOMERS = [
    [{"queue": f"q{n}"} for n in range(20)],
    [{"queue": "there", "tenant": f"t{n}"} for n in range(20)],
    [{"queue": "there", "priority": n % 10, "group": f"g{n}"} for n in range(20)],
    [{"queue": "there", "tenant": "acme"}, {"queue": "q", "tenant": "acme"}, {"queue": "q"}],
    [{"queue": f"q{n % 3}", "dedupe_key": f"d{n}", "idempotency_key": f"i{n}"} for n in range(20)],
    [{"queue": f"q{n}", "metadata": {"k": "v"}, "expires_ms": 99_999} for n in range(20)],
]


@pytest.mark.parametrize("fields", NEWCOMERS)
def test_submit_many_is_measured_with_all_that_comes_along(core, fields):
    groups = [
        c.SubmitGroup(payloads=[b"", b"xy"][: 1 + ("dedupe_key" not in each)], **each) for each in fields
    ]
    size = grown(c.SubmitMany, groups)
    core.submit(queue="there", tenant="acme")
    limited(core, taken(core) + size - 1)
    assert refused(core, c.SubmitMany(groups=groups)).details["added_bytes"] == size
    limited(core, taken(core) + size)
    core.do(c.SubmitMany(groups=groups))
    assert taken(core) == core.state.memory.soft_bytes
    core.check()


@pytest.mark.parametrize("time", [{"delay_ms": 5_000}, {"run_at_ms": (1 << 40) + (1 << 40)}])
def test_a_time_is_measured_with_the_jobs_that_wait_for_it(core, time):
    core.submit()
    limited(core, taken(core) + 100 * memory.JOB_BYTES + 50 * memory.DELAYED_BYTES + 4_000)
    group = c.SubmitGroup(payloads=[b""] * 50, **time)
    core.do(c.SubmitMany(groups=[group]))
    refused(core, c.SubmitMany(groups=[group]))
    core.submit_run([(n, c.Submit(**time)) for n in range(60)])
    assert taken(core) <= core.state.memory.soft_bytes


def test_a_run_is_measured_with_the_queues_and_tenants_that_come_along(core):
    groups = [c.SubmitGroup(payloads=[b""], queue=f"q{n // 2}", tenant=f"t{n // 3}") for n in range(20)]
    size = grown(None, groups)
    core.submit(queue="there", tenant="acme")
    run = [(n, c.Submit(queue=each.queue, tenant=each.tenant)) for n, each in enumerate(groups)]
    limited(core, taken(core) + size - 1)
    assert core.submit_run(run)[-2:] == [c.Submitted(job_id=20), "overloaded"]
    assert taken(core) < core.state.memory.soft_bytes
    core.turn()
    core.purge(*range(2, 21))
    limited(core, taken(core) + size)
    assert "overloaded" not in core.submit_run(run)
    assert taken(core) == core.state.memory.soft_bytes


def test_what_comes_with_a_submit_that_is_refused_is_measured_with_the_next_one(core):
    core.submit(queue="there")
    limited(core, taken(core) + 10_000)
    payloads = [bytes(9_000), b""] * 5
    run = [(n, c.Submit(queue=f"q{n // 2}", payload=payload)) for n, payload in enumerate(payloads)]
    assert [answer == "overloaded" for answer in core.submit_run(run)].count(False) == 2
    assert taken(core) <= core.state.memory.soft_bytes


def test_state_above_the_limit_is_recovered_and_refuses(core):
    core.submit_jobs(10)
    core.check()
    state = replayed(core.log)
    limited(core, 1_000).restart()
    limited(core, 1_000)
    assert state.memory.bytes == taken(core) > 1_000
    refused(core, c.Submit(payload=b"x"))
    leased = core.lease(count=10)
    core.ack(leased.token, *range(1, 11))
    core.settle()
    assert not list(core.state.pages.jobs_from(0)), "0.2 of the limit is less than ten jobs that have ended"


def test_histories_do_not_grow_beyond_the_limit(core):
    core.submit_jobs(2, max_retries=99)
    for _ in range(3):
        leased = core.lease(count=2)
        core.fail(leased.token, 1, 2, error="x" * 4_000, retry_in_ms=0)
    before = taken(core)
    limited(core, 1_000).state.memory.ended_bytes_max = before
    leased = core.lease(count=2)
    core.engine.execute(
        c.Fail(items=[(leased.token, [(1, 1)])], error="y" * 4_000, retry_in_ms=0),
        model.LOCAL,
        90,
        "t",
        core.now,
    )
    core.engine.execute(
        c.Fail(items=[(leased.token, [(2, 1)])], error="z" * 4_000, dead=True), model.LOCAL, 91, "t", core.now
    )
    retried, died = core.turn()
    assert isinstance(retried, JobsRetried) and retried.kept == 0
    assert isinstance(died, JobsDied) and died.kept == 1
    assert core.job(1).outcome is None and core.job(1).errors == 4
    assert [one.error for one in core.get(2).attempts] == ["z" * 4_000]
    assert taken(core) < before - 15_000
    core.check()


def held_jobs(core: Core, count: int = 1_000) -> tuple[int, list[int]]:
    core.submit_jobs(count)
    leased = core.lease(count=count)
    return leased.token, ids_of(leased)


TEXT = "☹" * 1_000


def test_histories_that_would_pass_the_limit_are_not_kept(core):
    token, ids = held_jobs(core)
    limited(core, taken(core) + 500 * memory.failure_bytes(TEXT))
    assert core.fail(token, *ids[:400], error=TEXT) == [(1, 400, "ok")]
    assert core.job(1).outcome.attempts[0].error == TEXT
    assert core.fail(token, *ids[400:], error=TEXT) == [(401, 600, "ok")]
    assert core.job(401).outcome is None and core.job(401).errors == 1
    assert taken(core) <= core.state.memory.soft_bytes
    core.check()


def test_a_lease_that_runs_out_leaves_no_history_that_would_pass_the_limit(core):
    held_jobs(core)
    full(core)
    core.state.memory.soft_bytes += 500 * memory.EMPTY_OUTCOME_BYTES
    core.wait(30_000)
    assert core.job(1).outcome is None and core.job(1).crashes == 1
    assert taken(core) <= core.state.memory.soft_bytes


@pytest.mark.parametrize("is_lowered", [False, True], ids=["near", "lowered"])
@pytest.mark.parametrize("how", ["killed", "retries", "refused", "cancelled"])
def test_texts_of_what_ends_far_beyond_the_limit_are_not_kept(core, how, is_lowered):
    core.do(c.SetQueue(queue="default", max_retries=0))
    token, ids = held_jobs(core)
    if how == "cancelled":
        core.do(c.Cancel(ids=[(1, 1_000)], running=True))
    room_bytes = 20 * memory.failure_bytes(TEXT)
    ends = limited(core, 0).state.memory
    if is_lowered:  # beyond all limits from the start: what has ended has its share all the same
        ends.split_bytes, ends.ended_bytes_max = 0, room_bytes
    else:
        ends.soft_bytes = ends.split_bytes = taken(core) + room_bytes

    for part in (ids[:10], ids[10:]):
        if how == "refused":
            core.execute(c.Ack(items=[(token, c.to_ranges(part), None)], result_error=TEXT))
        else:
            core.execute(c.Fail(items=held_items(token, part), error=TEXT, dead=how == "killed"))
    kept, lost = core.job(10), core.job(11)
    assert [kept.outcome.error, *(one.error for one in kept.outcome.attempts)] == [TEXT] * 2
    assert [lost.outcome.error, *(one.error for one in lost.outcome.attempts)] == [""] * 2
    assert lost.outcome.reason == (None if how == "cancelled" else how)
    core.settle()
    core.check()


def test_results_of_what_ends_far_beyond_the_limit_are_not_kept(core):
    token, _ = held_jobs(core)
    core.do(c.Wait(ids=[(1_000, 1)], wait_ms=9_000))
    ends = limited(core, 0).state.memory
    ends.soft_bytes = ends.split_bytes = taken(core) + 500 * 1_000
    items = [(token, [(1, 100)], bytes(1_000)), (token, [(101, 900)], bytes(1_000))]
    core.execute(c.Ack(items=items))
    kept, lost = core.job(100), core.job(101)
    assert (len(kept.outcome.result), lost.outcome.result) == (1_000, None)
    assert taken(core) < ends.split_bytes
    core.turn()
    ((_, _, waited),) = core.answers
    assert waited.jobs[0].state == "done" and waited.jobs[0].result_expired
    core.check()


def test_lease_that_runs_out_beyond_the_limit_leaves_no_history(core):
    core.submit(max_crashes=1)
    limited(core, taken(core) - LINE_BYTES)  # which is given back while it is held
    for attempt in (1, 2):
        assert core.lease().jobs[0].attempt == attempt
        core.wait(30_000)
        core.wait(60_000)
        if attempt == 1:
            assert core.job(1).outcome is None and core.job(1).crashes == 1
    assert core.states(1) == ["gone"], "0.2 of the limit is less than this job"


# --- what has ended -----------------------------------------------------------------------------


def end(core: Core, count: int, queue: str, **options: Any) -> list[int]:
    ids = core.submit_jobs(count, queue=queue, **options)
    leased = core.lease(queue, count=count)
    core.ack(leased.token, *ids)
    return ids


def test_jobs_that_ended_first_are_forgotten_first_beyond_their_share(core):
    first, second = end(core, 2, "a"), []
    core.wait(10)
    second = end(core, 2, "b")
    core.wait(10)
    third = end(core, 2, "a")
    core.submit(queue="b", max_retries=0)
    core.fail(*core.held("b"), error="no")
    core.check()
    size = memory.JOB_BYTES
    limited(core, memory.ENDED_SHARE * (core.state.memory.ended_bytes - size - 1))
    assert core.settle() == [JobsForgotten([(first[0], 2)])]
    limited(core, memory.ENDED_SHARE * (core.state.memory.ended_bytes - 2 * size - 1))
    assert core.settle() == [JobsForgotten([(second[0], 2)]), JobsForgotten([(third[0], 1)])]
    core.check()
    limited(core, memory.ENDED_SHARE * size)
    core.settle()
    assert core.states(third[1], 7) == ["gone", "gone"], "the dead one goes last"
    assert core.state.memory.ended_bytes == 0
    core.check()


def test_dead_jobs_are_forgotten_when_no_other_has_ended(core):
    core.submit_jobs(3, queue="q", max_retries=0)
    leased = core.lease("q", count=3)
    for job_id in (2, 3, 1):
        core.wait(1)
        core.fail(leased.token, job_id, error="no")
    size = memory.job_bytes(core.job(1))
    limited(core, memory.ENDED_SHARE * (size + 1))
    core.settle()
    assert core.states(1, 2, 3) == ["dead", "gone", "gone"]
    core.check()


def test_a_tick_forgets_a_bounded_number(core, monkeypatch):
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 4)
    ids = end(core, 10, "a")
    limited(core, 0)
    assert core.turn() == [JobsForgotten([(ids[0], 4)])]
    assert core.engine.next_deadline(core.now) == core.engine_ms
    core.settle()
    assert not core.state.queues
    core.check()
