"""When a snapshot is made, that everybody is served meanwhile, and what a failing disk does to it."""

import asyncio
import errno
import re
import threading
from collections.abc import Callable

import pytest

from jqd.core import dump
from jqd.core.commands import ServerStats
from jqd.core.pages import PAGE_JOBS
from jqd.errors import WriteFailed
from jqd.server import snapshots
from jqd.server.watermark import Watermark
from jqd.storage.base import Space
from jqd.storage.memory import MemorySink
from tests.support.core import restored_from
from tests.support.hands import Room
from tests.support.wire import PATIENCE_S, request

MIB = 1 << 20


def submit_many(request_id: int, count: int, payload_bytes: int) -> bytes:
    return request(request_id, "submit_many", groups=[{"payloads": [bytes(payload_bytes)] * count}])


async def made(room: Room, count: int = 1) -> None:
    """Wait until so many snapshots were made and none is under way."""
    made = room.driver.snapshots
    await room.until(lambda: made.count >= count and not made.is_under_way)


def noted_in(aborted: list[MemorySink]) -> Callable[[MemorySink], None]:
    """Return a method that notes whose it was."""

    def abort(sink: MemorySink) -> None:
        aborted.append(sink)

    return abort


async def test_growth_of_the_log_makes_one_and_only_further_growth_another():
    async with Room(snapshot_bytes=MIB) as room:
        peer = await room.peer()
        await peer.ask(submit_many(2, 10, MIB // 20))
        assert not room.driver.snapshots.is_under_way
        await peer.ask(submit_many(3, 11, MIB // 20))
        await made(room)
        lsn = room.store.snapshot_lsn
        await peer.ask(submit_many(4, 11, MIB // 20))
        await room.settle()
        assert not room.driver.snapshots.is_under_way
        assert (room.driver.snapshots.count, room.store.snapshot_lsn) == (1, lsn)
        await peer.ask(submit_many(5, 15, MIB // 20))
        await made(room, 2)
        assert room.store.snapshot_lsn == room.driver.engine.state.lsn


async def test_a_large_state_waits_for_a_log_as_large():
    async with Room(snapshot_bytes=MIB) as room:
        peer = await room.peer()
        await peer.ask(submit_many(2, 80, MIB // 20))
        await made(room)
        assert room.store.snapshot_bytes > 3 * MIB
        await peer.ask(submit_many(3, 40, MIB // 20))
        await room.settle()
        assert room.driver.snapshots.count == 1
        await peer.ask(submit_many(4, 41, MIB // 20))
        await made(room, 2)


async def test_an_old_snapshot_is_replaced_once_something_has_changed():
    async with Room(snapshot_interval_ms=60_000) as room:
        peer = await room.peer()
        await peer.ask(request(2, "submit"))
        assert not room.driver.snapshots.is_under_way
        await room.advance(60)
        await peer.ask(request(3, "submit"))
        await made(room)
        await room.advance(120)
        await peer.ask(request(4, "ping"))
        await room.settle()
        assert not room.driver.snapshots.is_under_way, "nothing has changed"
        assert room.driver.snapshots.count == 1


async def test_who_asks_gets_one_that_holds_what_was_acknowledged():
    async with Room() as room:
        peer = await room.peer()
        answers = await peer.ask(request(2, "submit", payload=b"x"), request(3, "snapshot"))
        await made(room)
        assert room.store.snapshot_lsn >= answers[1].body["lsn"]
        assert restored_from(room.store.parts).digest() == room.driver.engine.state.digest()
        await peer.ask(request(4, "snapshot"))
        await room.settle()
        assert not room.driver.snapshots.is_under_way, "nothing has changed since"
        assert room.driver.snapshots.count == 1


async def test_who_asks_while_one_is_under_way_gets_the_next_one():
    async with Room() as room:
        peer = await room.peer()
        await peer.ask(request(2, "submit"))
        room.store.gate.clear()
        peer.say(request(3, "submit") + request(4, "snapshot"))
        await room.turns()
        peer.say(request(5, "submit") + request(6, "snapshot"))
        await room.turns()
        room.store.gate.set()
        await made(room)
        await peer.ask(request(7, "ping"))
        await made(room, 2)
        assert room.store.snapshot_lsn == room.driver.engine.state.lsn


async def test_the_walk_goes_on_only_as_fast_as_it_is_written(monkeypatch):
    monkeypatch.setattr(dump, "SLICE_JOBS", 10)
    async with Room() as room:
        peer = await room.peer()
        await peer.ask(submit_many(2, 1_000, 1))
        taken: list[str] = []
        step, loop = room.driver.snapshots._step, asyncio.get_running_loop()

        def noted() -> None:
            taken.append("s")
            step()

        def passing() -> None:
            taken.append(".")
            if room.driver.snapshots.is_under_way:
                loop.call_soon(passing)

        monkeypatch.setattr(room.driver.snapshots, "_step", noted)
        peer.say(request(3, "snapshot"))
        await room.turns(1)
        passing()
        await made(room)
        assert taken.count("s") > 100
        assert "s" * 20 not in "".join(taken), "far more than the window within one pass of the loop"


async def test_walk_keeps_ahead_of_the_log_however_few_turns_there_are(monkeypatch):
    """Bytes and slices are counted, not seconds: the thread may be as quick or as slow as it likes."""
    monkeypatch.setattr(dump, "SLICE_JOBS", 1)
    monkeypatch.setattr(MemorySink, "write", lambda *_: None)
    jobs, log_bytes = 5_000, MIB // 64
    async with Room(snapshot_bytes=MIB) as room:
        walk = room.driver.snapshots
        peer = await room.peer()
        await peer.ask(submit_many(2, jobs, 1))
        step, turn_ended = walk._step, walk.turn_ended
        slices: list[int] = []  # that each turn took at its end

        def count_turn(engine_ms: int) -> None:
            slices.append(0)
            monkeypatch.setattr(walk, "_step", count_step)
            turn_ended(engine_ms)
            monkeypatch.setattr(walk, "_step", step)

        def count_step() -> None:
            slices[-1] += 1
            step()

        monkeypatch.setattr(walk, "turn_ended", count_turn)
        await peer.ask(request(3, "snapshot"))
        await room.until(lambda: walk._thread is not None)
        assert walk._dump is not None and walk._since_bytes < log_bytes
        number = 3
        while walk._dump is not None:
            assert walk._since_bytes <= MIB // snapshots.WALK_SHARE + 2 * log_bytes, (
                "the log grows, the walk does not"
            )
            number += 1
            peer.say(submit_many(number, 1, log_bytes))
            await room.turns(1)
        # Nobody waits for more than the share of the turn's own log: of ids, of which a page may be half full.
        ids = -(-jobs // PAGE_JOBS) * PAGE_JOBS
        assert max(slices) <= ids * (log_bytes + 100) * snapshots.WALK_SHARE // MIB + 1
        await made(room)


async def test_changes_during_the_walk_are_not_in_the_snapshot(monkeypatch):
    monkeypatch.setattr(dump, "SLICE_JOBS", 10)
    async with Room() as room:
        peer = await room.peer()
        await peer.ask(submit_many(2, 500, 1))
        digest = room.driver.engine.state.digest()
        peer.say(request(3, "snapshot"))
        number = 4
        while room.driver.snapshots.count == 0:
            peer.say(request(number, "lease", count=3) + request(number + 1, "submit"))
            number += 2
            await room.turns(1)
        await room.settle()
        assert restored_from(room.store.parts).job(1) is not None
        assert room.driver.engine.state.lsn > room.store.snapshot_lsn
        assert room.driver.engine.state.digest() != digest


async def test_a_full_disk_ends_the_snapshot_and_nothing_else(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    aborted: list[MemorySink] = []
    async with Room() as room:
        peer = await room.peer()
        await peer.ask(request(2, "submit"))
        with monkeypatch.context() as patch:
            patch.setattr(MemorySink, "write", full)
            patch.setattr(MemorySink, "abort", noted_in(aborted))
            await peer.ask(request(3, "snapshot"))
            await room.until(lambda: aborted and not room.driver.snapshots.is_under_way)
        assert (room.driver.snapshots.count, room.failures) == (0, [])
        assert room.driver.engine.state.keeper is None
        await peer.ask(request(4, "submit"), request(5, "snapshot"))
        await made(room)


async def test_snapshot_that_is_made_is_not_given_up_since_what_it_replaces_is_still_there(
    monkeypatch, capfd
):
    finish = MemorySink.finish

    def full(sink: MemorySink) -> None:
        finish(sink)
        raise OSError(errno.ENOSPC, "No space left on device")

    aborted: list[MemorySink] = []
    monkeypatch.setattr(MemorySink, "finish", full)
    monkeypatch.setattr(MemorySink, "abort", noted_in(aborted))
    async with Room() as room:
        peer = await room.peer()
        await peer.ask(request(2, "submit"), request(3, "snapshot"))
        await room.until(lambda: aborted or room.driver.snapshots.count)
        assert (aborted, room.failures) == ([], [])
    said = capfd.readouterr()
    told = said.out + said.err
    assert "snapshot_made" in told and "removal_put_off" in told and "snapshot_given_up" not in told


@pytest.mark.parametrize("call", ["write", "finish"])
async def test_any_other_failure_of_the_disk_ends_the_daemon(monkeypatch, call):
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(MemorySink, call, broken)
    async with Room() as room:
        peer = await room.peer()
        peer.say(request(2, "submit") + request(3, "snapshot"))
        await room.until(lambda: room.failures)
        assert isinstance(room.failures[0], WriteFailed)


async def test_a_drain_gives_up_the_snapshot_under_way(monkeypatch):
    monkeypatch.setattr(dump, "SLICE_JOBS", 1)
    aborted: list[MemorySink] = []
    monkeypatch.setattr(MemorySink, "abort", noted_in(aborted))
    async with Room() as room:
        peer = await room.peer()
        await peer.ask(submit_many(2, 4_000, 1))
        peer.say(request(3, "submit") + request(4, "snapshot"))
        await room.until(lambda: room.driver.snapshots._thread is not None)
        room.driver.snapshots.stop()
        assert len(aborted) == 1
        assert not room.driver.snapshots.is_under_way
        assert room.driver.engine.state.keeper is None


async def test_figures_tell_of_it():
    async with Room() as room:
        peer = await room.peer()
        await peer.ask(request(2, "submit"), request(3, "snapshot"))
        await made(room)
        (stats,) = await peer.ask(request(4, "stats"))
        process = stats.body["process"]
        assert (process["snapshots"], process["snapshot_under_way"]) == (1, 0)
        assert process["snapshot_lsn"] == room.store.snapshot_lsn > 0
        assert process["snapshot_bytes"] == room.store.snapshot_bytes > 0
    of_a_disk = Watermark(1, lambda _: None)
    of_a_disk.see(Space(1, reserve_is_lost=False))
    assert {*process, *of_a_disk.figures()} <= set(re.findall(r"\w+", ServerStats.__doc__ or "")), (
        "each is explained to users"
    )


async def test_a_drain_that_comes_while_it_gets_its_name_leaves_it_made(monkeypatch):
    begun, release = threading.Event(), threading.Event()
    aborted: list[MemorySink] = []
    finish, give_up = MemorySink.finish, snapshots._Thread.give_up

    def slow_finish(sink: MemorySink) -> None:
        begun.set()
        assert release.wait(PATIENCE_S)
        finish(sink)

    def noted_give_up(thread: snapshots._Thread) -> None:
        thread._given_up = True
        release.set()
        give_up(thread)

    monkeypatch.setattr(MemorySink, "finish", slow_finish)
    monkeypatch.setattr(MemorySink, "abort", noted_in(aborted))
    monkeypatch.setattr(snapshots._Thread, "give_up", noted_give_up)
    async with Room() as room:
        peer = await room.peer()
        await peer.ask(request(2, "submit"), request(3, "snapshot"))
        await room.until(begun.is_set)
        room.driver.snapshots.stop()
        assert (aborted, room.failures) == ([], [])
        assert room.store.snapshot_lsn > 0
