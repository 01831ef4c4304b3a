"""Clients in a fork: the child connects for itself, and the parent does not notice."""

import asyncio
import gc
import os
import pickle
import resource
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import uvloop

from jqd.client import requests
from jqd.client.aio import AsyncClient
from jqd.client.link import _close_copy
from jqd.client.retry import Backoff
from jqd.client.sync import Client
from jqd.core.commands import JobInfo, Lease, Leased, LeasedJob, Ping, Pong, Stats, Submit, Submitted
from jqd.errors import ConnectionLost
from tests.support.fakeserver import Asked, FakeServer
from tests.support.fork import Flag, become_child, end_if_stuck, ended_well, forked

# What these tests are about is forking beside threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

PONG = Pong(wall_ms=1, engine_ms=2)
GRANTED = Leased(
    token=77, lease_ms_left=30_000, wall_ms=5, jobs=[LeasedJob(job_id=4, queue="q", attempt=1, payload=b"x")]
)
REPLIES = {
    "submit": Submitted(job_id=1),
    "lease": GRANTED,
    "get": JobInfo(
        job_id=4, queue="q", state="leased", attempt=1, created_wall_ms=1, changed_wall_ms=2, payload_bytes=1
    ),
}
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer.thread() as server:
        server.answers["ping"] = PONG
        yield server


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def run(loop: Callable[[], asyncio.AbstractEventLoop], coroutine: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(coroutine)


def heard(server: FakeServer, count: int) -> list[Asked]:
    return server.wait(server.heard(count))


def say(server: FakeServer, asked: Asked, body: Any) -> None:
    server.do(asked.connection.say, asked.request_id, body)


def lost(server: FakeServer, index: int) -> None:
    server.wait(server.connections[index].lost.wait())


# --- the blocking client ----------------------------------------------------------------------


def test_the_child_has_a_connection_and_a_session_of_its_own(server):
    with Client(server.url, worker="w-1") as client:
        client.ping()
        with forked(lambda: [client.ping() for _ in range(3)]):
            heard(server, 4)
            lost(server, 1)
            client.ping()
        parents, childs = server.connections
        assert [asked.connection for asked in server.asked] == [parents, *[childs] * 3, parents]
        assert parents.hello.session != childs.hello.session
        assert (childs.hello.worker, childs.hello.client) == ("w-1", parents.hello.client)
        # Ids count anew: what the child asks is not mixed up with what the parent did.
        assert [asked.request_id for asked in server.asked] == [2, 2, 3, 4, 3]


def test_a_grandchild_too(server):
    def child() -> None:
        client.ping()
        with forked(client.ping):
            pass
        client.ping()

    with Client(server.url) as client:
        with forked(child):
            pass
        assert len({one.hello.session for one in server.connections}) == len(server.connections) == 3


def test_what_is_asked_stays_the_parents(server, threads):
    """Requests of other threads are under way, one of them reads the socket, and the child is as loud as it can be."""
    answer = Flag()

    def child() -> None:
        client.ping()
        client.close()
        answer.set()

    with Client(server.url) as client:
        asked = [
            threads.submit(client.submit, "q", b"1"),
            threads.submit(client.lease, "q", wait=20),
            threads.submit(client.call_many, [requests.submit("q", b"2", {}), requests.stats()]),
        ]
        heard(server, 4)
        with forked(child):
            answer.wait()
        assert not any(connection.ended.is_set() for connection in server.connections[:2])
        for one in heard(server, 5):
            if isinstance(one.command, Submit):
                say(server, one, Submitted(job_id=int(one.command.payload)))
            elif not isinstance(one.command, Ping | Stats):
                say(server, one, GRANTED)
        assert asked[0].result(10).job_id == 1
        assert asked[1].result(10).jobs[0].job_id == 4
        stats = next(one for one in server.asked if isinstance(one.command, Stats))
        say(server, stats, PONG)
        assert asked[2].result(10)[0] == Submitted(job_id=2)
        assert len(server.asked) == 5, "nothing was sent twice"


def test_a_lock_that_another_thread_holds_is_not_waited_for_in_the_child(server, threads):
    held, done = threading.Event(), threading.Event()

    def hold(client: Client) -> None:
        with client._lock:
            held.set()
            assert done.wait(10)

    with Client(server.url) as client:
        holder = threads.submit(hold, client)
        assert held.wait(10)
        with forked(client.ping):
            pass
        done.set()
        holder.result(10)
        assert client.ping() == PONG


def test_the_server_sees_the_parents_end_while_children_live(server, threads):
    """A child that uses no client keeps none of its connections open."""
    end = Flag()
    client = Client(server.url)
    client.connect()
    waiting = threads.submit(client.lease, "q", wait=20)
    heard(server, 1)
    with forked(end.wait):
        client.close()
        lost(server, 0)
        lost(server, 1)
        end.set()
    assert isinstance(waiting.exception(10), ConnectionLost)


def test_a_child_that_ends_or_collects_the_client_leaves_the_parents_connection(server):
    holders = [Client(server.url)]

    def end() -> None:
        with holders[0]:
            pass

    def collect() -> None:
        holders.clear()
        gc.collect()

    holders[0].connect()
    with forked(end):
        pass
    lost(server, 1)
    with forked(collect):
        pass
    assert holders[0].ping() == PONG
    assert len(server.connections) == 2 and not server.connections[0].ended.is_set()
    holders[0].close()


def test_one_that_was_closed_is_closed_in_the_child(server):
    client = Client(server.url)
    client.close()

    def child() -> None:
        with pytest.raises(ConnectionLost, match="the client is closed"):
            client.ping()

    with forked(child):
        pass


def test_a_child_waits_for_a_server_that_the_parent_has_reached(server):
    """It was there a moment ago: it restarts."""
    with Client(server.url, backoff=Backoff(first_ms=1)) as client:
        port = server.port
        server.wait(server.leave())
        with forked(client.ping):
            server.wait(server.listen(port))


# --- a fork inside a request: by a signal handler ---------------------------------------------


class Leave(BaseException):
    """Raised by the signal handler in the child: the way out of the request that it was forked in."""


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("verb", ["submit", "lease", "pipeline"])
def test_a_child_forked_inside_a_request_has_no_part_in_it(server, verb, raises):
    """The signal handler returns into it, or uses the client and raises, while another thread holds the client's lock."""
    client = Client(server.url)
    pids: list[int] = []

    def fork(*_: object) -> None:
        pids.append(os.fork())
        if pids[0]:
            if raises:
                server.do(client._lock.release)
            say(server, next(one for one in server.asked if one.command.verb == hit_by), REPLIES[hit_by])
            return
        end_if_stuck()
        if raises:
            client.ping()
            raise Leave

    def hit(asked: Asked) -> None:
        server.answers[hit_by] = REPLIES[hit_by]  # to the child
        while verb == "pipeline" and len(client._main._waiters) > 1:
            pass  # until the lease's reply has come, for which nobody may give the jobs back
        if raises:
            client._lock.acquire()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        asked.connection.say(0, PONG)  # means nothing, and ends a poll that began too late for the signal

    def ask() -> object:
        match verb:
            case "submit":
                return client.submit("q", b"1")
            case "lease":
                return client.lease("q", wait=20).token
        return client.call_many([Lease(queues=["q"]), requests.get(4)])

    def child(outcome: Any) -> None:
        if raises:
            assert isinstance(outcome, Leave)
        elif verb == "pipeline":
            assert outcome[0] == GRANTED and "before the fork" in str(outcome[1])
        else:
            assert "before the fork" in str(outcome)
        assert client.ping() == PONG
        assert client.lease("q", wait=1).token == GRANTED.token
        client.close()

    hit_by = "get" if verb == "pipeline" else verb
    server.answers |= {"lease": GRANTED, hit_by: hit}
    before = signal.signal(signal.SIGUSR1, fork)
    try:
        outcome: Any = ask()
    except BaseException as error:
        outcome = error
    finally:
        signal.signal(signal.SIGUSR1, before)
    if not pids[0]:
        become_child(partial(child, outcome))
    ended_well(pids[0])
    replies = {"submit": REPLIES["submit"], "lease": GRANTED.token, "pipeline": [GRANTED, REPLIES["get"]]}
    assert outcome == replies[verb]
    lost(server, len(server.connections) - 1)
    assert client.ping() == PONG
    asked = ["lease", "get"] if verb == "pipeline" else [verb]
    childs = ["ping", "ping", "lease"] if raises else ["ping", "lease"]
    assert [one.command.verb for one in server.asked] == [*asked, *childs, "ping"], "nothing is given back"
    assert not any(one.ended.is_set() for one in {server.asked[0].connection, server.asked[-1].connection})
    client.close()


# --- the asyncio client -----------------------------------------------------------------------


@LOOPS
def test_one_that_was_never_used_works_in_any_child(server, loop):
    """As with a web server that loads the program and then forks its workers."""
    client = AsyncClient(server.url)

    async def child() -> None:
        async with client:
            assert await client.ping() == PONG

    for _ in range(2):
        with forked(lambda: run(loop, child())):
            pass
    assert len({connection.hello.session for connection in server.connections}) == 2


@LOOPS
def test_one_in_use_begins_anew_in_the_childs_loop(server, loop):
    async def child(client: AsyncClient) -> None:
        async with client:
            assert await client.ping() == PONG

    async def parent() -> None:
        async with AsyncClient(server.url) as client:
            waiting = asyncio.create_task(client.lease("q", wait=20))
            await asyncio.to_thread(heard, server, 1)
            with forked(lambda: run(loop, child(client))):
                await asyncio.to_thread(heard, server, 2)
                await asyncio.to_thread(lost, server, 2)
            assert await client.ping() == PONG
            say(server, server.asked[0], GRANTED)
            assert (await waiting).jobs[0].job_id == 4

    run(loop, parent())
    parents, leases, childs = server.connections
    assert parents.hello.session == leases.hello.session != childs.hello.session
    assert [one.connection for one in server.asked] == [leases, childs, parents]


@LOOPS
def test_the_server_sees_the_asyncio_parents_end_while_children_live(server, loop):
    async def parent() -> None:
        client = AsyncClient(server.url)
        await client.connect()
        end = Flag()
        with forked(end.wait):
            await client.close()
            await asyncio.to_thread(lost, server, 0)
            end.set()

    run(loop, parent())


def test_a_copy_is_closed_where_no_more_files_can_be_opened():
    reads, writes = os.pipe()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(reads, writes) + 1, limits[1]))
        _close_copy(writes)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert os.read(reads, 1) == b"", "nobody writes there any more"
    assert not os.get_inheritable(writes)
    with pytest.raises(OSError, match="not connected|Broken pipe"):
        os.write(writes, b"x")
    os.close(reads)
    os.close(writes)


# --- other processes --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_pickle_is_another_client_of_the_same_settings(kind):
    backoff = Backoff(first_ms=7)
    client = kind(
        "unix:///nowhere", worker="w-1", timeout=timedelta(seconds=2.5), backoff=backoff, on_cancel=print
    )
    other = pickle.loads(pickle.dumps(client))
    assert (type(other), other.url, other._timeout_ms, other._shared.backoff) == (
        kind,
        "unix:///nowhere",
        2_500,
        backoff,
    )
    ours, theirs = (one._shared.session.hello for one in (client, other))
    assert ours.worker == theirs.worker == "w-1"
    assert other._shared.session.on_cancel is print
    assert ours.session != theirs.session
