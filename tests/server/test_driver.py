"""The driver over a disk, a clock and sockets that are moved by hand."""

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import pairwise

import pytest

from jqd.core import commands, engine, model, submitting
from jqd.core.engine import FailStop
from jqd.errors import WriteFailed
from jqd.server import committer
from jqd.server.session import TURN_WORK_MAX
from jqd.storage.base import Space
from tests.support.hands import Peer, Room
from tests.support.wire import hello, request

SESSION = b"s" * 16
FULL = 64 << 10  # the limit of unsent replies where a test needs a small one, and a reply that reaches it


@pytest.fixture
async def room():
    async with Room() as opened:
        yield opened


@pytest.fixture
async def peer(room):
    return await room.peer()


# --- nothing leaves before it is durable ------------------------------------------------------


async def test_reply_waits_for_its_sync(room, peer):
    room.store.gate.clear()
    peer.say(request(2, "submit", payload=b"x"))
    await room.syncing()
    await room.turns()
    assert peer.heard() == []
    room.store.gate.set()
    await room.settle()
    (answer,) = peer.heard()
    assert answer.body == {"job_id": 1}
    assert answer.lsn == room.store.durable_lsn


@pytest.mark.parametrize(
    ("verb", "args", "status"),
    [
        ("get", {"job_id": 1}, "ok"),
        ("get", {"job_id": 2}, "job_not_found"),
        ("list", {}, "ok"),
        ("queues", {}, "ok"),
        ("stats", {}, "ok"),
        ("ping", {}, "ok"),
        ("lease", {"queues": ["empty"]}, "ok"),
        ("no_such_verb", {}, "unknown_command"),
    ],
)
async def test_read_waits_for_the_sync_of_what_it_saw(room, peer, verb, args, status):
    reader = await room.peer()
    room.store.gate.clear()
    peer.say(request(2, "submit", payload=b"x"))
    await room.syncing()
    reader.say(request(3, verb, **args))
    await room.turns()
    assert reader.heard() == []
    room.store.gate.set()
    await room.settle()
    assert [each.status for each in reader.heard()] == [status]


async def test_hello_writes_nothing_so_its_welcome_waits_for_no_sync(room):
    room.store.gate.clear()
    peer = Peer(room)
    peer.say(hello(1, session=SESSION))
    await room.turns()
    assert len(peer.heard()) == 1
    room.store.gate.set()


async def test_read_of_what_is_durable_waits_for_no_sync(room, peer):
    await peer.ask(request(2, "submit", payload=b"x"))
    room.store.gate.clear()
    (answer,) = await peer.ask(request(3, "get", job_id=1))
    assert answer.body["state"] == "ready"


async def test_replies_of_a_later_turn_wait_for_their_own_sync(room, peer):
    first_sync = room.store.count("sync") + 1
    room.store.gate.clear()
    peer.say(request(2, "submit"))
    await room.syncing(first_sync)
    peer.say(request(3, "submit") + request(4, "ping"))
    await room.turns()
    room.store.fail["sync"] = first_sync + 1
    room.store.gate.set()
    await asyncio.to_thread(room.store.wait_for, "sync", first_sync + 1)
    await room.turns()
    assert [each.request_id for each in peer.heard()] == [2]


async def test_failed_sync_lets_no_reply_out(room, peer):
    reader = await room.peer()
    room.store.gate.clear()
    room.store.fail["sync"] = room.store.count("sync") + 1
    peer.say(request(2, "submit", payload=b"x"))
    reader.say(request(2, "ping"))
    await room.turns()
    room.store.gate.set()
    await room.until(lambda: room.failures)
    reader.say(request(3, "ping"))
    await room.turns()
    assert peer.heard() == reader.heard() == []
    assert isinstance(room.failures[0], WriteFailed)


async def test_replies_come_in_order_of_their_requests(room, peer):
    for number in range(2, 302, 3):
        peer.say(request(number, "submit") + request(number + 1, "ping"))
        if number % 2:
            await asyncio.sleep(0)
        peer.say(request(number + 2, "get", job_id=1))
        await asyncio.sleep(0)
    await room.settle()
    assert [each.request_id for each in peer.heard()] == list(range(2, 302))


async def test_lsn_of_replies_never_falls(room, peer):
    answers = await peer.ask(*(request(number, "submit") for number in range(2, 50)))
    lsns = [each.lsn for each in answers]
    assert lsns == sorted(lsns)
    assert lsns[-1] == room.store.durable_lsn


