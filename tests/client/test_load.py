"""The load generator against a server that says what the test tells it to: what is sent, and what follows."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jqd.client import load as load_module
from jqd.client.load import BYTES_MAX, STAMP_BYTES, Kind, Latencies, Load, Plan, check
from jqd.core.commands import (
    Ack,
    Lease,
    Leased,
    LeasedJob,
    Release,
    Submit,
    SubmitMany,
    Submitted,
    SubmittedMany,
    Verdicts,
)
from jqd.errors import (
    BadFrame,
    Busy,
    ConnectionLost,
    InvalidArgument,
    LeaseLost,
    Overloaded,
    RequestTimeout,
    WrongState,
)
from tests.support.fakeserver import Asked, FakeServer

TOKEN = (1 << 62) + 1


def plan(kind: Kind = "submit", **more: Any) -> Plan:
    fields = {"queue": "q", "clients": 1, "pipeline": 1, "batch": 1, "payload_bytes": 20, "jobs": 10}
    return Plan(kind=kind, **{**fields, **more})


class Queue:
    """Answers as a daemon with one queue would: jobs by id from 1, a payload each."""

    def __init__(self, server: FakeServer) -> None:
        self.ready: dict[int, bytes] = {}
        self.next_id = 1
        self.done: list[int] = []
        self.lease_max = 10_000
        self.parked: list[tuple[Asked, Lease]] = []
        server.answers |= {
            "submit": self.submit,
            "submit_many": self.submit_many,
            "lease": self.lease,
            "ack": self.ack,
            "release": self.release,
        }

    def put(self, payload: bytes) -> int:
        self.next_id += 1
        self.ready[self.next_id - 1] = payload
        return self.next_id - 1

    def submit(self, asked: Asked) -> Submitted:
        reply = Submitted(job_id=self.put(asked.command.payload))  # type: ignore[attr-defined]
        self.unpark()
        return reply

    def submit_many(self, asked: Asked) -> SubmittedMany:
        (group,) = asked.command.groups  # type: ignore[attr-defined]
        ids = [self.put(payload) for payload in group.payloads]
        self.unpark()
        return SubmittedMany(jobs=[(ids[0], len(ids), False)])

    def lease(self, asked: Asked) -> Leased | None:
        command: Any = asked.command
        if not self.ready and command.wait_ms:
            self.parked.append((asked, command))
            return None
        return self.hand_out(command)

    def hand_out(self, command: Lease) -> Leased:
        ids = list(self.ready)[: min(command.count, self.lease_max)]
        jobs = [LeasedJob(job_id=n, queue="q", attempt=1, payload=self.ready.pop(n)) for n in ids]
        return Leased(token=TOKEN if jobs else 0, lease_ms_left=1, wall_ms=1, jobs=jobs)

    def unpark(self) -> None:
        while self.parked and self.ready:
            asked, command = self.parked.pop(0)
            if not asked.connection.lost.is_set():
                asked.connection.say(asked.request_id, self.hand_out(command))

    def ack(self, asked: Asked) -> Verdicts:
        ((token, ranges, _),) = asked.command.items  # type: ignore[attr-defined]
        assert token == TOKEN
        for first, count in ranges:
            self.done += range(first, first + count)
        return Verdicts(results=[(first, count, "ok") for first, count in ranges])

    def release(self, asked: Asked) -> Verdicts:
        return Verdicts(results=[(1, 1, "ok")])


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer.thread() as running:
        yield running


@contextmanager
def running(server: FakeServer, wanted: Plan, timeout_s: float = 10, **more: Any) -> Iterator[Load]:
    load = Load(server.url, wanted, timeout_s=timeout_s, **more)
    try:
        yield load
    finally:
        load.close()


def said(server: FakeServer, kind: type) -> list[Any]:
    return [asked.command for asked in server.asked if isinstance(asked.command, kind)]


# --- what is measured -------------------------------------------------------------------------


def test_percentiles_are_the_nearest_rank():
    times = Latencies()
    assert (len(times), times.percentile(50)) == (0, None)
    for us in (5, 1, 3, 2, 4):
        times.add(us * 1_000)
    assert [times.percentile(percent) for percent in (1, 20, 21, 50, 99, 100)] == [1, 1, 2, 3, 5, 5]
    times.add(7_999, 95)
    assert (len(times), times.percentile(5), times.percentile(6)) == (100, 5, 7)


@pytest.mark.parametrize(
    ("more", "limit"),
    [
        ({"queue": "a b"}, "queue = 'a b': a name must match"),
        ({"clients": 0}, "clients = 0: must be 1 to 1000"),
        ({"pipeline": 1_025}, "pipeline = 1025: must be 1 to 1024"),
        ({"batch": 10_001}, "batch = 10001: must be 1 to 10000"),
        ({"payload_bytes": (1 << 20) + 1}, "payload_bytes = 1048577: must be 0 to 1048576"),
        ({"payload_bytes": 15, "kind": "mixed"}, "payload_bytes = 15: must be 16 to 1048576"),
        ({"jobs": 10_000_001}, "jobs = 10000001: must be 1 to 10000000"),
        ({"payload_bytes": 1 << 20, "jobs": 1_025}, f"= 1074790400 bytes: the limit is {BYTES_MAX}"),
        ({"payload_bytes": 1 << 20, "batch": 16}, "the limit of a request is 16777216"),
    ],
)
def test_what_a_daemon_would_refuse_is_not_sent(more, limit):
    with pytest.raises(InvalidArgument) as caught:
        check(plan(**{"kind": "submit", **more}))
    assert limit in str(caught.value)


def test_what_is_just_allowed_is_accepted():
    check(plan(payload_bytes=1 << 20, jobs=1_024, batch=15))
    check(plan("lease", payload_bytes=1 << 20, batch=10_000))  # a reply ends by itself
    check(plan("mixed", payload_bytes=STAMP_BYTES, clients=1_000, pipeline=1_024, batch=10_000))


# --- submit -----------------------------------------------------------------------------------


def test_submit_sends_each_job_once_over_sessions_of_their_own(server):
    queue = Queue(server)
    with running(server, plan(clients=3, jobs=100, payload_bytes=70)) as load:
        load.prepare()
        assert server.asked == []
        span = load.measure()
        assert (span.jobs, len(span.requests), len(span.waits), span.stopped) == (100, 100, 0, False)
        assert span.seconds > 0
        assert list(load.own_ids()) == [list(range(1, 101))]
    commands = said(server, Submit)
    assert {(command.queue, len(command.payload)) for command in commands} == {("q", 70)}
    assert len(commands) == len(queue.ready) == 100
    assert len({connection.hello.session for connection in server.connections}) == 3


def test_submit_keeps_as_many_in_flight_as_the_pipeline_says(server):
    waiting: list[Asked] = []
    most: list[int] = []

    def answer(asked: Asked) -> None:
        waiting.append(asked)
        most.append(len(waiting))
        left = 100 - sum(1 for _ in most) + len(waiting)
        if len(waiting) == min(8, left):  # nothing is answered before the window is full
            for request in [*waiting]:
                request.connection.say(request.request_id, Submitted(job_id=len(most)))
            waiting.clear()

    server.answers["submit"] = answer
    with running(server, plan(pipeline=8, jobs=100)) as load:
        load.prepare()
        assert load.measure().jobs == 100
    assert max(most) == 8


def test_a_batch_is_one_submit_many_and_the_last_one_is_the_rest(server):
    Queue(server)
    with running(server, plan(batch=10, jobs=25)) as load:
        load.prepare()
        span = load.measure()
        assert (span.jobs, len(span.requests)) == (25, 3)
        assert list(load.own_ids()) == [list(range(1, 26))]
    sizes = [len(command.groups[0].payloads) for command in said(server, SubmitMany)]
    assert sizes == [10, 10, 5]
    assert not said(server, Submit)


def test_own_ids_come_in_parts_that_a_request_takes(server):
    with running(server, plan()) as load:
        load.own(9_000, 2_000)
        load.own(20_000, 9_000)
        load.own(1, 1)
        first, second = load.own_ids()
    assert [1, *range(9_000, 11_000), *range(20_000, 29_000)] == first + second
    assert len(first) == 10_000


def test_a_refusal_ends_it_after_what_is_under_way(server):
    ids = iter(range(1, 1_000))
    server.answers["submit"] = lambda _: Submitted(job_id=n) if (n := next(ids)) != 5 else Busy("full")
    with running(server, plan(clients=4, jobs=500)) as load:
        load.prepare()
        with pytest.raises(Busy, match="full"):
            load.measure()
        own = [job_id for part in load.own_ids() for job_id in part]
        asked = len(server.asked)
        assert load.unanswered == 0
    assert len(own) == load.done == asked - 1 < 20


# --- lease ------------------------------------------------------------------------------------


def test_lease_puts_jobs_in_and_acks_each_once(server):
    queue = Queue(server)
    with running(server, plan("lease", clients=3, batch=7, jobs=100, pipeline=2)) as load:
        load.prepare()
        assert len(queue.ready) == 100 and not said(server, Lease)
        span = load.measure()
    assert (span.jobs, sorted(queue.done)) == (100, list(range(1, 101)))
    assert len(span.requests) == len(said(server, Lease)) + len(said(server, Ack))
    assert {command.wait_ms for command in said(server, Lease)} == {0}


def test_what_a_short_reply_left_is_leased_by_another_one(server):
    queue = Queue(server)
    queue.lease_max = 3  # as if it had ended before its limit of bytes
    with running(server, plan("lease", batch=10, jobs=20)) as load:
        load.prepare()
        assert load.measure().jobs == 20
    assert sorted(queue.done) == list(range(1, 21))


def test_jobs_of_somebody_else_are_given_back(server):
    queue = Queue(server)
    with running(server, plan("lease", batch=4, jobs=10)) as load:
        load.prepare()
        theirs = {queue.put(b"theirs") for _ in range(3)}
        queue.ready = {n: queue.ready[n] for n in [*theirs, *(set(queue.ready) - theirs)]}
        with pytest.raises(WrongState, match="somebody else puts jobs in"):
            load.measure()
    assert queue.done == []
    ((_, ranges),) = said(server, Release)[0].items
    assert {n for first, count in ranges for n in range(first, first + count)} >= theirs


def test_own_jobs_between_those_of_somebody_else_are_told_apart(server):
    with running(server, plan("lease")) as load:
        load._fence = [10, 20, 30, 40]
        jobs = {
            n: LeasedJob(job_id=n, queue="q", attempt=1, payload=b"") for n in (9, 10, 19, 20, 29, 30, 39, 40)
        }
        assert [n for n, job in jobs.items() if load.is_own([job])] == [10, 19, 30, 39]
        assert load.is_own([jobs[10], jobs[39]]) and load.is_own([jobs[39], jobs[10]])
        assert not load.is_own([jobs[10], jobs[29]]) and not load.is_own([jobs[19], jobs[20]])


def test_jobs_that_somebody_else_has_leased_are_missed(server):
    queue = Queue(server)
    with running(server, plan("lease", batch=4, jobs=10)) as load:
        load.prepare()
        del queue.ready[3]
        with pytest.raises(WrongState, match="1 jobs of this run are not there any more"):
            load.measure()
    assert len(queue.done) == 9


def test_existing_jobs_are_taken_only_when_told_and_until_there_is_none(server):
    queue = Queue(server)
    for _ in range(7):
        queue.put(b"theirs")
    with running(server, plan("lease", batch=3, jobs=100, existing=True)) as load:
        load.prepare()
        assert load.measure().jobs == 7
        assert list(load.own_ids()) == []
    assert not said(server, SubmitMany) and len(queue.done) == 7


def test_a_lease_that_ran_out_is_said(server):
    Queue(server)
    server.answers["ack"] = Verdicts(results=[(1, 2, "ok"), (3, 2, "lease_lost")])
    with running(server, plan("lease", batch=4, jobs=4)) as load:
        load.prepare()
        with pytest.raises(LeaseLost, match="ack of 2 jobs from 3 on"):
            load.measure()
    assert load.done == 2


# --- mixed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 10])
def test_mixed_submits_leases_and_acks_each_job_once(server, batch):
    queue = Queue(server)
    most = 0

    def watched(answer: Callable[[Asked], Any]) -> Callable[[Asked], Any]:
        def watch(asked: Asked) -> Any:
            nonlocal most
            reply = answer(asked)
            most = max(most, queue.next_id - 1 - len(queue.done))
            return reply

        return watch

    server.answers |= {"submit": watched(queue.submit), "submit_many": watched(queue.submit_many)}
    with running(server, plan("mixed", clients=3, pipeline=2, batch=batch, jobs=200)) as load:
        load.prepare()
        span = load.measure()
    assert (span.jobs, sorted(queue.done)) == (200, list(range(1, 201)))
    assert len(span.waits) == 200
    submits = said(server, Submit) + said(server, SubmitMany)
    assert len(span.requests) == len(submits) + len(said(server, Ack))
    assert most <= 3 * 2 * batch  # more are never on their way: an ack lets the next one in
    assert {(command.wait_ms, command.count) for command in said(server, Lease)} == {(1_000, batch)}


def test_mixed_gives_back_a_job_that_it_did_not_submit(server):
    queue = Queue(server)
    theirs = queue.put(b"theirs and longer than a stamp")
    with running(server, plan("mixed", jobs=100)) as load:
        load.prepare()
        with pytest.raises(WrongState, match="somebody else puts jobs in"):
            load.measure()
    assert said(server, Release)[0].items == [(TOKEN, [(theirs, 1)])]
    assert theirs not in queue.done


# --- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["submit", "lease", "mixed"])
def test_stop_finishes_what_is_under_way_and_begins_nothing_new(server, kind):
    queue = Queue(server)
    verb = "submit" if kind == "submit" else "ack"
    answer: Any = server.answers[verb]
    stopped = threading.Event()

    def stop_at_ten(asked: Asked) -> Any:
        if len([one for one in server.asked if one.command.verb == verb]) == 10:
            load.stop()
            stopped.set()
        return answer(asked)

    server.answers[verb] = stop_at_ten
    with running(server, plan(kind, clients=2, jobs=10_000_000 if kind != "lease" else 100_000)) as load:
        load.prepare()
        span = load.measure()
        own = sum(len(part) for part in load.own_ids())
    assert stopped.is_set() and span.stopped and load.unanswered <= 2  # leases that wait
    assert 10 <= span.jobs < load.plan.jobs
    if kind == "submit":
        assert span.jobs == own == len(queue.ready)
    else:
        assert span.jobs == len(queue.done)
    if kind == "mixed":
        assert load.open == 0 and not queue.ready


def test_stopped_before_it_began_it_sends_nothing(server):
    Queue(server)
    with running(server, plan()) as load:
        load.prepare()
        load.stop()
        assert load.measure().jobs == 0
    assert server.asked == []


def test_a_lost_connection_is_said_at_once(server):
    server.answers["submit"] = lambda asked: asked.connection.cut()
    with running(server, plan(clients=2)) as load:
        load.prepare()
        with pytest.raises(ConnectionLost, match="the connection was lost") as caught:
            load.measure()
    assert caught.value.outcome_unknown


def test_a_server_that_is_silent_is_given_up(server):
    with running(server, plan(), timeout_s=0.05) as load:
        load.prepare()
        with pytest.raises(RequestTimeout, match=r"no progress at jqd://.* within 0.05 s"):
            load.measure()


def test_workers_that_wait_for_nothing_are_no_progress(server, monkeypatch):
    Queue(server)
    empty = Leased(token=0, lease_ms_left=0, wall_ms=0, jobs=[])
    server.answers |= {"submit": None, "lease": empty}
    with running(server, plan("mixed"), timeout_s=0.05) as load:
        load.prepare()
        with pytest.raises(RequestTimeout, match="no progress"):
            load.measure()


def test_a_server_that_takes_no_more_connections_is_quoted(server):
    server.welcome = Overloaded("connections = 2: the limit is 2")
    with running(server, plan(clients=3)) as load, pytest.raises(Overloaded, match="the limit is 2"):
        load.prepare()


def test_nobody_there_is_said(server):
    with running(FakeServerAway(), plan()) as load, pytest.raises(ConnectionLost, match="cannot reach"):
        load.prepare()


class FakeServerAway(FakeServer):
    def __init__(self) -> None:
        super().__init__()
        self.url = "unix:///nonexistent/jqd.sock"


def test_a_reply_to_nothing_ends_it(server):
    def answer(asked: Asked) -> None:
        asked.connection.say(asked.request_id + 1, Submitted(job_id=1))

    server.answers["submit"] = answer
    with running(server, plan()) as load:
        load.prepare()
        with pytest.raises(BadFrame, match="not asked"):
            load.measure()


def test_too_many_clients_for_this_process_are_said(server, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(load_module, "open_socket", full)
    with running(server, plan(clients=900)) as load, pytest.raises(InvalidArgument, match="clients = 900"):
        load.prepare()


def test_large_requests_go_out_in_parts_while_replies_are_read(server):
    queue = Queue(server)
    with running(server, plan(payload_bytes=1 << 20, batch=4, pipeline=4, jobs=16)) as load:
        load.prepare()
        assert load.measure().jobs == 16
    assert {len(payload) for payload in queue.ready.values()} == {1 << 20}


def test_progress_is_told(server):
    Queue(server)
    told: list[tuple[int, int]] = []
    with running(server, plan(jobs=30), progress=lambda *now: told.append(now)) as load:
        load.prepare()
        load.measure()
    assert told[-1] == (30, 30)
