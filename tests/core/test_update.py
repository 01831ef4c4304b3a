"""Waiting jobs are changed: their place, their time, what is in them."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.errors import InvalidArgument, JobNotFound, JqdError, PayloadTooLarge, WrongState
from tests.support.core import Core, parts_of


def update(core: Core, job_id: int, **fields: Any) -> str:
    return core.do(c.Update(job_id=job_id, **fields)).state  # type: ignore[no-any-return]


def test_what_is_not_said_stays(core):
    core.submit(b"old", priority=3, encoding="text", metadata={"k": "v"}, task="t", delay_ms=50)
    before = core.get(1)
    assert update(core, 1, priority=4) == "delayed"
    after = core.get(1)
    assert after.priority == 4
    after.priority = 3
    assert after == before


def test_payload_comes_with_its_encoding(core):
    core.submit(b"old", encoding="text")
    update(core, 1, payload=b"new", encoding="json")
    assert (core.get(1).payload, core.get(1).encoding) == (b"new", "json")
    update(core, 1, payload=b"raw")
    assert (core.get(1).payload, core.get(1).encoding) == (b"raw", "raw")


def test_metadata_is_replaced_as_a_whole(core):
    core.submit_jobs(2, metadata={"k": "v"})
    update(core, 1, metadata={"l": "w"})
    assert [core.get(1).metadata, core.get(2).metadata] == [{"l": "w"}, {"k": "v"}]
    update(core, 1, metadata={})
    assert core.get(1).metadata == {}


def test_ready_job_takes_its_new_place_at_once(core):
    core.submit_jobs(3)
    update(core, 3, priority=1)
    update(core, 1, priority=-1)
    assert core.lease_ids(count=3) == [3, 2, 1]


def test_delayed_job_takes_its_new_place_when_its_time_comes(core):
    core.submit_jobs(2, delay_ms=10)
    update(core, 2, priority=1)
    core.wait(10)
    assert core.lease_ids(count=2) == [2, 1]


@pytest.mark.parametrize("old", [{}, {"delay_ms": 10}, {"run_at_ms": 1_900_000_000_000}])
def test_job_gets_another_time(core, old):
    core.submit(**old)
    assert update(core, 1, delay_ms=500) == "delayed"
    core.wait(499)
    assert core.states(1) == ["delayed"]
    core.wait(1)
    assert core.states(1) == ["ready"]
    assert update(core, 1, run_at_ms=core.wall_ms + 700) == "delayed"
    assert core.get(1).run_at_ms == core.wall_ms + 700
    assert update(core, 1, delay_ms=0) == "ready"
    assert core.lease_ids() == [1]


@pytest.mark.parametrize("fields", [{"delay_ms": 0}, {"run_at_ms": 1}])
def test_time_that_has_come_is_at_once(core, fields):
    core.submit(delay_ms=500)
    assert update(core, 1, **fields) == "ready"


def test_date_of_a_state_is_when_it_came_into_it(core):
    core.submit(delay_ms=500)
    created = core.get(1).changed_wall_ms
    core.move(100)
    update(core, 1, delay_ms=1_000)
    assert core.get(1).changed_wall_ms == created
    update(core, 1, delay_ms=0)
    assert core.get(1).changed_wall_ms == core.wall_ms
    core.move(100)
    update(core, 1, delay_ms=0, priority=2)
    assert core.get(1).changed_wall_ms == core.wall_ms - 100


def test_update_serves_a_lease_that_waits(core):
    core.submit(delay_ms=500)
    core.execute(c.Lease(wait_ms=1_000))
    core.turn()
    update(core, 1, delay_ms=0)
    ((_, _, leased),) = core.answers
    assert [job.job_id for job in leased.jobs] == [1]


def test_update_holds_over_restarts_and_snapshots(core):
    core.submit_jobs(3, delay_ms=500)
    update(core, 2, priority=9, payload=b"new", metadata={"k": "v"}, delay_ms=0)
    core.check()
    dump = core.engine.begin_dump()
    update(core, 2, payload=b"newer")
    update(core, 3, priority=9)
    core.restart(parts=parts_of(dump))
    assert core.get(2).payload == b"newer"
    core.wait(500)
    assert core.lease_ids(count=3) == [2, 3, 1]
    core.check()


@pytest.mark.parametrize("end", ["lease", "ack", "cancel", "dead"])
def test_only_what_waits_is_changed(core, end):
    core.submit(b"old")
    match end:
        case "cancel":
            core.cancel(1)
        case _:
            token, _ = core.held()
            if end == "ack":
                core.ack(token, 1)
            elif end == "dead":
                core.fail(token, 1, dead=True)
    state = core.get(1).state
    with pytest.raises(WrongState, match=f"job_id = 1: it is {state}; only a delayed or ready job"):
        update(core, 1, payload=b"new")


def test_retry_that_waits_is_changed_too(core):
    core.submit(b"old")
    token, _ = core.held()
    core.fail(token, 1)
    update(core, 1, payload=b"new", delay_ms=0)
    leased = core.lease()
    assert (leased.jobs[0].payload, leased.jobs[0].attempt) == (b"new", 2)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, InvalidArgument, "update says nothing"),
        ({"delay_ms": 1, "run_at_ms": 2}, InvalidArgument, "delay_ms = 1 and run_at_ms = 2: give one"),
        ({"encoding": "json"}, InvalidArgument, "encoding = json: there is no payload"),
        ({"metadata": {"k": "v" * 4_096}}, InvalidArgument, "metadata = 4097 bytes: the limit is 4096"),
        ({"payload": bytes(model.PAYLOAD_BYTES_MAX + 1)}, PayloadTooLarge, "payload = 1048577 bytes"),
        ({"job_id": 7, "priority": 1}, JobNotFound, "job_id = 7"),
    ],
)
def test_update_that_cannot_be_is_refused(core, fields, error, message):
    core.submit()
    with pytest.raises(JqdError, match=message) as caught:
        update(core, fields.pop("job_id", 1), **fields)
    assert type(caught.value) is error