async def test_turn_is_one_record_and_one_write_a_connection(room, peer):
    other = await room.peer()
    appends, writes = len(room.store.records), len(peer.transport.writes)
    for number in range(2, 102):
        peer.say(request(number, "submit"))
        other.say(request(number, "submit"))
    await room.settle()
    assert len(room.store.records) == appends + 1
    assert len(peer.transport.writes) == writes + 1
    assert len(peer.heard()) == len(other.heard()) == 100


@pytest.mark.parametrize("split", [1, 2])
async def test_records_stay_small_however_much_arrives_at_once(room, split):
    said = request(2, "submit", payload=bytes(1_000_000))
    peers = [await room.peer() for _ in range(40)]
    appended = len(room.store.records)
    if split == 2:  # all but the last byte came earlier, so that this turn gets frames and hardly any bytes
        for peer in peers:
            peer.say(said[:-1])
        await room.settle()
        said = said[-1:]
    for peer in peers:
        peer.say(said)
    await room.settle()
    assert [each.status for peer in peers for each in peer.heard()] == ["ok"] * 40
    sizes = [len(record.payload) for record in room.store.records[appended:]]
    assert sum(sizes) >= 40_000_000
    assert max(sizes) <= 10_000_000


async def test_records_stay_small_however_much_is_answered_at_once(room):
    maker = await room.peer()
    await maker.ask(request(2, "submit_many", groups=[{"payloads": [b""] * 10_000}]))
    await maker.ask(request(3, "purge", ids=[[first, 1] for first in range(1, 9_001, 2)]))
    await maker.ask(request(4, "lease", count=4_500))
    # Each names jobs that are leased and purged by turns: a verdict for every one, and a job to cancel.
    peers = [await room.peer(session=bytes([number]) * 16) for number in range(20)]
    said = [
        b"".join(request(2 + n, "cancel", ids=[[1, 9_000], [9_001 + 10 * number + n, 1]]) for n in range(10))
        for number in range(20)
    ]
    appended = len(room.store.records)
    for peer, requests in zip(peers, said, strict=True):
        peer.say(requests)
    await room.settle()
    answers = [each for peer in peers for each in peer.heard()]
    assert [each.body["count"] for each in answers] == [1] * 200
    sizes = [len(record.payload) for record in room.store.records[appended:]]
    assert sum(sizes) >= 32_000_000
    assert max(sizes) <= 16_000_000


async def test_records_stay_small_however_many_lease_at_once(room):
    worker = "\U0001f40c" * 128
    peers = [await room.peer(worker=worker) for _ in range(30)]
    await peers[0].ask(
        *(request(2 + n, "submit_many", groups=[{"payloads": [b""] * 10_000}]) for n in range(3))
    )
    said = b"".join(request(10 + n, "lease") for n in range(1_000))
    appended = len(room.store.records)
    for peer in peers:
        peer.say(said)
    await room.settle()
    sizes = [len(record.payload) for record in room.store.records[appended:]]
    assert sum(sizes) >= 15_000_000
    assert max(sizes) <= 10_000_000


# --- back-pressure ----------------------------------------------------------------------------


LOW = 1 << 20


def space(free_bytes: int, *, lost: bool = False) -> Space:
    return Space(free_bytes, reserve_is_lost=lost)


@pytest.mark.parametrize("free_bytes", [None, 1 << 40])
async def test_full_commit_queue_is_busy_for_what_changes_something(free_bytes):
    room = Room(commit_queue_bytes=1_000)
    room.store.room = None if free_bytes is None else space(free_bytes)
    async with room:
        peer = await room.peer()
        room.store.gate.clear()
        peer.say(request(2, "submit", payload=bytes(2_000)))
        await room.turns()
        peer.say(request(3, "submit") + request(4, "get", job_id=1) + request(5, "ping"))
        await room.turns()
        assert room.driver._waiting_bytes < 3_000
        room.store.gate.set()
        await room.settle()
        answers = {each.request_id: each for each in peer.heard()}
        assert [answers[number].status for number in (2, 3, 4, 5)] == ["ok", "busy", "ok", "ok"]
        assert answers[3].body["retryable"] and answers[3].body["retry_after_ms"] == 100
        assert "the limit of submit is 1000" in answers[3].body["message"]
        (again,) = await peer.ask(request(6, "submit"))
        assert again.body == {"job_id": 2}


@contextlib.contextmanager
def waiting(room: Room, more_bytes: int) -> Iterator[None]:
    """Let so many more bytes seem to wait for the disk."""
    room.driver._waiting_bytes += more_bytes
    yield
    room.driver._waiting_bytes -= more_bytes


