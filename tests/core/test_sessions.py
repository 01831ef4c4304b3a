"""hello, and requests that come twice."""

import msgspec
import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.core.changes import RequestsAnswered, SessionOpened, SessionsForgotten
from jqd.core.model import Caller
from jqd.errors import (
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    PositionLost,
    Unauthenticated,
    VersionMismatch,
)
from tests.support.core import ENGINE_MS, IDENTITY, WALL_MS, Core, ids_of

S = b"s" * 16
T = b"t" * 16
FORGOTTEN_MS = 600_000


# --- hello --------------------------------------------------------------------------------------


def test_hello_names_the_server_its_clocks_and_its_limits(core):
    caller, welcome = core.connect(worker="box")
    assert caller == Caller(worker="box")
    assert (welcome.version, welcome.minor) == (1, 0)
    assert (welcome.server, welcome.store_id) == (IDENTITY.server, IDENTITY.store_id)
    assert (welcome.epoch, welcome.engine_ms, welcome.wall_ms) == (WALL_MS // 1_000, ENGINE_MS, WALL_MS)
    assert welcome.limits["payload_bytes"] == 1 << 20


def test_hello_says_where_this_run_began(core, monkeypatch):
    def said() -> tuple[int, int]:
        _, welcome = core.connect()
        return welcome.epoch, welcome.start_lsn

    assert said() == (WALL_MS // 1_000, 1)
    core.submit_jobs(3)
    acknowledged = core.state.lsn
    core.restart(down_ms=60_000)
    assert said() == (WALL_MS // 1_000 + 60, acknowledged + 1)
    monkeypatch.setattr(model, "GRANT_MAX", 0)
    core.held()
    assert core.state.epoch == WALL_MS // 1_000 + 61, "of tokens; the run is the same"
    assert said() == (WALL_MS // 1_000 + 60, acknowledged + 1)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"version": 2}, VersionMismatch, "version = 2: this server speaks 1"),
        ({"key": "secret"}, Unauthenticated, "key: this server has no API keys"),
        (
            {"on_disconnect": "release", "session": None},
            InvalidArgument,
            "on_disconnect = 'release': give a session",
        ),
    ],
)
def test_hello_that_cannot_be_kept_is_refused(core, fields, error, message):
    with pytest.raises(error, match=message) as refusal:
        core.connect(**{"session": S} | fields)
    assert "secret" not in str(refusal.value)
    assert core.state.sessions == {}


def known(core: Core, session: bytes) -> Caller:
    """Say hello, and change something: before that there is nothing to remember."""
    caller = core.hello(session)
    core.submit(caller=caller)
    return caller


def test_session_is_opened_once_by_its_first_change(core):
    caller = core.hello(S)
    core.do(c.Get(job_id=core.submit()), caller)
    assert core.state.sessions == {}
    core.execute(c.Submit(), caller)
    assert SessionOpened(S) in core.turn()
    core.execute(c.Submit(), caller)
    assert SessionOpened(S) not in core.turn()


def test_session_of_another_principal_is_refused(core):
    known(core, S)
    core.state.sessions[S].principal = "key7"
    with pytest.raises(PermissionDenied, match="session: it belongs to another key"):
        known(core, S)
    core.state.sessions[S].principal = ""


def test_full_table_of_sessions_is_overloaded_for_new_ones_only(core, monkeypatch):
    monkeypatch.setattr(model, "SESSIONS_MAX", 1)
    known(core, S)
    with pytest.raises(Overloaded) as refusal:
        core.hello(T)
    assert str(refusal.value) == "1 sessions are remembered: the limit is 1"
    assert refusal.value.retryable
    assert refusal.value.retry_after_ms == 60_000
    core.hello(S)
    core.hello(None)


def test_limit_is_a_hundred_thousand_sessions():
    assert model.SESSIONS_MAX == 100_000


def test_session_is_forgotten_ten_minutes_after_its_last_connection(core):
    one, two = known(core, S), known(core, S)
    core.leave(one)
    core.wait(2 * FORGOTTEN_MS)
    assert S in core.state.sessions, "it has a connection"
    core.leave(two)
    assert core.engine.next_deadline(core.now) == core.engine_ms + FORGOTTEN_MS
    core.wait(FORGOTTEN_MS - 1)
    assert S in core.state.sessions
    assert core.wait(1) == [SessionsForgotten([S])]
    assert core.state.sessions == {}


def test_session_that_came_back_is_not_forgotten(core):
    core.leave(known(core, S))
    core.wait(FORGOTTEN_MS - 1)
    core.hello(S)
    core.wait(FORGOTTEN_MS)
    assert S in core.state.sessions


def test_only_the_sessions_whose_time_has_come_are_forgotten(core, monkeypatch):
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 2)
    names = [bytes([number]) * 16 for number in range(4)]
    for name in names[:3]:
        core.leave(known(core, name))
    core.wait(10)
    core.leave(known(core, names[3]))
    core.move(FORGOTTEN_MS - 10)
    assert core.turn() == [SessionsForgotten(names[:2])]
    assert core.turn() == [SessionsForgotten(names[2:3])]
    assert core.turn() == []
    assert core.wait(10) == [SessionsForgotten(names[3:])]


def test_ten_minutes_run_anew_after_a_restart(core):
    known(core, S)
    core.restart()
    core.wait(FORGOTTEN_MS - 1)
    assert S in core.state.sessions
    core.wait(1)
    assert S not in core.state.sessions


# --- retries ------------------------------------------------------------------------------------


def jobs(core: Core) -> int:
    return sum(core.state.counts())


@pytest.mark.parametrize("restart", [False, True])
def test_retried_submit_is_answered_once(core, restart):
    caller = core.hello(S)
    first = core.do(c.Submit(), caller, request_id=5)
    if restart:
        core.restart()
        caller = core.hello(S)
    assert core.do(c.Submit(), caller, request_id=5) == first
    assert jobs(core) == 1


def test_retry_gets_the_same_body_for_every_verb_that_changes_something(core):
    caller = core.hello(S)
    core.submit_jobs(6)
    leased = core.lease(count=4)
    items = [(leased.token, [(1, 1)])]
    for request_id, command in enumerate(
        [
            c.SubmitMany(groups=[c.SubmitGroup(payloads=[b""])]),
            c.Extend(items=items),
            c.Ack(items=[(leased.token, [(1, 1)], None)]),
            c.Fail(items=[(leased.token, [(2, 1)])], dead=True),
            c.Release(items=[(leased.token, [(3, 1)])]),
            c.Cancel(ids=[(5, 1)]),
            c.Requeue(ids=[(2, 1)]),
            c.Purge(ids=[(6, 1)]),
        ],
        start=1,
    ):
        first = core.do(command, caller, request_id=request_id)
        digest = core.state.digest()
        assert core.do(command, caller, request_id=request_id) == first
        assert core.state.digest() == digest


def test_without_a_session_a_retry_is_a_new_request(core):
    core.do(c.Submit(), request_id=5)
    core.do(c.Submit(), request_id=5)
    assert jobs(core) == 2


def test_request_ids_of_two_sessions_do_not_meet(core):
    one, two = core.hello(S), core.hello(T)
    core.do(c.Submit(), one, request_id=5)
    core.do(c.Submit(), two, request_id=5)
    assert jobs(core) == 2


def test_what_changed_nothing_is_not_remembered(core):
    caller = core.hello(S)
    with pytest.raises(InvalidArgument):
        core.do(c.Submit(group="g/"), caller, request_id=5)
    assert core.do(c.Ack(items=[(1, [(1, 1)], None)]), caller, request_id=6).results == [
        (1, 1, "job_not_found")
    ]
    assert core.do(c.Lease(), caller, request_id=7).jobs == []
    assert core.state.sessions == {}


def test_reading_is_never_remembered(core):
    caller = core.hello(S)
    core.submit()
    assert core.do(c.Get(job_id=1), caller, request_id=5).state == "ready"
    core.cancel(1)
    assert core.do(c.Get(job_id=1), caller, request_id=5).state == "cancelled"


def test_answer_is_a_fact_beside_the_change(core):
    caller = core.hello(S)
    core.execute(c.Submit(), caller, request_id=5)
    assert core.turn()[-1] == RequestsAnswered(S, [(5, msgspec.msgpack.encode(c.Submitted(job_id=1)))])


def test_request_at_or_below_the_forgotten_ones_has_lost_its_position(core, monkeypatch):
    monkeypatch.setattr(model, "ANSWERS_PER_SESSION_MAX", 2)
    caller = core.hello(S)
    for request_id in (5, 6, 7):
        core.do(c.Submit(), caller, request_id=request_id)
    for request_id in (4, 5):
        with pytest.raises(PositionLost) as refusal:
            core.do(c.Submit(), caller, request_id=request_id)
        assert str(refusal.value) == (
            f"request_id = {request_id}: only the newest 2 answers of a session are remembered "
            "(nothing at or below 5); its outcome is unknown"
        )
    assert core.do(c.Submit(), caller, request_id=6).job_id == 2
    assert core.do(c.Get(job_id=1), caller, request_id=5).job_id == 1, "reading has no position"


def test_answers_are_forgotten_by_their_bytes_too_but_never_the_newest(core, monkeypatch):
    monkeypatch.setattr(model, "ANSWERS_BYTES_PER_SESSION_MAX", 20)  # an answer to submit has 9
    caller = core.hello(S)
    for request_id, remembered in ((5, [5]), (6, [5, 6]), (7, [6, 7])):
        core.do(c.Submit(), caller, request_id=request_id)
        assert list(core.state.sessions[S].answers) == remembered
    core.do(c.Submit(), caller, request_id=5 + 3)
    assert core.state.sessions[S].floor == 6
    monkeypatch.setattr(model, "ANSWERS_BYTES_PER_SESSION_MAX", 1)
    core.do(c.Submit(), caller, request_id=9)
    assert list(core.state.sessions[S].answers) == [9]
    assert core.do(c.Submit(), caller, request_id=9).job_id == 5


def test_floor_never_sinks_when_requests_came_out_of_order(core, monkeypatch):
    monkeypatch.setattr(model, "ANSWERS_PER_SESSION_MAX", 2)
    caller = core.hello(S)
    for request_id, floor in ((9, 0), (4, 0), (12, 9), (13, 9)):
        core.do(c.Submit(), caller, request_id=request_id)
        assert core.state.sessions[S].floor == floor, request_id


def test_request_id_used_for_a_parked_lease_and_another_verb_is_one_answer(core):
    caller = core.hello(S)
    assert core.do(c.Lease(queues=["a"], wait_ms=9), caller, request_id=5) is None
    core.do(c.Submit(queue="b"), caller, request_id=5)
    core.submit(queue="a")
    assert list(core.state.sessions[S].answers) == [5]
    assert ids_of(core.do(c.Lease(), caller, request_id=5)) == [2]


def test_limit_is_1024_answers(core):
    assert model.ANSWERS_PER_SESSION_MAX == 1_024


# --- retried leases -----------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_retried_lease_gets_the_same_grant(core, restart):
    caller = core.hello(S)
    core.submit_jobs(3)
    first = core.do(c.Lease(count=2), caller, request_id=5)
    core.move(1_000)
    if restart:
        core.restart()
        caller = core.hello(S)
    again = core.do(c.Lease(count=2), caller, request_id=5)
    assert (again.token, again.jobs) == (first.token, first.jobs)
    assert again.lease_ms_left == (30_000 if restart else 29_000)
    assert core.states(1, 2, 3) == ["leased", "leased", "ready"]


def test_retried_lease_has_no_at_most_once_jobs(core):
    caller = core.hello(S)
    core.submit()
    core.submit(delivery="at_most_once")
    assert ids_of(core.do(c.Lease(count=2), caller, request_id=5)) == [1, 2]
    assert ids_of(core.do(c.Lease(count=2), caller, request_id=5)) == [1]


def test_retried_lease_has_only_what_is_still_held(core):
    caller = core.hello(S)
    core.submit_jobs(4)
    token = core.do(c.Lease(count=4), caller, request_id=5).token
    core.ack(token, 1)
    core.release(token, 2)
    core.purge(2)
    core.extend(token, 3)
    assert sorted(ids_of(core.do(c.Lease(count=4), caller, request_id=5))) == [3, 4]


@pytest.mark.parametrize("how", ["acked", "taken back", "at its deadline", "at most once"])
def test_retried_lease_of_which_nothing_is_held_is_empty(core, how):
    caller = core.hello(S)
    core.submit(delivery="at_most_once" if how == "at most once" else "at_least_once")
    token = core.do(c.Lease(), caller, request_id=5).token
    match how:
        case "acked":
            core.ack(token, 1)
        case "taken back":
            core.engine.take_back(token, core.now)
        case "at its deadline":
            core.move(30_000)
    again = core.execute(c.Lease(), caller, request_id=5)
    assert again == c.Leased(token=0, lease_ms_left=0, wall_ms=core.wall_ms, jobs=[])
