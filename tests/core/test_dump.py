"""A dump is the state at its LSN, whatever changes while it is made; loaded, it is that state again."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import dump as dump_module
from jqd.core import model
from jqd.core.changes import (
    JobImage,
    JobsRestored,
    ReadyJobsRestored,
    SessionRestored,
    StateRestored,
    encode_part,
)
from jqd.core.engine import Engine, ReplayFailed
from jqd.core.pages import PAGE_JOBS
from jqd.core.state import State
from tests.support.core import IDENTITY, Core, parts_of, restored_from


def kinds(images: list[Any]) -> list[type]:
    return [type(image) for image in images]


def whole(core: Core) -> list[Any]:
    images: list[Any] = []
    dump = core.engine.begin_dump()
    while part := dump.take_slice():
        images += part
    return images


def test_an_empty_state_is_its_numbers(core):
    (end,) = whole(core)
    assert end == StateRestored(core.state.lsn, core.now, core.state.epoch, 0, 1)


def test_neighbours_that_came_together_are_one_fact(core):
    core.submit_jobs(3, queue="a")
    core.submit_jobs(2, queue="a")
    core.wait(1)
    core.submit_jobs(2, queue="a")
    core.submit_jobs(1, queue="b")
    images = whole(core)[:-1]
    assert kinds(images) == [ReadyJobsRestored] * 3
    assert [(image.first_id, len(image.payloads)) for image in images] == [(1, 5), (6, 2), (8, 1)]


def test_jobs_of_every_state_come_back(core):
    core.submit_jobs(6)
    core.submit(b"later", delay_ms=5_000)
    core.submit(b"dated", run_at_ms=core.wall_ms + 5_000)
    token, job_id = core.held()
    core.ack(token, job_id, result=b"result", encoding="text")
    token, job_id = core.held(lease_ms=7_000)
    core.fail(token, job_id, dead=True, error="no")
    token, job_id = core.held(lease_ms=7_000)
    core.fail(token, job_id, error="again", retry_in_ms=100)
    core.held(lease_ms=9_000)
    core.cancel(5)
    assert core.states(*range(1, 9)) == [
        *("done", "dead", "delayed", "leased", "cancelled", "ready"),
        *("delayed", "delayed"),
    ]
    core.check()  # dumps and loads


def test_grants_keep_their_deadlines_and_which_jobs_share_one(core):
    core.submit_jobs(5)
    leased = core.lease(count=5, lease_ms=10_000)
    core.extend(leased.token, 2, 4, lease_ms=20_000)
    state = restored_from(parts_of(core.engine.begin_dump()))
    (parts,) = state.leases.values()
    assert sorted((part.deadline_ms - core.engine_ms, part.ranges) for part in parts.values()) == [
        (10_000, [(1, 1), (3, 1), (5, 1)]),
        (20_000, [(2, 1), (4, 1)]),
    ]


def test_what_changes_before_the_walk_gets_there_is_dumped_as_it_was(core, monkeypatch):
    monkeypatch.setattr(dump_module, "SLICE_JOBS", 4)
    core.submit_jobs(20)
    leased = core.lease(count=2)
    digest = core.state.digest()
    dump = core.engine.begin_dump()
    images = dump.take_slice()  # jobs 1 to 3: ids begin at 1, pages at 0
    core.ack(leased.token, 1, 2)
    core.purge(3, 4, 5)
    core.lease(count=4)
    core.submit_jobs(3)
    parts = [encode_part(images), *parts_of(dump)]
    assert restored_from(parts).digest() == digest
    assert restored_from(parts, core.log).digest() == core.state.digest()


def test_a_session_that_goes_on_or_goes_is_dumped_as_it_was(core):
    one, other = core.hello(b"1" * 16), core.hello(b"2" * 16)
    for caller in (one, other):
        core.do(c.Submit(), caller, request_id=1)
    core.leave(other)
    digest = core.state.digest()
    dump = core.engine.begin_dump()
    core.do(c.Submit(), one, request_id=2)
    core.wait(model.SESSION_RETENTION_MS)
    assert list(core.state.sessions) == [one.session]
    parts = parts_of(dump)
    assert restored_from(parts).digest() == digest
    assert restored_from(parts, core.log).digest() == core.state.digest()


def test_a_slice_ends_with_its_bytes(core, monkeypatch):
    monkeypatch.setattr(dump_module, "SLICE_BYTES", 1_000)
    core.do(c.SubmitMany(groups=[c.SubmitGroup(payloads=[bytes(400)] * 10)]))
    dump = core.engine.begin_dump()
    sizes = []
    while images := dump.take_slice():
        sizes += [len(image.payloads) for image in images if isinstance(image, ReadyJobsRestored)]
    assert sizes == [3, 3, 3, 1]


def test_a_slice_looks_at_a_bounded_number_of_jobs(core):
    core.submit_jobs(10_000)
    dump = core.engine.begin_dump()
    while images := dump.take_slice():
        assert (
            sum(len(i.payloads) for i in images if isinstance(i, ReadyJobsRestored)) <= dump_module.SLICE_JOBS
        )
    assert dump.job_count == 10_000


def test_what_is_kept_is_what_was_touched_not_its_page(core):
    for _ in range(3):
        core.submit_jobs(PAGE_JOBS)
    dump = core.engine.begin_dump()
    core.cancel(PAGE_JOBS + 7, 2 * PAGE_JOBS + 7)
    assert len(dump._kept) == 2
    parts_of(dump)
    assert not dump._kept


def test_new_jobs_cost_a_dump_nothing(core):
    core.submit_jobs(10)
    dump = core.engine.begin_dump()
    core.submit_jobs(10_000)
    core.lease(count=5_000)
    assert len(dump._kept) == 10
    parts_of(dump)
    assert dump.job_count == 10


def test_pages_that_thin_out_come_back(core):
    core.submit_jobs(10_000)
    for first in range(1, 9_000, 1_000):
        core.do(c.Purge(ids=[(first, 999)]))
    core.check()
    dump = core.engine.begin_dump()
    core.do(c.Purge(ids=[(9_001, 999)]))
    assert restored_from(parts_of(dump), core.log).digest() == core.state.digest()


def test_new_jobs_go_on_behind_a_hole_at_the_end(core):
    core.submit_jobs(20)
    core.do(c.Purge(ids=[(11, 10)]))
    core.restart(parts=parts_of(core.engine.begin_dump()))
    assert core.submit(b"next") == 21
    assert core.job(21).payload == b"next"


def test_one_dump_at_a_time_and_closing_it_keeps_nothing_more(core):
    core.submit_jobs(2)
    dump = core.engine.begin_dump()
    with pytest.raises(AssertionError):
        core.engine.begin_dump()
    dump.close()
    core.cancel(1)
    assert not dump._kept
    assert core.engine.begin_dump().lsn == core.state.lsn
    core.state.keeper = None


def test_a_dump_waits_for_the_turn_to_be_handed_over(core):
    core.execute(c.Submit())
    with pytest.raises(AssertionError):
        core.engine.begin_dump()
    core.turn()


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91\x91\x92\x06\x90"])
def test_bytes_that_are_no_part_of_a_snapshot_are_refused(payload):
    with pytest.raises(ReplayFailed):
        Engine(State(), IDENTITY).restore(payload)


def test_a_part_that_does_not_fit_is_refused(core):
    core.submit_jobs(2)
    parts = parts_of(core.engine.begin_dump())
    engine = Engine(State(), IDENTITY)
    engine.restore(parts[0])
    with pytest.raises(ReplayFailed):
        engine.restore(encode_part([JobsRestored(model.JobOptions(), [], [image_without_lease()])]))


def image_without_lease():
    now = model.Now(1, 1)
    return JobImage(9, model.JobState.LEASED, now, now, b"", 1, 0, 0, None, None, None)


def test_answers_of_sessions_are_dumped_in_their_order(core):
    caller = core.hello(b"1" * 16)
    for request_id in (5, 3, 9):
        core.do(c.Submit(), caller, request_id=request_id)
    (image,) = [image for image in whole(core) if isinstance(image, SessionRestored)]
    assert [request_id for request_id, _ in image.answers] == [5, 3, 9]


def test_a_job_whose_time_comes_during_the_dump_is_dumped_as_delayed(core):
    core.submit(delay_ms=1_000)
    core.submit(run_at_ms=core.wall_ms + 1_000)
    core.wait(500)
    digest = core.state.digest()
    dump = core.engine.begin_dump()
    core.wait(1_000)
    assert core.states(1, 2) == ["ready", "ready"]
    parts = parts_of(dump)
    assert restored_from(parts).digest() == digest
    assert restored_from(parts, core.log).digest() == core.state.digest()


def test_a_dead_job_that_is_revived_during_the_dump_is_dumped_as_dead(core):
    token, job_id = core.submit() and core.held()
    core.fail(token, job_id, dead=True, error="no")
    digest = core.state.digest()
    dump = core.engine.begin_dump()
    core.requeue(job_id)
    assert restored_from(parts_of(dump)).digest() == digest


def test_a_job_that_was_given_back_keeps_when_that_was(core):
    core.submit()
    token, job_id = core.held()
    core.wait(1_000)
    core.release(token, job_id)
    core.restart(parts=parts_of(core.engine.begin_dump()))
    shown = core.get(job_id)
    assert (shown.attempt, shown.changed_wall_ms - shown.created_wall_ms) == (0, 1_000)


def ended_in_order(core: Core, *order: int, **fields: Any) -> None:
    """Finish the jobs of a grant, a millisecond apart, and start again from a snapshot."""
    core.submit_jobs(len(order))
    leased = core.lease(count=len(order))
    for job_id in order:
        core.wait(1)
        core.ack(leased.token, job_id, **fields)
    core.restart(parts=parts_of(core.engine.begin_dump()))


def test_what_ended_first_is_forgotten_first_after_a_load(core, monkeypatch):
    ended_in_order(core, 3, 1, 2)
    monkeypatch.setattr(model, "FINISHED_COUNT_MAX", 2)
    core.submit()
    core.cancel(4)
    core.settle()
    assert core.states(1, 2, 3, 4) == ["gone", "done", "gone", "cancelled"]


def test_the_oldest_result_goes_first_after_a_load(core, monkeypatch):
    ended_in_order(core, 3, 1, 2, result=b"12345")
    monkeypatch.setattr(model, "RESULTS_BYTES_MAX", 10)
    core.settle()
    assert core.states(1, 2, 3) == ["done", "done", "gone"]