@pytest.mark.parametrize("verb", ["extend", "ack", "fail", "release"])
async def test_what_ends_or_extends_a_lease_has_as_much_room_again_in_the_commit_queue(verb):
    async with Room(commit_queue_bytes=1_000) as room:
        peer = await room.peer()
        _, leased = await peer.ask(request(2, "submit"), request(3, "lease"))
        item = [leased.body["token"], [[1, 1]], None][: 3 if verb == "ack" else 2]
        room.store.gate.clear()
        peer.say(request(4, "submit", payload=bytes(1_200)))
        await room.turns()
        peer.say(request(5, verb, items=[item]))
        await room.turns()
        peer.say(request(6, "submit") + request(7, "lease"))
        await room.turns()
        with waiting(room, 2_000):
            peer.say(request(9, "extend", items=[item[:2]]))
        await room.turns()
        room.store.gate.set()
        await room.settle()
        answers = {each.request_id: each.status for each in peer.heard()}
        assert [answers[number] for number in (4, 5, 6, 7, 9)] == ["ok", "ok", "busy", "busy", "busy"]


@pytest.fixture
async def low_room(monkeypatch):
    """A driver whose disk has less free than it should, with job 1 ready and job 2 leased under `token`."""
    monkeypatch.setattr(committer, "LOOK_EVERY_S", 0.0)
    async with Room(low_space_bytes=LOW) as room:
        peer = await room.peer()
        await peer.ask(request(2, "submit"), request(3, "submit"), request(4, "lease"))
        room.store.room = space(LOW)
        await room.until(lambda: room.driver.process_figures().get("storage_full"))
        yield room


async def test_full_disk_refuses_new_jobs_and_nothing_else(low_room):
    peer = await low_room.peer()
    answers = await peer.ask(
        request(2, "submit", payload=b"x"),
        request(3, "submit"),
        request(4, "submit_many", groups=[{"payloads": [b"x"]}]),
        request(5, "lease"),
        request(6, "list"),
        request(7, "cancel", ids=[[7, 1]]),
        request(8, "requeue", ids=[[7, 1]]),
        request(9, "purge", ids=[[7, 1]]),
        request(10, "stats"),
        request(11, "ping"),
    )
    refused = ["storage_full"] * 3
    assert [each.status for each in answers] == [*refused, *["ok"] * 7]
    assert answers[0].body["retryable"] and answers[0].body["retry_after_ms"] == 1_000
    assert f"new jobs need {LOW} (low_space_bytes)" in answers[0].body["message"]
    assert answers[8].body["process"]["storage_full"] == 1
    token = answers[3].body["token"]
    answers = await peer.ask(
        request(12, "extend", items=[[token, [[2, 1]]]]), request(13, "release", items=[[token, [[2, 1]]]])
    )
    assert [each.body["results"] for each in answers] == [[[2, 1, "ok"]]] * 2
    (lease,) = await peer.ask(request(14, "lease"))
    token = lease.body["token"]
    (acked,) = await peer.ask(request(15, "ack", items=[[token, [[2, 1]], None]]))
    assert acked.body["results"] == [[2, 1, "ok"]]


async def test_room_on_the_disk_is_noticed_without_a_request(low_room):
    low_room.store.room = space(2 * LOW)
    await low_room.until(lambda: not low_room.driver.process_figures()["storage_full"])
    peer = await low_room.peer()
    (answer,) = await peer.ask(request(2, "submit"))
    assert answer.status == "ok"
    low_room.store.room = space(1 << 40, lost=True)
    await low_room.until(lambda: low_room.driver.process_figures()["storage_full"])
    (answer,) = await peer.ask(request(3, "submit"))
    assert answer.status == "storage_full" and "reserve" in answer.body["message"]


async def test_disk_is_looked_at_before_the_first_request():
    told = []
    room = Room(low_space_bytes=LOW, on_trouble=lambda *words: told.append(words))
    room.store.room = space(0)
    async with room:
        peer = await room.peer()
        (answer,) = await peer.ask(request(2, "submit"))
        assert answer.status == "storage_full"
        ((subject, words),) = told
        assert subject == "disk space" and words.startswith("new jobs are refused: 0 bytes are free")


