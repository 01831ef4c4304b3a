"""Leases that wait for a job."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.errors import InvalidArgument
from tests.support.core import Core, ids_of


def park(core: Core, ticket: str, *queues: str, wait_ms: int = 30_000, **fields: Any) -> None:
    command = c.Lease(queues=list(queues or ("default",)), wait_ms=wait_ms, **fields)
    assert core.do(command, ticket=ticket) is None


def answers(core: Core) -> list[tuple[object, list[int]]]:
    """Return (connection, ids) of what was answered since the last look."""
    got = [(ticket, ids_of(leased)) for ticket, _, leased in core.answers]
    core.answers.clear()
    return got


def test_lease_with_a_wait_is_answered_as_soon_as_there_is_a_job(core):
    park(core, "one", count=5)
    core.wait(1_000)
    assert answers(core) == []
    core.submit()
    assert answers(core) == [("one", [1])]


def test_answer_names_ticket_and_request(core):
    core.do(c.Lease(wait_ms=5), request_id=77, ticket="one")
    core.submit(b"x")
    ((ticket, request_id, leased),) = core.answers
    assert (ticket, request_id, leased.jobs[0].payload) == ("one", 77, b"x")


def test_lease_with_a_wait_that_finds_a_job_does_not_wait(core):
    core.submit()
    assert core.lease_ids(wait_ms=30_000) == [1]
    assert core.do(c.Stats()).parked_count == 0


def test_bulk_submit_fills_the_count(core):
    park(core, "one", count=3)
    core.submit_jobs(5)
    assert answers(core) == [("one", [1, 2, 3])]


def test_longest_waiting_is_served_first(core):
    for ticket in ("one", "two", "three"):
        park(core, ticket)
    core.submit_jobs(2)
    assert answers(core) == [("one", [1]), ("two", [2])]
    core.submit()
    assert answers(core) == [("three", [3])]


def test_longest_waiting_is_served_first_over_all_queues_of_a_turn(core):
    park(core, "one", "b")
    park(core, "two", "a", "b")
    core.execute(c.Submit(queue="a"))
    core.execute(c.Submit(queue="b"))
    core.turn()
    assert answers(core) == [("one", [2]), ("two", [1])]


def test_lease_over_two_queues_does_not_take_the_job_of_who_waits_longer(core):
    park(core, "one", "a")
    park(core, "two", "a", "b")
    core.execute(c.Submit(queue="b"))
    core.execute(c.Submit(queue="a"))
    core.turn()
    assert answers(core) == [("one", [2]), ("two", [1])]


def test_lease_served_by_one_queue_waits_no_more_in_the_others(core):
    park(core, "one", "a", "b", "a")
    park(core, "two", "b")
    core.execute(c.Submit(queue="a"))
    core.execute(c.Submit(queue="b"))
    core.turn()
    assert answers(core) == [("one", [1]), ("two", [2])]
    assert core.do(c.Stats()).parked_count == 0


@pytest.mark.parametrize("how", ["release", "fail", "expiry", "delay", "date", "requeue", "take back"])
def test_job_that_becomes_ready_again_wakes_who_waits(core, how):
    later = {"delay": {"delay_ms": 1_000}, "date": {"run_at_ms": core.wall_ms + 1_000}}.get(how, {})
    core.submit(**later)
    token = 0 if later else core.held(lease_ms=1_000)[0]
    if how == "requeue":
        core.fail(token, 1, dead=True)
    park(core, "one")
    match how:
        case "release":
            core.release(token, 1)
        case "fail":
            core.fail(token, 1, retry_in_ms=0)
        case "requeue":
            core.requeue(1)
        case "take back":
            core.engine.take_back(token, core.now)
            core.turn()
        case _:
            core.wait(1_000)
    assert answers(core) == [("one", [1])]


def test_wait_ends_with_an_empty_answer_exactly_at_its_time(core):
    park(core, "one", wait_ms=2_000)
    park(core, "two", wait_ms=2_000)
    park(core, "three", wait_ms=1_000)
    assert core.engine.next_deadline(core.now) == core.engine_ms + 1_000
    core.wait(1_000)
    assert answers(core) == [("three", [])]
    core.wait(999)
    assert answers(core) == []
    core.wait(1)
    assert answers(core) == [("one", []), ("two", [])]
    assert core.engine.next_deadline(core.now) is None


def test_job_that_comes_at_the_very_end_of_the_wait_is_handed_out(core):
    park(core, "one", wait_ms=1_000)
    core.move(1_000)
    core.submit()
    assert answers(core) == [("one", [1])]


def test_second_waiting_lease_of_a_connection_is_refused(core):
    park(core, "one", "a")
    with pytest.raises(InvalidArgument, match="this connection has a lease parked"):
        core.do(c.Lease(queues=["b"], wait_ms=1), ticket="one")
    park(core, "two", "b")


def test_lost_connection_waits_no_more(core):
    park(core, "one")
    core.engine.disconnect(model.LOCAL, "one", core.now)
    core.engine.disconnect(model.LOCAL, "never parked", core.now)
    park(core, "two")
    core.submit()
    assert answers(core) == [("two", [1])]


def test_who_waits_is_served_before_a_lease_that_comes_in_the_same_turn(core):
    park(core, "one")
    core.execute(c.Submit())
    assert ids_of(core.execute(c.Lease(), ticket="two")) == []
    core.turn()
    assert answers(core) == [("one", [1])]


def test_same_request_over_a_new_connection_takes_the_place_of_the_old_one(core):
    old, new = core.hello(b"s" * 16), core.hello(b"s" * 16)
    command = c.Lease(wait_ms=30_000)
    assert core.do(command, old, request_id=5, ticket="old") is None
    assert core.do(command, new, request_id=5, ticket="new") is None
    assert answers(core) == [("old", [])]
    core.submit()
    assert answers(core) == [("new", [1])]


def test_same_request_gets_the_grant_that_its_dead_connection_was_just_given(core):
    old, new = core.hello(b"s" * 16), core.hello(b"s" * 16)
    command = c.Lease(wait_ms=30_000)
    assert core.do(command, old, request_id=5, ticket="old") is None
    core.execute(c.SubmitMany(groups=[c.SubmitGroup(payloads=[b"1", b"2"])]))
    again = core.execute(command, new, request_id=5, ticket="new")
    core.turn()
    ((ticket, _, first),) = core.answers
    assert ticket == "old"
    assert (again.token, ids_of(again)) == (first.token, ids_of(first))
    assert core.states(1, 2) == ["leased", "ready"]


def test_other_request_of_the_session_waits_beside_the_first(core):
    one, two = core.hello(b"s" * 16), core.hello(b"s" * 16)
    assert core.do(c.Lease(wait_ms=9), one, request_id=5, ticket="one") is None
    assert core.do(c.Lease(wait_ms=9), two, request_id=6, ticket="two") is None
    core.submit_jobs(2)
    assert answers(core) == [("one", [1]), ("two", [2])]


def test_waiting_lease_of_a_session_is_remembered_once_it_is_served(core):
    caller, _ = core.engine.hello(c.Hello(version=1, session=b"s" * 16), core.now, "one")
    assert core.do(c.Lease(wait_ms=9), caller, request_id=5, ticket="one") is None
    core.submit()
    assert ids_of(core.do(c.Lease(wait_ms=9), caller, request_id=5, ticket="two")) == [1]
    core.engine.disconnect(caller, "one", core.now)


def test_parked_leases_are_no_facts(core):
    park(core, "one", "a", "b")
    core.restart()
    core.submit(queue="a")
    assert answers(core) == []
    assert core.states(1) == ["ready"]
