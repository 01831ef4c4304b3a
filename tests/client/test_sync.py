"""Client against a server that says what the test tells it to."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from msgspec import structs

from jqd.client import requests
from jqd.client.retry import Backoff
from jqd.client.shared import IN_FLIGHT_MAX
from jqd.client.sync import Client
from jqd.core.commands import Leased, LeasedJob, Ping, Pong, Release, Submit, Submitted
from jqd.errors import (
    BadFrame,
    Busy,
    ClientClosed,
    ConnectionLost,
    InvalidArgument,
    JobNotFound,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    StoreRolledBack,
    VersionMismatch,
)
from tests.support.fakeserver import WELCOME, Asked, FakeServer

PONG = Pong(wall_ms=1, engine_ms=2)
AT_ONCE = Backoff(first_ms=0)
NOTHING = Leased(token=0, lease_ms_left=0, wall_ms=0, jobs=[])
GRANTED = Leased(
    token=77,
    lease_ms_left=30_000,
    wall_ms=5,
    jobs=[LeasedJob(job_id=n, queue="q", attempt=1, payload=b"x") for n in (4, 5)],
)


def counted(asked: Asked) -> Submitted:
    """Answer a submit with the number that it has as payload."""
    assert isinstance(asked.command, Submit)
    return Submitted(job_id=int(asked.command.payload))


def measured(asked: Asked) -> Submitted:
    """Answer a submit with the size of its payload."""
    assert isinstance(asked.command, Submit)
    return Submitted(job_id=len(asked.command.payload))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer.thread() as server:
        yield server


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def heard(server: FakeServer, count: int) -> list[Asked]:
    return server.wait(server.heard(count))


def say(server: FakeServer, asked: Asked, body: Any) -> None:
    server.do(asked.connection.say, asked.request_id, body)


def failure(future: "Future[Any]") -> Any:
    return future.exception(10)


# --- asking -----------------------------------------------------------------------------------


def test_a_verb_gets_the_reply_of_its_command(server):
    server.answers["submit"] = Submitted(job_id=9)
    with Client(server.url, worker="w-1") as client:
        assert client.submit("emails", "hi", priority=3) == Submitted(job_id=9)
    assert server.asked[0].command == Submit(queue="emails", payload=b"hi", encoding="text", priority=3)
    assert server.connections[0].hello.worker == "w-1"


def test_an_error_reply_is_raised_as_it_is_and_not_asked_again(server):
    server.answers["submit"] = Busy("full")
    with Client(server.url) as client, pytest.raises(Busy, match="full"):
        client.submit("q", b"x")
    assert len(server.asked) == 1


def test_a_unix_socket_will_do(tmp_path):
    with FakeServer.thread(str(tmp_path / "s")) as server, Client(server.url) as client:
        server.answers["ping"] = PONG
        assert client.ping() == PONG


def test_threads_share_a_connection_and_get_their_own_replies(server, threads):
    server.answers["submit"] = counted
    with Client(server.url) as client:
        asked = [threads.submit(client.submit, "q", str(number)) for number in range(2_000)]
        assert [future.result(10).job_id for future in asked] == list(range(2_000))
    assert len(server.connections) == 1


def test_replies_come_in_any_order_to_the_threads_that_wait(server, threads):
    with Client(server.url) as client:
        asked = [threads.submit(client.submit, "q", str(number)) for number in range(8)]
        for one in reversed(heard(server, 8)):
            say(server, one, counted(one))
        assert [future.result(10).job_id for future in asked] == list(range(8))


def test_the_next_thread_reads_when_the_one_that_did_has_its_reply(server, threads):
    with Client(server.url) as client:
        first = threads.submit(client.submit, "q", "1")
        heard(server, 1)
        second = threads.submit(client.submit, "q", "2")
        asked = heard(server, 2)
        say(server, asked[0], counted(asked[0]))
        assert first.result(10).job_id == 1
        say(server, asked[1], counted(asked[1]))
        assert second.result(10).job_id == 2


def test_what_is_larger_than_the_sockets_buffers_goes_out_while_replies_come_in(server, threads):
    server.answers["submit"] = measured
    with Client(server.url) as client:
        client._main._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        asked = [threads.submit(client.submit, "q", bytes(1 << 20)) for _ in range(12)]
        assert {future.result(20).job_id for future in asked} == {1 << 20}


# --- pipelines --------------------------------------------------------------------------------


def test_a_pipeline_is_sent_before_it_is_waited_for(server, threads):
    with Client(server.url) as client:
        commands = [requests.submit("q", "1", {}), requests.get(5), requests.ping()]
        replies = threads.submit(client.call_many, commands)
        submit, get, ping = heard(server, 3)
        say(server, submit, counted(submit))
        say(server, get, JobNotFound("no job 5"))
        say(server, ping, PONG)
        first, second, third = replies.result(10)
        assert (first, third) == (Submitted(job_id=1), PONG)
        assert isinstance(second, JobNotFound)
        assert client.call_many([]) == []


def test_a_long_pipeline_keeps_to_the_window(server, threads):
    count = 2 * IN_FLIGHT_MAX + 1
    with Client(server.url) as client:
        commands = [requests.submit("q", str(number), {}) for number in range(count)]
        replies = threads.submit(client.call_many, commands)
        asked = heard(server, IN_FLIGHT_MAX)
        assert len(asked) == IN_FLIGHT_MAX
        server.answers["submit"] = counted
        for one in list(asked):
            say(server, one, counted(one))
        assert replies.result(10) == [Submitted(job_id=number) for number in range(count)]


def test_a_pipeline_with_what_cannot_be_sent_is_not_sent_at_all(server):
    server.answers["ping"] = PONG
    with Client(server.url) as client:
        with pytest.raises(PayloadTooLarge):
            client.call_many([requests.get(1), requests.submit("q", bytes(17 << 20), {})])
        with pytest.raises(InvalidArgument, match="use lease"):
            client.call_many([requests.get(1), requests.lease(wait=1)])
        client.ping()
    assert [one.command.verb for one in server.asked] == ["ping"]


# --- leases that wait -------------------------------------------------------------------------


def test_each_waiting_lease_has_a_connection_of_its_own_which_is_used_again(server, threads):
    with Client(server.url) as client:
        waiting = [threads.submit(client.lease, "q", wait=20) for _ in range(3)]
        asked = list(heard(server, 3))
        assert len({one.connection for one in asked}) == 3
        assert len({one.connection.hello.session for one in asked}) == 1
        assert len({one.request_id for one in asked}) == 3
        server.answers["ping"] = PONG
        client.ping()  # waits for none of them
        for one in asked:
            say(server, one, GRANTED)
        assert [len(future.result(10).jobs) for future in waiting] == [2, 2, 2]
        server.answers["lease"] = NOTHING
        assert client.lease("q", wait=20).jobs == []
        assert len(server.connections) == 4


@pytest.mark.parametrize("silent_s", [5.0, 0.001])
def test_a_lease_that_timed_out_tells_the_server_and_gives_late_jobs_back(
    server, threads, monkeypatch, silent_s
):
    monkeypatch.setattr("jqd.client.shared.SILENT_S", silent_s)
    server.linger = True
    with Client(server.url) as client:
        server.answers["lease"] = NOTHING
        client.lease("q", wait="1ms")
        del server.answers["lease"]
        late = threads.submit(client.lease, "q", wait="1ms", timeout="100ms")
        asked = heard(server, 2)[1]
        server.wait(asked.connection.ended.wait())
        say(server, asked, GRANTED)
        assert heard(server, 3)[2].command == Release(items=[(77, [(4, 2)])])
        server.do(asked.connection.cut)
        assert isinstance(failure(late), RequestTimeout)


def test_a_lease_whose_reply_comes_too_late_gives_the_jobs_back(server):
    server.answers["ping"] = PONG
    with Client(server.url) as client:
        with pytest.raises(RequestTimeout):
            client.lease("q", timeout="10ms")
        say(server, heard(server, 1)[0], GRANTED)
        client.ping()
        assert Release(items=[(77, [(4, 2)])]) in [one.command for one in heard(server, 3)]


# --- lost connections -------------------------------------------------------------------------


def test_unanswered_requests_are_sent_again_with_their_ids_in_the_same_session(server, threads):
    with Client(server.url, backoff=AT_ONCE) as client:
        asked = [threads.submit(client.submit, "q", str(number)) for number in range(5)]
        first = list(heard(server, 5))
        server.answers["submit"] = counted
        server.do(first[0].connection.cut)
        assert [future.result(10).job_id for future in asked] == list(range(5))
        again = server.asked[5:]
        assert [one.request_id for one in again] == [one.request_id for one in first]
        assert [one.command for one in again] == [one.command for one in first]
        assert again[0].connection.hello.session == first[0].connection.hello.session


def test_it_waits_for_a_server_that_restarts(server, threads):
    with Client(server.url, backoff=AT_ONCE) as client:
        asked = threads.submit(client.submit, "q", "7")
        heard(server, 1)
        port = server.port
        server.wait(server.leave())
        server.answers["submit"] = counted
        server.wait(server.listen(port))
        assert asked.result(10).job_id == 7


def test_it_gives_up_and_says_what_is_unknown(server, threads):
    with Client(server.url, backoff=Backoff(first_ms=0, give_up_ms=0)) as client:
        sent = [threads.submit(client.submit, "q", b""), threads.submit(client.get, 3)]
        heard(server, 2)
        server.wait(server.leave())
        errors = [failure(future) for future in sent]
        errors.append(failure(threads.submit(client.submit, "q", b"")))
        assert [type(error) for error in errors] == [ConnectionLost] * 3
        assert [error.outcome_unknown for error in errors] == [True, False, False]
        assert "outcome unknown" in str(errors[0]) and "cannot reach" in str(errors[0])
        assert "nothing was changed" in str(errors[2])
        server.wait(server.listen())


def test_a_request_that_breaks_every_connection_is_given_up(server):
    server.answers["submit"] = lambda asked: asked.connection.cut()
    with Client(server.url, backoff=AT_ONCE) as client:
        with pytest.raises(ConnectionLost) as caught:
            client.submit("q", b"")
        assert caught.value.outcome_unknown
    assert len(server.asked) == 5


RESTORED = structs.replace(WELCOME, epoch=9, start_lsn=50)


def test_after_a_rollback_what_was_under_way_ends_in_it_once_and_the_client_goes_on(server, threads):
    server.answers["ping"] = PONG
    server.lsn = 60
    with Client(server.url, backoff=AT_ONCE) as client:
        client.ping()
        under_way = [
            threads.submit(client.submit, "q", "1"),
            threads.submit(client.get, 3),
            threads.submit(client.lease, "q", wait=20),
        ]
        first = list(heard(server, 4))
        server.welcome, server.lsn = RESTORED, 51
        server.answers.update(submit=counted, lease=NOTHING)
        for connection in {asked.connection for asked in first}:
            server.do(connection.cut)
        errors = [failure(future) for future in under_way]
        assert [type(error) for error in errors] == [StoreRolledBack] * 3
        assert [error.outcome_unknown for error in errors] == [True, False, True]
        assert "LSN 60 was there in epoch 1, and epoch 9 began at LSN 50" in str(errors[0])
        assert client.submit("q", "7").job_id == 7
        assert client.lease("q", wait=20).jobs == []
        assert len(server.asked) == 6, "what ended in it was not sent again"


def test_connect_tells_of_a_rollback_too(server):
    server.lsn = 60
    with Client(server.url, backoff=Backoff(first_ms=0, give_up_ms=0)) as client:
        port = server.port
        server.wait(server.leave())
        with pytest.raises(ConnectionLost):
            client.ping()
        server.welcome, server.lsn = structs.replace(RESTORED, store_id="other"), 70
        server.answers["ping"] = PONG
        server.wait(server.listen(port))
        with pytest.raises(StoreRolledBack, match="another store answers: other, epoch 9, LSN 70"):
            client.connect()
        client.connect()
        assert client.ping() == PONG


def test_an_idle_connection_that_the_server_closed_is_noticed_before_it_is_used(server, monkeypatch):
    monkeypatch.setattr("jqd.client.synclink._IDLE_S", -1.0)
    server.answers["ping"] = PONG
    with Client(server.url, backoff=Backoff(first_ms=0, give_up_ms=0)) as client:
        client.ping()
        server.wait(server.leave())
        with pytest.raises(ConnectionLost, match="nothing was changed"):
            client.submit("q", b"")
        server.wait(server.listen())


def test_an_idle_connection_that_is_closed_is_made_again_by_the_next_request(server):
    server.answers["ping"] = PONG
    with Client(server.url, backoff=AT_ONCE) as client:
        client.ping()
        server.do(server.connections[0].cut)
        server.wait(server.connections[0].lost.wait())
        assert client.ping() == PONG
        assert len(server.connections) == 2


def test_a_server_that_talks_nonsense_is_left_and_tried_again(server, threads):
    with Client(server.url, backoff=AT_ONCE) as client:
        asked = threads.submit(client.submit, "q", "7")
        (first,) = heard(server, 1)
        server.answers["submit"] = counted
        server.do(first.connection.write, b"HTTP/1.1 400 Bad Request\r\n")
        assert asked.result(10).job_id == 7
        assert server.asked[1].connection is not first.connection


def test_a_fatal_error_about_the_stream_is_not_repeated(server):
    server.answers["submit"] = lambda asked: asked.connection.say(0, BadFrame("out of step"))
    with Client(server.url, backoff=AT_ONCE) as client, pytest.raises(ConnectionLost, match="out of step"):
        client.submit("q", b"")
    assert len(server.asked) == 1


# --- hello ------------------------------------------------------------------------------------


def test_connect_fails_at_once_where_no_server_is():
    with FakeServer.thread() as server:
        url = server.url
    with pytest.raises(ConnectionLost, match=f"cannot reach {url}") as caught, Client(url):
        pass
    assert not caught.value.outcome_unknown


def test_a_refused_hello_is_raised(server):
    server.welcome = VersionMismatch("version = 1: this server speaks 2")
    client = Client(server.url)
    with pytest.raises(VersionMismatch, match="speaks 2"):
        client.connect()
    with pytest.raises(VersionMismatch, match="speaks 2"):
        client.ping()
    client.close()


def test_a_server_of_another_protocol_is_not_taken_for_one_that_refuses(server):
    server.welcome = lambda: server.connections[-1].write(b"SSH-2.0-x\r\n")
    client = Client(server.url)
    with pytest.raises(ConnectionLost, match=f"{server.url} does not speak jqd"):
        client.connect()
    client.close()


def test_a_server_without_room_for_the_session_is_tried_again_once_it_was_reached(server, threads):
    with Client(server.url, backoff=AT_ONCE) as client:
        asked = threads.submit(client.submit, "q", "7")
        (first,) = heard(server, 1)
        server.welcome = lambda: Overloaded("100000 sessions") if len(server.connections) < 4 else WELCOME
        server.answers["submit"] = counted
        server.do(first.connection.cut)
        assert asked.result(10).job_id == 7
        assert len(server.connections) == 4


def test_limit_is_said_in_the_words_of_the_caller(server):
    with Client(server.url) as client:
        with pytest.raises(InvalidArgument, match="^lease: wait = 40s: at most 30s$"):
            client.lease("q", wait=40)
        (said,) = client.call_many([requests.submit("q", b"", {"lease": 0.5})])
        assert str(said) == "submit: lease = 500ms: at least 1s"


def test_a_server_without_a_word_is_no_answer(server, monkeypatch):
    monkeypatch.setattr("jqd.client.synclink.CONNECT_S", 0.01)
    server.welcome = None
    client = Client(server.url)
    with pytest.raises(ConnectionLost, match="does not answer within"):
        client.connect()
    client.close()


# --- time -------------------------------------------------------------------------------------


def test_a_timeout_says_that_the_outcome_is_unknown_and_the_connection_stays(server):
    server.answers["ping"] = PONG
    with Client(server.url) as client:
        with pytest.raises(RequestTimeout, match=r"submit: .*0\.01 s.*outcome unknown"):
            client.submit("q", b"", timeout="10ms")
        say(server, heard(server, 1)[0], Submitted(job_id=1))  # too late: nobody cares
        client.ping()
        assert len(server.connections) == 1


def test_a_thread_that_times_out_leaves_the_others_waiting(server, threads):
    with Client(server.url) as client:
        hasty = threads.submit(client.submit, "q", "1", timeout="100ms")
        heard(server, 1)
        patient = [threads.submit(client.submit, "q", str(number)) for number in (2, 3)]
        asked = heard(server, 3)[1:]
        assert isinstance(failure(hasty), RequestTimeout)
        for one in asked:
            say(server, one, counted(one))
        assert [future.result(10).job_id for future in patient] == [2, 3]
        follower = threads.submit(client.submit, "q", "4")
        heard(server, 4)
        with pytest.raises(RequestTimeout):  # a follower, by itself
            client.submit("q", "5", timeout="10ms")
        say(server, server.asked[3], Submitted(job_id=4))
        assert follower.result(10).job_id == 4


def test_what_was_never_sent_in_time_was_not_carried_out(server):
    server.welcome = None
    client = Client(server.url)
    with pytest.raises(ConnectionLost, match="nothing was changed") as caught:
        client.submit("q", b"", timeout="10ms")
    assert not caught.value.outcome_unknown
    client.close()


def test_a_silent_connection_is_given_up_after_a_timeout(server, threads, monkeypatch):
    monkeypatch.setattr("jqd.client.shared.SILENT_S", 0.001)
    with Client(server.url, backoff=AT_ONCE) as client:
        patient = threads.submit(client.submit, "q", "7")
        (first,) = list(heard(server, 1))
        server.answers["submit"] = counted
        with pytest.raises(RequestTimeout):
            client.ping(timeout="10ms")
        assert patient.result(10).job_id == 7
        assert server.asked[-1].connection is not first.connection


def test_a_waiting_lease_has_its_wait_on_top_of_the_timeout(server, threads):
    with Client(server.url, timeout="50ms") as client:
        waiting = threads.submit(client.lease, "q", wait=20)
        (asked,) = list(heard(server, 1))
        with pytest.raises(RequestTimeout):
            client.ping()
        say(server, asked, GRANTED)
        assert len(waiting.result(10).jobs) == 2


# --- interruptions ----------------------------------------------------------------------------


class Interrupt(BaseException):
    """As KeyboardInterrupt, which pytest takes for its own."""


def test_an_interrupted_wait_leaves_the_connection_whole(server, threads, monkeypatch):
    class Poll:
        def poll(self, pause_ms: float) -> Any:
            monkeypatch.undo()
            raise Interrupt

    with Client(server.url) as client:
        monkeypatch.setattr(client._main, "_poll", Poll())
        with pytest.raises(Interrupt):
            client.submit("q", b"1")
        server.answers["submit"] = counted
        other = threads.submit(client.submit, "q", "2")
        assert other.result(10).job_id == 2
        assert len(server.connections) == 1


def test_a_signal_handler_that_raises_leaves_the_client_usable(server):
    def interrupt(*_: object) -> None:
        raise Interrupt

    server.answers["ping"] = PONG
    server.answers["submit"] = lambda asked: os.kill(os.getpid(), signal.SIGUSR1)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with Client(server.url) as client:
            for _ in range(100):  # somewhere else each time; just before a poll it is seen only after it
                with pytest.raises(Interrupt):
                    client.submit("q", b"", timeout="500ms")
                assert client.ping() == PONG
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("where", ["_flush", "_receive", "_deliver"])
def test_an_interruption_in_the_middle_of_a_change_gives_the_connection_up(
    server, threads, monkeypatch, where
):
    from jqd.client.synclink import SyncLink

    main = threading.get_ident()
    whole = getattr(SyncLink, where)
    armed = [False]

    def torn(link: SyncLink, *args: Any) -> None:
        whole(link, *args)
        if armed[0] and threading.get_ident() == main:
            armed[0] = False
            raise Interrupt

    with Client(server.url) as client:
        server.answers["submit"] = lambda asked: None if asked.command.payload == b"1" else counted(asked)
        server.answers["ping"] = PONG
        other = threads.submit(client.submit, "q", "1") if where == "_flush" else None
        if other:
            heard(server, 1)
        monkeypatch.setattr(SyncLink, where, torn)
        armed[0] = True
        with pytest.raises(Interrupt):
            client.submit("q", "2")
        if other:
            error = failure(other)
            assert isinstance(error, ConnectionLost) and error.outcome_unknown
            assert "interrupted" in str(error)
        assert client.ping() == PONG
        assert [one.command.payload for one in server.asked if isinstance(one.command, Submit)].count(
            b"1"
        ) < 2
        assert len(server.connections) == 2


def test_a_lease_that_is_interrupted_gives_the_jobs_back(server, monkeypatch):
    from jqd.client.synclink import SyncLink

    whole = SyncLink._drive

    def interrupted(link: SyncLink, call: Any) -> None:
        whole(link, call)
        monkeypatch.undo()
        raise Interrupt

    server.answers["lease"] = GRANTED
    with Client(server.url) as client:
        monkeypatch.setattr(SyncLink, "_drive", interrupted)
        with pytest.raises(Interrupt):
            client.lease("q")
        assert heard(server, 2)[1].command == Release(items=[(77, [(4, 2)])])


# --- the end ----------------------------------------------------------------------------------


def test_close_ends_what_waits_in_every_thread(server, threads):
    client = Client(server.url)
    client.connect()
    waiting = [
        threads.submit(client.submit, "q", b""),
        threads.submit(client.submit, "q", b""),
        threads.submit(client.lease, "q", wait=20),
        threads.submit(client.stats),
    ]
    heard(server, 4)
    client.close()
    errors = [failure(future) for future in waiting]
    assert [error.outcome_unknown for error in errors] == [True, True, True, False]
    assert all("the client was closed" in str(error) for error in errors)
    assert [(type(error), error.retryable) for error in errors] == [(ClientClosed, False)] * 4
    for connection in server.connections:
        server.wait(connection.lost.wait())
    client.close()
    with pytest.raises(ConnectionLost, match="the client is closed") as caught:
        client.ping()
    assert not caught.value.retryable


def test_close_does_not_wait_for_the_next_attempt(server, threads):
    client = Client(server.url, backoff=Backoff(first_ms=600_000, cap_ms=600_000, give_up_ms=600_000))
    client.connect()
    asked = threads.submit(client.submit, "q", b"")
    heard(server, 1)
    server.wait(server.leave())
    while client._main._failures == 0:
        pass  # until the first attempt has failed
    client.close()
    assert isinstance(failure(asked), ConnectionLost)
    server.wait(server.listen())


def test_what_cannot_be_said_is_refused_before_it_is_sent(server):
    server.answers["ping"] = PONG
    with Client(server.url) as client:
        with pytest.raises(TypeError):
            client.call(Submit(queue=object()))  # type: ignore[arg-type]
        assert client.call(Ping()) == PONG
        assert len(server.asked) == 1


def test_it_needs_no_event_loop():
    code = "import sys; from jqd import Client; Client(); sys.exit('asyncio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