async def test_near_the_mark_no_more_is_taken_than_was_free(monkeypatch):
    monkeypatch.setattr(committer, "LOOK_EVERY_S", 60.0)
    monkeypatch.setattr(committer, "LOOK_AFTER_BYTES", 1 << 40)
    room = Room(low_space_bytes=LOW)
    room.store.room = space(LOW + 10_000)
    async with room:
        peers = [await room.peer() for _ in range(2)]
        room.store.gate.clear()
        for peer in peers:  # in one turn
            peer.say(b"".join(request(number, "submit", payload=bytes(1_000)) for number in range(2, 7)))
        await room.turns()
        peers[0].say(b"".join(request(number, "submit", payload=bytes(1_000)) for number in range(7, 12)))
        peers[1].say(request(7, "submit_many", groups=[{"payloads": [b"x"] * 9_000}]) + request(8, "ping"))
        room.store.gate.set()
        await room.settle()
        statuses = [each.status for peer in peers for each in peer.heard()]
        assert statuses.count("ok") == 10 and statuses.count("storage_full") == 7
        (answer,) = await peers[0].ask(request(12, "submit", payload=bytes(9_000)))
        assert answer.status == "ok", "what is on the disk does not wait for it"


async def test_requests_in_flight_stop_reading_until_they_are_answered(room, peer):
    room.store.gate.clear()
    peer.say(request(2, "submit") + b"".join(request(number, "ping") for number in range(3, 2_003)))
    await room.turns()
    assert not peer.transport.reading
    assert peer.connection.session.in_flight == 1_024
    room.store.gate.set()
    await room.settle()
    assert peer.transport.reading
    assert [each.request_id for each in peer.heard()] == list(range(2, 2_003))


async def test_many_requests_on_a_fast_disk_are_all_answered(room, peer):
    answers = await peer.ask(*(request(number, "submit") for number in range(2, 5_002)))
    assert [each.request_id for each in answers] == list(range(2, 5_002))
    assert peer.transport.reading


async def test_full_pipe_does_not_keep_another_waiting(room, peer):
    for number in range(2, 12):
        await peer.ask(request(number, "submit_many", groups=[{"payloads": [b""] * 10_000}]))
    greedy, modest = await room.peer(), await room.peer()
    greedy.say(b"".join(request(number, "lease", count=10_000) for number in range(2, 12)))
    modest.say(request(2, "ping"))
    worked = [room.driver.engine.state.work]
    await room.until(modest.heard)
    assert len(greedy.heard()) <= 2, "the modest one waited for more than a turn or two"
    while room.busy:
        worked.append(room.driver.engine.state.work)
        await asyncio.sleep(0)
    assert max(b - a for a, b in pairwise(worked)) <= TURN_WORK_MAX + 2 * 10_000
    await room.settle()
    assert room.driver.engine.state.counts()[2] == 100_000


async def test_peer_that_does_not_read_is_not_read_from():
    async with Room(output_bytes_max=FULL) as room:
        peer = await room.peer()
        await peer.ask(request(2, "submit", payload=bytes(FULL)))
        peer.transport.slow = True
        peer.say(b"".join(request(number, "get", job_id=1) for number in range(3, 103)))
        await room.turns(50)
        assert not peer.transport.reading
        # What is with the socket, what was made when the socket was found full, and one reply over the limit.
        assert peer.transport.unsent_bytes <= 4 * FULL
        peer.transport.slow = False
        peer.transport.read(1 << 30)
        await room.settle()
        assert peer.transport.reading
        assert [each.request_id for each in peer.heard()] == list(range(3, 103))


async def stalled(room: Room) -> Peer:
    """Return a peer with a reply that it does not take, and a lease parked on queue `late`."""
    peer = await room.peer()
    await peer.ask(
        request(2, "submit", payload=bytes(FULL)), request(3, "lease", queues=["late"], wait_ms=30_000)
    )
    peer.transport.slow = True
    await peer.ask(request(4, "get", job_id=1), request(5, "get", job_id=1))
    assert not peer.transport.reading
    return peer


async def answer_parked(room: Room) -> None:
    other = await room.peer()
    await other.ask(request(2, "submit", payload=bytes(FULL), queue="late"))


async def test_peer_that_takes_nothing_is_cut():
    async with Room(output_bytes_max=FULL, output_stall_ms=10_000) as room:
        peer = await stalled(room)
        await room.advance(9.9)
        assert not peer.transport.aborted
        await room.advance(0.2)
        assert peer.transport.aborted and peer.transport.lost
        assert peer.connection not in room.driver.connections


async def test_peer_that_takes_a_little_is_kept():
    async with Room(output_bytes_max=FULL, output_stall_ms=10_000) as room:
        peer = await stalled(room)
        for _ in range(5):
            peer.transport.read(1)
            await room.advance(10)
        assert not peer.transport.aborted
        await room.advance(10.1)
        assert peer.transport.aborted


