"""AsyncClient against a server that says what the test tells it to."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from msgspec import structs

from jqd.client.aio import AsyncClient
from jqd.client.retry import Backoff
from jqd.client.shared import IN_FLIGHT_MAX
from jqd.core.commands import (
    Ack,
    Lease,
    Leased,
    LeasedJob,
    Ping,
    Pong,
    Release,
    Submit,
    Submitted,
    Swept,
    Verdicts,
)
from jqd.errors import (
    BadFrame,
    Busy,
    ClientClosed,
    ConnectionLost,
    InvalidArgument,
    JobNotFound,
    LeaseLost,
    Overloaded,
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
    jobs=[LeasedJob(job_id=n, queue="q", attempt=1, payload=b'{"n":1}', encoding="json") for n in (4, 5)],
)


def counted(asked: Asked) -> Submitted:
    """Answer a submit with the number that it has as payload."""
    assert isinstance(asked.command, Submit)
    return Submitted(job_id=int(asked.command.payload))


def measured(asked: Asked) -> Submitted:
    """Answer a submit with the size of its payload."""
    assert isinstance(asked.command, Submit)
    return Submitted(job_id=len(asked.command.payload))


async def outcome(awaitable: Awaitable[Any]) -> Any:
    """What it returns, or the exception that it raises."""
    return (await asyncio.gather(awaitable, return_exceptions=True))[0]


# --- asking -----------------------------------------------------------------------------------


async def test_a_verb_gets_the_reply_of_its_command():
    async with FakeServer() as server, AsyncClient(server.url, worker="w-1") as client:
        server.answers["submit"] = Submitted(job_id=9)
        reply = await client.submit("emails", "hi", priority=3, delay="5m", metadata={"k": "v"})
        assert reply == Submitted(job_id=9)
        assert server.asked[0].command == Submit(
            queue="emails",
            payload=b"hi",
            encoding="text",
            priority=3,
            delay_ms=300_000,
            metadata={"k": "v"},
        )
        hello = server.connections[0].hello
        assert hello is not None and hello.worker == "w-1" and hello.session is not None


async def test_it_speaks_over_a_unix_socket(tmp_path):
    async with FakeServer(str(tmp_path / "s")) as server, AsyncClient(server.url) as client:
        server.answers["ping"] = PONG
        assert await client.ping() == PONG


async def test_replies_in_any_order_reach_who_asked():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        tasks = [asyncio.create_task(client.submit("q", str(n))) for n in range(50)]
        for asked in reversed(await server.heard(50)):
            asked.connection.say(asked.request_id, counted(asked))
        assert [reply.job_id for reply in await asyncio.gather(*tasks)] == list(range(50))


async def test_no_more_than_the_window_is_unanswered():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        tasks = [asyncio.create_task(client.submit("q", str(n))) for n in range(IN_FLIGHT_MAX + 10)]
        first = list(await server.heard(IN_FLIGHT_MAX))
        server.answers["ping"] = PONG
        async with AsyncClient(server.url) as other:
            await other.ping()  # a round trip later there is still no more of them
        assert len(server.asked) == IN_FLIGHT_MAX + 1
        server.answers["submit"] = counted
        for asked in first:
            asked.connection.say(asked.request_id, counted(asked))
        assert len(await asyncio.gather(*tasks)) == IN_FLIGHT_MAX + 10


async def test_an_error_reply_is_raised_and_not_asked_again():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        server.answers["submit"] = Busy("commit queue = 64 MiB", retry_after_ms=100)
        with pytest.raises(Busy, match="64 MiB") as caught:
            await client.submit("q", b"")
        assert caught.value.retryable and caught.value.retry_after_ms == 100
        assert len(server.asked) == 1


async def test_requests_larger_than_the_sockets_buffers_get_through():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        server.answers["submit"] = measured
        replies = await asyncio.gather(*(client.submit("q", bytes(1 << 20)) for _ in range(30)))
        assert {reply.job_id for reply in replies} == {1 << 20}


async def test_a_server_that_does_not_read_fills_no_memory():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        server.answers["ping"] = PONG
        await client.ping()
        server.connections[0].transport.pause_reading()
        tasks = [asyncio.create_task(client.submit("q", bytes(1 << 20))) for _ in range(30)]
        async with AsyncClient(server.url) as other:
            await other.ping()
        assert client._main is not None and client._main._socket is not None
        assert client._main._socket.transport.get_write_buffer_size() < 2 << 20
        server.connections[0].transport.resume_reading()
        for asked in (await server.heard(32))[2:]:  # all of them, before the first reply
            asked.connection.say(asked.request_id, measured(asked))
        assert len(await asyncio.gather(*tasks)) == 30


# --- leases -----------------------------------------------------------------------------------


async def test_a_leased_job_is_acked_by_itself_or_by_id_and_token():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        server.answers |= {"lease": GRANTED, "ack": Verdicts(results=[(4, 1, "ok")])}
        held = await client.lease(["q", "r"], count=2, lease=60)
        assert [(job.job_id, job.token, job.value()) for job in held.jobs] == [
            (4, 77, {"n": 1}),
            (5, 77, {"n": 1}),
        ]
        await client.ack(held.jobs[0], json={"done": True})
        await client.ack(4, 77, result="x")
        await client.ack_many(held.jobs)
        assert [asked.command for asked in server.asked] == [
            Lease(queues=["q", "r"], count=2, lease_ms=60_000),
            Ack(items=[(77, [(4, 1)], b'{"done":true}')], encoding="json"),
            Ack(items=[(77, [(4, 1)], b"x")], encoding="text"),
            Ack(items=[(77, [(4, 2)], None)]),
        ]


@pytest.mark.parametrize(
    ("verb", "code", "error"),
    [
        ("ack", "lease_lost", LeaseLost),
        ("fail", "job_not_found", JobNotFound),
        ("release", "lease_lost", LeaseLost),
    ],
)
async def test_a_single_job_raises_what_its_verdict_names(verb, code, error):
    async with FakeServer() as server, AsyncClient(server.url) as client:
        server.answers[verb] = Verdicts(results=[(4, 1, code)])
        with pytest.raises(error, match=f"{verb} of job 4: "):
            await getattr(client, verb)(4, 77)
        assert (await getattr(client, f"{verb}_many")([(4, 77)])).results == [(4, 1, code)]


async def test_cancel_of_one_id_raises_and_of_several_tells():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        server.answers["cancel"] = Swept(count=0, cursor=None, results=[(4, 1, "job_not_found")])
        with pytest.raises(JobNotFound):
            await client.cancel(4)
        assert (await client.cancel([4])).results == [(4, 1, "job_not_found")]
        with pytest.raises(InvalidArgument, match="give ids, or a queue"):
            await client.cancel()


async def test_several_leases_wait_at_once_each_on_its_connection():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        tasks = [asyncio.create_task(client.lease("q", wait=20)) for _ in range(3)]
        asked = await server.heard(3)
        assert len({id(one.connection) for one in asked}) == 3
        assert len({one.connection.hello.session for one in asked}) == 1
        assert len({one.request_id for one in asked}) == 3
        server.answers["ping"] = PONG
        await client.ping()  # waits for none of them
        for one in asked[:3]:
            one.connection.say(one.request_id, GRANTED)
        assert [len(held.jobs) for held in await asyncio.gather(*tasks)] == [2, 2, 2]
        server.answers["lease"] = NOTHING
        await client.lease("q", wait=20)
        assert len(server.connections) == 4, "a lease connection is used again"


async def test_a_cancelled_wait_tells_the_server_and_gives_late_jobs_back():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        server.linger = True
        task = asyncio.create_task(client.lease("q", wait=20))
        (asked,) = await server.heard(1)
        task.cancel()
        assert isinstance(await outcome(task), asyncio.CancelledError)
        await asked.connection.ended.wait()
        asked.connection.say(asked.request_id, GRANTED)
        assert (await server.heard(2))[1].command == Release(items=[(77, [(4, 2)])])


async def test_a_lease_that_is_cancelled_as_its_reply_arrives_gives_the_jobs_back():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        task = asyncio.create_task(client.lease("q"))
        (asked,) = await server.heard(1)
        link = client._main
        assert link is not None
        deliver = link._deliver

        def deliver_and_cancel(answers):
            deliver(answers)
            task.cancel()

        link._deliver = deliver_and_cancel  # type: ignore[method-assign]
        asked.connection.say(asked.request_id, GRANTED)
        assert isinstance(await outcome(task), asyncio.CancelledError)
        assert (await server.heard(2))[1].command == Release(items=[(77, [(4, 2)])])


async def test_an_empty_lease_that_nobody_waits_for_gives_nothing_back():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        task = asyncio.create_task(client.lease("q"))
        (asked,) = await server.heard(1)
        task.cancel()
        await outcome(task)
        asked.connection.say(asked.request_id, NOTHING)
        server.answers["ping"] = PONG
        await client.ping()
        assert len(server.asked) == 2


# --- lost connections -------------------------------------------------------------------------


async def test_an_unanswered_request_is_sent_again_with_its_id_in_the_same_session():
    async with FakeServer() as server, AsyncClient(server.url, backoff=AT_ONCE) as client:
        task = asyncio.create_task(client.submit("q", "7"))
        (first,) = await server.heard(1)
        server.answers["submit"] = counted
        first.connection.cut()
        assert (await task).job_id == 7
        again = server.asked[1]
        assert again.request_id == first.request_id and again.command == first.command
        assert again.connection is not first.connection
        assert again.connection.hello.session == first.connection.hello.session


async def test_a_parked_lease_comes_back_after_a_cut():
    async with FakeServer() as server, AsyncClient(server.url, backoff=AT_ONCE) as client:
        task = asyncio.create_task(client.lease("q", wait=20))
        (first,) = await server.heard(1)
        server.answers["lease"] = GRANTED
        first.connection.cut()
        assert len((await task).jobs) == 2
        assert server.asked[1].request_id == first.request_id


async def test_it_waits_for_a_server_that_restarts():
    async with FakeServer() as server, AsyncClient(server.url, backoff=AT_ONCE) as client:
        task = asyncio.create_task(client.submit("q", "7"))
        await server.heard(1)
        port = server.port
        await server.leave()
        server.answers["submit"] = counted
        await server.listen(port)
        assert (await task).job_id == 7


async def test_it_gives_up_and_says_what_is_unknown():
    async with FakeServer() as server:
        backoff = Backoff(first_ms=0, give_up_ms=0)
        async with AsyncClient(server.url, backoff=backoff) as client:
            sent = [asyncio.create_task(client.submit("q", b"")), asyncio.create_task(client.get(3))]
            await server.heard(2)
            await server.leave()
            errors = [await outcome(task) for task in sent]
            errors.append(await outcome(client.submit("q", b"")))
            assert [type(error) for error in errors] == [ConnectionLost] * 3
            assert [error.outcome_unknown for error in errors] == [True, False, False]
            assert "outcome unknown" in str(errors[0]) and "cannot reach" in str(errors[0])
            assert "nothing was changed" in str(errors[2])
            await server.listen()


async def test_a_request_that_breaks_every_connection_is_given_up():
    async with FakeServer() as server, AsyncClient(server.url, backoff=AT_ONCE) as client:

        def cut(asked: Asked) -> None:
            asked.connection.cut()

        server.answers["submit"] = cut
        error = await outcome(client.submit("q", b""))
        assert isinstance(error, ConnectionLost) and error.outcome_unknown
        assert len(server.asked) == 5


async def test_an_idle_connection_that_is_closed_is_made_again_by_the_next_request():
    async with FakeServer() as server, AsyncClient(server.url, backoff=AT_ONCE) as client:
        server.answers["ping"] = PONG
        await client.ping()
        server.connections[0].transport.close()
        await server.connections[0].lost.wait()
        assert await client.ping() == PONG
        assert len(server.connections) == 2


async def test_a_server_that_talks_nonsense_is_left_and_tried_again():
    async with FakeServer() as server, AsyncClient(server.url, backoff=AT_ONCE) as client:
        task = asyncio.create_task(client.submit("q", "7"))
        (first,) = await server.heard(1)
        server.answers["submit"] = counted
        first.connection.write(b"HTTP/1.1 400 Bad Request\r\n")
        assert (await task).job_id == 7
        assert first.connection is not server.asked[1].connection


# --- a store that went back -------------------------------------------------------------------

RESTORED = structs.replace(WELCOME, epoch=9, start_lsn=50)


async def test_what_was_under_way_ends_in_it_once_and_the_client_goes_on():
    async with FakeServer() as server, AsyncClient(server.url, backoff=AT_ONCE) as client:
        server.answers["ping"] = PONG
        server.lsn = 60
        await client.ping()
        under_way = [
            asyncio.create_task(client.submit("q", "1")),
            asyncio.create_task(client.get(3)),
            asyncio.create_task(client.lease("q", wait=20)),
        ]
        first = list(await server.heard(4))
        server.welcome, server.lsn = RESTORED, 51
        server.answers.update(submit=counted, lease=NOTHING)
        for connection in {asked.connection for asked in first}:
            connection.cut()
        errors = [await outcome(task) for task in under_way]
        assert [type(error) for error in errors] == [StoreRolledBack] * 3
        assert [error.outcome_unknown for error in errors] == [True, False, True]
        assert "LSN 60 was there in epoch 1, and epoch 9 began at LSN 50" in str(errors[0])
        assert (await client.submit("q", "7")).job_id == 7
        assert (await client.lease("q", wait=20)).jobs == []
        assert len(server.asked) == 6, "what ended in it was not sent again"


async def test_connect_tells_it_too():
    async with FakeServer() as server:
        client = AsyncClient(server.url, backoff=AT_ONCE)
        server.lsn = 60
        await client.connect()
        server.welcome, server.lsn = structs.replace(RESTORED, store_id="other"), 70
        server.connections[0].cut()
        await server.connections[0].lost.wait()
        server.answers["ping"] = PONG
        with pytest.raises(StoreRolledBack, match="another store answers: other, epoch 9, LSN 70"):
            while True:  # until this side has heard that the connection is gone
                await client.connect()
                await asyncio.sleep(0)
        assert await client.ping() == PONG
        await client.close()


# --- hello ------------------------------------------------------------------------------------


async def test_connect_fails_at_once_where_no_server_is():
    async with FakeServer() as server:
        url = server.url
    with pytest.raises(ConnectionLost, match=f"cannot reach {url}") as caught:
        async with AsyncClient(url):
            pass
    assert not caught.value.outcome_unknown


async def test_a_refused_hello_is_raised():
    async with FakeServer() as server:
        server.welcome = VersionMismatch("version = 1: this server speaks 2")
        with pytest.raises(VersionMismatch, match="speaks 2"):
            await AsyncClient(server.url).connect()
        client = AsyncClient(server.url)
        with pytest.raises(VersionMismatch, match="speaks 2"):
            await client.ping()
        await client.close()


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", bytes(8), b"\0\0\0\1\xc1"]
)
async def test_a_server_of_another_protocol_is_not_taken_for_one_that_refuses(said):
    async with FakeServer() as server:
        server.welcome = lambda: server.connections[-1].write(said)
        with pytest.raises(ConnectionLost, match=f"{server.url} does not speak jqd") as caught:
            await AsyncClient(server.url).connect()
        assert not caught.value.outcome_unknown
        client = AsyncClient(server.url)
        with pytest.raises(ConnectionLost, match=r"does not speak jqd.*\(nothing was changed\)"):
            await client.submit("q", b"x")
        await client.close()


async def test_a_server_without_room_for_the_session_is_tried_again_once_it_was_reached():
    async with FakeServer() as server, AsyncClient(server.url, backoff=AT_ONCE) as client:
        task = asyncio.create_task(client.submit("q", "7"))
        (first,) = await server.heard(1)
        server.welcome = lambda: Overloaded("100000 sessions") if len(server.connections) < 4 else WELCOME
        server.answers["submit"] = counted
        first.connection.cut()
        assert (await task).job_id == 7
        assert len(server.connections) == 4


async def test_limit_is_said_in_the_words_of_the_caller():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        with pytest.raises(InvalidArgument, match="^lease: wait = 40s: at most 30s$"):
            await client.lease("q", wait=40)


async def test_a_connection_that_closes_in_the_greeting_is_a_failed_attempt():
    async with FakeServer() as server:
        server.refuse_connections = True
        with pytest.raises(ConnectionLost):
            await AsyncClient(server.url).connect()


# --- time -------------------------------------------------------------------------------------


async def test_a_timeout_says_that_the_outcome_is_unknown_and_the_connection_stays():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        with pytest.raises(RequestTimeout, match=r"submit: .*0\.01 s.*outcome unknown") as caught:
            await client.submit("q", b"", timeout="10ms")
        assert caught.value.outcome_unknown and caught.value.retryable
        server.answers["ping"] = PONG
        await client.ping()
        server.asked[0].connection.say(
            server.asked[0].request_id, Submitted(job_id=1)
        )  # too late: nobody cares
        await client.ping()
        assert len(server.connections) == 1


async def test_what_was_never_sent_in_time_was_not_carried_out():
    async with FakeServer() as server:
        server.welcome = None
        client = AsyncClient(server.url)
        with pytest.raises(ConnectionLost, match="nothing was changed") as caught:
            await client.submit("q", b"", timeout="10ms")
        assert not caught.value.outcome_unknown
        await client.close()


async def test_a_silent_connection_is_given_up_after_a_timeout(monkeypatch):
    monkeypatch.setattr("jqd.client.shared.SILENT_S", 0.001)
    async with FakeServer() as server, AsyncClient(server.url, backoff=AT_ONCE) as client:
        patient = asyncio.create_task(client.submit("q", "7"))
        (first,) = await server.heard(1)
        server.answers["submit"] = counted
        with pytest.raises(RequestTimeout):
            await client.ping(timeout="10ms")
        assert (await patient).job_id == 7
        assert server.asked[-1].connection is not first.connection


async def test_a_waiting_lease_has_its_wait_on_top_of_the_timeout():
    async with FakeServer() as server, AsyncClient(server.url, timeout="10ms") as client:
        task = asyncio.create_task(client.lease("q", wait=20))
        (asked,) = await server.heard(1)
        with pytest.raises(RequestTimeout):
            await client.ping()
        asked.connection.say(asked.request_id, GRANTED)
        assert len((await task).jobs) == 2


async def test_a_waiting_lease_that_times_out_leaves_its_connection():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        timed_out = False
        while not timed_out:  # the 10 ms are for the connect as well, which can take longer
            try:
                await client.lease("q", wait="1ms", timeout="10ms")
            except RequestTimeout:
                timed_out = True
            except ConnectionLost:
                assert not server.asked
        (asked, *_) = await server.heard(1)  # its bytes may still be on their way
        await asked.connection.ended.wait()
        server.answers["ping"] = PONG
        await client.ping()


# --- the end ----------------------------------------------------------------------------------


async def test_close_ends_what_waits_and_leaves_no_task():
    async with FakeServer() as server:
        client = AsyncClient(server.url)
        await client.connect()
        tasks = [
            asyncio.create_task(client.submit("q", b"")),
            asyncio.create_task(client.lease("q", wait=20)),
            asyncio.create_task(client.stats()),
        ]
        await server.heard(3)
        await client.close()
        errors = [await outcome(task) for task in tasks]
        assert [error.outcome_unknown for error in errors] == [True, True, False]
        assert all("the client was closed" in str(error) for error in errors)
        assert [(type(error), error.retryable) for error in errors] == [(ClientClosed, False)] * 3
        for connection in server.connections:
            await connection.lost.wait()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await client.close()
        with pytest.raises(ConnectionLost, match="the client is closed") as caught:
            await client.ping()
        assert not caught.value.retryable


async def test_close_while_it_connects_ends_the_attempt():
    async with FakeServer() as server:
        server.welcome = None
        client = AsyncClient(server.url)
        task = asyncio.create_task(client.ping())
        connecting = asyncio.create_task(client.connect())
        await server.met(1)
        await client.close()
        assert isinstance(await outcome(task), ConnectionLost)
        assert isinstance(await outcome(connecting), ConnectionLost)
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_close_does_not_wait_for_the_next_attempt():
    async with FakeServer() as server:
        client = AsyncClient(
            server.url, backoff=Backoff(first_ms=600_000, cap_ms=600_000, give_up_ms=600_000)
        )
        await client.connect()
        task = asyncio.create_task(client.submit("q", b""))
        await server.heard(1)
        await server.leave()
        async with FakeServer() as other, AsyncClient(other.url):
            pass  # by now the first attempt has failed
        await client.close()
        assert isinstance(await outcome(task), ConnectionLost)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await server.listen()


async def test_use_in_another_loop_is_refused():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, client.ping())


async def test_what_cannot_be_said_is_refused_before_it_is_sent():
    async with FakeServer() as server, AsyncClient(server.url) as client:
        with pytest.raises(InvalidArgument, match="payload and json: give one"):
            await client.submit("q", b"x", json=1)
        with pytest.raises(TypeError):
            await client.call(Submit(queue=object()))  # type: ignore[arg-type]
        server.answers["ping"] = PONG
        assert await client.call(Ping()) == PONG
        assert len(server.asked) == 1


async def test_a_fatal_error_about_the_stream_is_not_repeated():
    async with FakeServer() as server, AsyncClient(server.url, backoff=AT_ONCE) as client:

        def refuse(asked: Asked) -> None:
            asked.connection.say(0, BadFrame("out of step"))

        server.answers["submit"] = refuse
        error = await outcome(client.submit("q", b""))
        assert isinstance(error, ConnectionLost) and "out of step" in str(error)
        assert len(server.asked) == 1


async def test_jobs_on_their_way_to_a_lease_that_was_given_up_go_back_before_the_client_is_closed():
    async with FakeServer() as server:
        server.answers["ping"] = PONG
        server.linger = True
        client = AsyncClient(server.url)
        await client.ping()
        lease = asyncio.create_task(client.lease("q", wait=10))
        asked = (await server.heard(2))[-1]
        lease.cancel()
        await outcome(lease)
        closing = asyncio.create_task(client.close())
        await asked.connection.ended.wait()
        asked.connection.say(asked.request_id, GRANTED)  # it left the server before it saw that nobody waits
        asked.connection.transport.close()
        await closing
        released = (await server.heard(3))[-1].command
        assert released == Release(items=[(77, [(4, 2)])])