async def test_peer_that_takes_less_than_comes_is_kept():
    async with Room(output_bytes_max=FULL, output_stall_ms=10_000) as room:
        peer = await stalled(room)
        before = peer.transport.unsent_bytes
        peer.transport.read(1_000)
        await answer_parked(room)
        assert peer.transport.unsent_bytes > before
        await room.advance(10.1)
        assert not peer.transport.aborted


async def test_stall_is_counted_from_the_last_time_the_socket_was_full():
    async with Room(output_bytes_max=FULL, output_stall_ms=10_000) as room:
        peer = await stalled(room)
        await room.advance(3)
        for _ in range(2):  # the second reply comes when the first has left
            peer.transport.read(1 << 30)
            await room.settle()
        assert peer.transport.reading
        await room.advance(3)
        await answer_parked(room)
        assert not peer.transport.reading
        await room.advance(9)
        assert not peer.transport.aborted
        await room.advance(1.1)
        assert peer.transport.aborted


async def test_refused_peer_that_takes_nothing_is_cut(room, peer):
    peer.transport.slow = True
    await peer.ask(b"\x00\x00\x00\x00")
    assert peer.transport.closing and not peer.transport.lost
    await room.advance(10.1)
    assert peer.transport.lost


# --- while nobody could be heard ----------------------------------------------------------------


async def leased(room: Room, lease_ms: int = 1_000) -> tuple[Peer, bytes]:
    """Return a worker that holds job 1, and what it says to extend it."""
    peer = await room.peer()
    _, answer = await peer.ask(request(2, "submit"), request(3, "lease", lease_ms=lease_ms))
    return peer, request(4, "extend", items=[[answer.body["token"], [[1, 1]]]], lease_ms=lease_ms)


def state_of_job(room: Room) -> str:
    job = room.driver.engine.state.job(1)
    assert job is not None
    return job.state.name.lower()


@pytest.mark.parametrize("asleep", [False, True])
@pytest.mark.parametrize("first", ["timer", "socket"])
@pytest.mark.parametrize("seconds", [1.1, 3, 3_600])
async def test_heartbeat_that_came_while_the_loop_stood_still_is_heard(room, asleep, first, seconds):
    worker, extend = await leased(room)
    await room.advance(0.9)
    room.jump(seconds, asleep=asleep)
    if first == "timer":
        await room.advance(0.5 if asleep else 0)
    (answer,) = await worker.ask(extend)
    assert answer.body["results"] == [[1, 1, "ok"]]
    await room.advance(0.9)
    (answer,) = await worker.ask(extend.replace(b"\x04", b"\x05", 1))
    assert answer.body["results"] == [[1, 1, "ok"]], "it counts from when it was heard"


async def test_worker_that_stays_silent_after_a_standstill_loses_its_lease(room):
    await leased(room)
    await room.advance(0.5)
    room.jump(3_600)
    await room.advance(0)
    assert state_of_job(room) == "leased"
    await room.advance(0.5 + 2 + 0.6)
    assert state_of_job(room) == "ready"


async def test_long_lease_ends_by_its_own_time_when_the_standstill_was_short(room):
    await leased(room, lease_ms=60_000)
    room.jump(3)
    await room.advance(56.9)
    assert state_of_job(room) == "leased"
    await room.advance(0.2)
    assert state_of_job(room) == "ready"


async def test_lease_that_outlives_an_hour_long_standstill_by_nothing_gets_the_grace_of_a_restart(room):
    await leased(room, lease_ms=600_000)
    room.jump(3_600)
    await room.advance(29)
    assert state_of_job(room) == "leased"
    await room.advance(2)
    assert state_of_job(room) == "ready", "as after a restart"


async def test_standstill_is_said_once(room, monkeypatch):
    said = []
    monkeypatch.setattr("jqd.server.driver.log.warning", lambda event, **fields: said.append((event, fields)))
    worker, extend = await leased(room)
    room.jump(10, asleep=True)
    await worker.ask(extend)
    await room.advance(5)
    ((event, fields),) = said
    assert event == "stood_still" and 9_000 < fields["for_ms"] <= 10_000


async def test_much_to_do_is_no_standstill(room, peer, monkeypatch):
    """Each turn ends one lease and takes 200 ms, so that the last one is due for two seconds before it is looked at."""
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 1)
    await peer.ask(*(request(2 + n, "submit") for n in range(10)))
    await peer.ask(*(request(20 + n, "lease", lease_ms=1_000) for n in range(10)))
    finish_turn = room.driver.engine.finish_turn

    def take_long(now):
        due_ms = finish_turn(now)
        room.clock.engine_ms += 200
        return due_ms

    monkeypatch.setattr(room.driver.engine, "finish_turn", take_long)
    await room.advance(1)
    assert room.driver.engine.state.counts()[2] == 0
    assert room.driver.engine.state.lease_lag_ms == 0


async def test_no_lease_ends_while_the_disk_stands_still(room):
    worker, extend = await leased(room)
    room.store.gate.clear()
    worker.say(request(9, "submit"))
    await room.turns()
    await room.advance(0.9)
    worker.say(extend)
    await room.turns()
    await room.advance(10)
    assert worker.heard() == [] and state_of_job(room) == "leased"
    room.store.gate.set()
    await room.settle()
    (_, answer) = worker.heard()
    assert answer.body["results"] == [[1, 1, "ok"]]
    (answer,) = await worker.ask(extend.replace(b"\x04", b"\x05", 1))
    assert answer.body["results"] == [[1, 1, "ok"]], "it waited for the answer to the one before"
    await room.advance(14)
    assert state_of_job(room) == "ready"


async def test_heartbeat_that_a_full_queue_refused_costs_no_lease():
    async with Room(commit_queue_bytes=1_000) as room:
        worker, extend = await leased(room)
        room.store.gate.clear()
        worker.say(request(9, "submit", payload=bytes(2_000)))
        await room.turns()
        await room.advance(0.7)
        worker.say(extend)
        await room.turns()
        await room.advance(10)
        room.store.gate.set()
        await room.settle()
        (_, answer) = worker.heard()
        assert answer.status == "busy"
        (answer,) = await worker.ask(extend)
        assert answer.body["results"] == [[1, 1, "ok"]]


# --- connections ------------------------------------------------------------------------------


async def test_connection_over_the_limit_is_told_and_closed():
    async with Room(max_connections=2) as room:
        first, _ = await room.peer(), await room.peer()
        third = Peer(room)
        (answer,) = third.heard()
        assert (answer.request_id, answer.status) == (0, "overloaded")
        assert "2 connections" in answer.body["message"] and answer.body["retryable"]
        await room.turns()
        assert third.transport.lost
        first.transport.vanish()
        await room.settle()
        await room.peer()


@pytest.mark.parametrize("said", [b"", hello()[:-1]])
async def test_connection_without_hello_is_cut(room, said):
    peer = Peer(room)
    if said:
        peer.say(said)
    await room.advance(4.9)
    assert not peer.transport.closing
    await room.advance(0.2)
    assert peer.transport.aborted


async def test_connection_with_hello_stays(room, peer):
    await room.advance(3_600)
    assert not peer.transport.closing


async def test_garbage_ends_the_connection_after_its_answer(room, peer):
    other = await room.peer()
    (answer,) = await peer.ask(b"\x00\x00\x00\x00")
    assert answer.status == "bad_frame"
    assert peer.transport.lost and peer.connection not in room.driver.connections
    assert (await other.ask(request(2, "ping")))[0].status == "ok"


async def test_garbage_behind_a_parked_lease_ends_the_connection(room, peer):
    await peer.ask(request(2, "lease", wait_ms=30_000))
    assert [each.status for each in await peer.ask(b"\x00\x00\x00\x00")] == ["bad_frame"]
    assert peer.transport.lost


async def test_lease_for_a_closed_socket_is_taken_back(room, peer):
    await peer.ask(request(2, "submit", payload=b"x"))
    worker = await room.peer()
    room.store.gate.clear()
    worker.say(request(2, "lease"))
    await room.turns()
    worker.transport.vanish()
    room.store.gate.set()
    await room.settle()
    (answer,) = await peer.ask(request(3, "lease"))
    assert [job["attempt"] for job in answer.body["jobs"]] == [1]


async def test_lease_asked_again_on_a_new_socket_is_not_taken_back(room, peer):
    await peer.ask(request(2, "submit", payload=b"x"))
    first, again = await room.peer(session=SESSION), await room.peer(session=SESSION)
    room.store.gate.clear()
    first.say(request(3, "lease"))
    await room.turns()
    first.transport.vanish()
    again.heard()
    again.say(request(3, "lease"))
    await room.turns()
    room.store.gate.set()
    await room.settle()
    (answer,) = again.heard()
    (verdict,) = await again.ask(request(4, "ack", items=[[answer.body["token"], [[1, 1]], None]]))
    assert verdict.body["results"] == [[1, 1, "ok"]]
    assert room.driver.unsent_grants == {}


# --- time -------------------------------------------------------------------------------------


async def test_parked_lease_is_answered_at_the_ms_a_job_is_due(room, peer):
    await peer.ask(request(2, "submit", delay_ms=4_500))
    worker = await room.peer()
    await worker.ask(request(2, "lease", wait_ms=10_000))
    await room.advance(4.499)
    assert worker.heard() == []
    await room.advance(0.001)
    await room.settle()
    assert [job["job_id"] for job in worker.heard()[0].body["jobs"]] == [1]


async def test_parked_lease_is_answered_when_its_wait_is_over(room, peer):
    await peer.ask(request(2, "lease", wait_ms=2_500))
    await room.advance(2.499)
    assert peer.heard() == []
    await room.advance(0.001)
    await room.settle()
    assert [each.body["jobs"] for each in peer.heard()] == [[]]


async def test_wall_clock_that_was_set_is_seen_within_a_second(room, peer):
    await peer.ask(request(2, "submit", run_at_ms=room.clock.wall_ms + 3_600_000))
    await peer.ask(request(3, "lease", wait_ms=30_000))
    room.clock.wall_ms += 3_600_000
    await room.advance(1)
    await room.settle()
    assert len(peer.heard()) == 1


async def test_expired_lease_is_handed_out_again_without_anybody_asking(room, peer):
    await peer.ask(request(2, "submit"))
    await peer.ask(request(3, "lease", lease_ms=1_000))
    other = await room.peer()
    await other.ask(request(2, "lease", wait_ms=30_000))
    await room.advance(1)
    await room.settle()
    assert [job["attempt"] for job in other.heard()[0].body["jobs"]] == [2]


# --- the end ----------------------------------------------------------------------------------


async def test_drain_sends_what_was_accepted_and_sends_away_who_is_parked(room, peer):
    worker = await room.peer()
    await worker.ask(request(2, "lease", wait_ms=30_000, queues=["empty"]))
    room.store.gate.clear()
    peer.heard()
    peer.say(request(2, "submit", payload=b"x"))
    await room.turns()
    drain = asyncio.create_task(room.driver.drain())
    await room.turns()
    assert not drain.done() and not peer.transport.closing
    room.store.gate.set()
    await drain
    assert [each.body for each in peer.heard()] == [{"job_id": 1}]
    assert [each.body["jobs"] for each in worker.heard()] == [[]]
    assert peer.transport.lost and worker.transport.lost
    assert not peer.transport.aborted and not worker.transport.aborted
    assert room.store.durable_lsn == room.driver.engine.state.lsn


async def test_draining_server_takes_nothing_new(room, peer):
    room.store.gate.clear()
    drain = asyncio.create_task(room.driver.drain())
    await room.turns()
    peer.heard()
    peer.say(request(2, "submit") + request(3, "ping"))
    late = Peer(room)
    assert [(each.request_id, each.status) for each in late.heard()] == [(0, "draining")]
    room.store.gate.set()
    await drain
    assert [each.status for each in peer.heard()] == ["draining", "draining"]
    assert room.driver.engine.state.pages.next_id == 1


async def test_request_in_the_last_turn_does_not_hold_the_drain_up(room, peer, monkeypatch):
    durable = room.driver._durable

    def interrupted(lsn):
        peer.say(request(9, "ping"))  # this turn has no change of its own, so that no sync follows it
        durable(lsn)

    monkeypatch.setattr(room.driver, "_durable", interrupted)
    await asyncio.wait_for(room.driver.drain(), 10)
    assert peer.transport.lost


async def test_peer_that_does_not_read_is_cut_at_the_end_of_the_drain():
    async with Room(drain_ms=0) as room:
        peer = await room.peer()
        peer.transport.slow = True
        await peer.ask(request(2, "ping"))
        await room.driver.drain()
        assert peer.transport.aborted


async def test_empty_server_drains_at_once(room):
    await room.driver.drain()
    assert room.store.durable_lsn == room.driver.engine.state.lsn


@pytest.mark.parametrize("entry", ["data_received", "go_on", "_finish_turn"])
async def test_broken_invariant_ends_the_daemon(room, peer, monkeypatch, entry):
    def broken(command, state, caller, now, emit):
        submitting.submit(command, state, caller, now, emit)
        raise ZeroDivisionError

    monkeypatch.setitem(engine.DECISIONS, commands.Submit, broken)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    if entry == "data_received":
        with pytest.raises(FailStop):
            peer.say(request(2, "submit"))
    elif entry == "go_on":
        peer.say(b"".join(request(number, "ping") for number in range(2, 1_100)) + request(2_000, "submit"))
    else:
        monkeypatch.setattr(room.driver.engine, "finish_turn", lambda now: 1 / 0)
        peer.say(request(2, "ping"))
    await room.turns(50)
    assert len(room.failures) == 1
    assert 2_000 not in {each.request_id for each in peer.heard()}


async def test_failure_at_the_end_of_a_connection_ends_the_daemon(room, peer, monkeypatch):
    monkeypatch.setattr(room.driver.engine, "disconnect", lambda *args, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        peer.connection.connection_lost(None)
    assert len(room.failures) == 1


async def test_slow_sync_is_said_with_its_limit(room, monkeypatch):
    said = []
    monkeypatch.setattr("jqd.server.driver.log.warning", lambda event, **fields: said.append((event, fields)))
    room.driver._slow_sync(1_500)
    assert said == [("slow_sync", {"took_ms": 1_500, "limit_ms": 1_000, "unsynced_bytes": 0})]


async def test_sync_that_does_not_come_back_is_said_while_it_does_not(monkeypatch):
    said, told = [], []
    monkeypatch.setattr("jqd.server.driver.log.warning", lambda event, **fields: said.append((event, fields)))
    async with Room(slow_sync_ms=1_000, on_trouble=lambda *words: told.append(words)) as room:
        peer = await room.peer()
        await room.advance(5)
        room.store.gate.clear()
        peer.say(request(2, "submit", payload=bytes(1_000)))
        await room.turns()
        await room.advance(0.9)
        assert said == told == []
        await room.advance(1.1)
        peer.say(request(3, "submit"))
        await room.turns()
        await room.advance(10)
        ((event, fields),) = said
        assert (
            event == "sync_waits" and 1_000 <= fields["for_ms"] <= 2_000 and fields["unsynced_bytes"] > 1_000
        )
        ((subject, words),) = told
        assert subject == "disk speed" and "the disk is slow" in words
        room.store.gate.set()
        await room.settle()
        assert told[1:] == [("disk speed", "")]
        await room.advance(10)
        assert len(said) == 1 and len(room.loop.timers) <= 2


async def test_fast_disk_is_not_complained_about(room, peer, monkeypatch):
    monkeypatch.setattr("jqd.server.driver.log.warning", lambda *args, **fields: pytest.fail(str(args)))
    await room.advance(5)
    for number in range(2, 12):
        await peer.ask(request(number, "submit"))
        await room.advance(0.09)
    assert len([timer for timer in room.loop.timers if not timer.cancelled]) <= 1
    room.store.gate.clear()
    peer.say(request(12, "submit"))
    await room.turns()
    await room.advance(0.5)  # it is looked at, and has waited for less than a second
    room.store.gate.set()
    await room.settle()


# --- a worker that is gone ----------------------------------------------------------------------


async def holder(room: Room) -> Peer:
    """A connection whose session asked for `release`, and holds job 1 for a minute."""
    peer = await room.peer(session=SESSION, on_disconnect="release")
    await peer.ask(request(2, "submit"))
    (answer,) = await peer.ask(request(3, "lease", lease_ms=60_000))
    assert len(answer.body["jobs"]) == 1
    return peer


async def state_of_job_1(room: Room) -> str:
    other = await room.peer()
    (answer,) = await other.ask(request(2, "get", job_id=1))
    state: str = answer.body["state"]
    return state


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_jobs_of_a_client_that_is_gone_go_to_others_after_the_grace(room, error):
    peer = await holder(room)
    peer.connection.connection_lost(error)
    await room.advance(0.4)
    assert await state_of_job_1(room) == "leased"
    await room.advance(0.1)
    assert await state_of_job_1(room) == "ready"


async def test_the_grace_is_a_setting():
    async with Room(disconnect_grace_ms=3_000) as room:
        peer = await holder(room)
        peer.connection.connection_lost(None)
        await room.advance(2.9)
        assert await state_of_job_1(room) == "leased"
        await room.advance(0.1)
        assert await state_of_job_1(room) == "ready"


async def test_a_client_that_ended_its_side_is_gone(room):
    peer = await holder(room)
    peer.connection.eof_received()
    peer.connection.close()
    await room.turns()
    await room.advance(0.5)
    assert await state_of_job_1(room) == "ready"


@pytest.mark.parametrize("how", ["cut", "fatal error", "nobody answers"])
async def test_what_the_server_ended_says_nothing_about_the_client(room, how):
    peer = await holder(room)
    if how == "cut":
        peer.connection.abort()
    elif how == "fatal error":
        await peer.ask(b"\0\0\0\1\xc1")
    else:
        peer.connection.connection_lost(TimeoutError())
    await room.turns()
    assert peer.connection not in room.driver.connections
    await room.advance(50)
    assert await state_of_job_1(room) == "leased"
    await room.advance(10)
    assert await state_of_job_1(room) == "ready"
