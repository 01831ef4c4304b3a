"""How much memory there is, and what is done when all of it together is too much."""

import resource

import pytest

from jqd.server import machine
from jqd.server.machine import find_memory
from jqd.server.memory import CONNECTION_BYTES, LOOK_AFTER_BYTES, MemoryGuard
from tests.support.hands import Peer, Room
from tests.support.wire import request

MIB = 1 << 20


# --- how much there is ------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A /proc and /sys of a test's own, and no limit of the address space."""
    (tmp_path / "proc/self").mkdir(parents=True)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return tmp_path


def put(root, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_any_limit_it_is_the_ram(root):
    size, reason = find_memory(root)
    assert reason == "RAM" and size > 64 * MIB


def test_address_space_counts_without_what_is_mapped(root, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (512 * MIB, 512 * MIB))
    monkeypatch.setattr(machine, "_mapped_bytes", lambda: 50 * MIB)
    assert find_memory(root) == (462 * MIB - machine.MAPPED_LATER_BYTES, "RLIMIT_AS")
    assert machine._mapped_bytes() == 50 * MIB


def test_least_limit_of_a_cgroup_and_those_around_it_counts(root):
    put(root, "proc/self/cgroup", "0::/a.slice/b.service\n")
    put(root, "sys/fs/cgroup/a.slice/b.service/memory.max", "max\n")
    assert find_memory(root)[1] == "RAM"
    put(root, "sys/fs/cgroup/a.slice/memory.max", f"{40 * MIB}\n")
    assert find_memory(root) == (40 * MIB, "/sys/fs/cgroup/a.slice/memory.max")
    put(root, "sys/fs/cgroup/a.slice/b.service/memory.max", f"{30 * MIB}\n")
    assert find_memory(root) == (30 * MIB, "/sys/fs/cgroup/a.slice/b.service/memory.max")


def test_cgroup_that_a_container_sees_as_the_top_counts(root):
    put(root, "proc/self/cgroup", "0::/docker/0123\n")
    put(root, "sys/fs/cgroup/memory.max", f"{20 * MIB}\n")
    assert find_memory(root) == (20 * MIB, "/sys/fs/cgroup/memory.max")


def test_version_1_of_cgroups_counts(root):
    put(root, "proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/x/y\n0::/\n")
    put(root, "sys/fs/cgroup/memory/x/y/memory.limit_in_bytes", "9223372036854771712\n")
    assert find_memory(root)[1] == "RAM"
    put(root, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", f"{10 * MIB}\n")
    assert find_memory(root) == (10 * MIB, "/sys/fs/cgroup/memory/x/memory.limit_in_bytes")


# --- the guard --------------------------------------------------------------------------------


def test_guard_says_once_what_is_refused_and_again_when_it_is_not():
    said: list[str] = []
    guard = MemoryGuard(600, 800, said.append)
    assert guard.see(599, 100) == 0
    assert not said and not guard.is_full
    guard.see(600, 100)
    guard.see(610, 100)
    (words,) = said
    assert words == "new jobs are refused: they take 600 bytes of memory (memory_soft_bytes = 600)"
    assert guard.see(610, 195) == 5 and guard.is_full
    assert said[1:] == [
        "new connections are refused: memory = 805 bytes, with what connections hold: the limit is 800"
    ]
    assert guard.see(610, 160) == 0 and guard.is_full, "a twentieth has to be free"
    guard.see(610, 150)
    assert not guard.is_full and said[2].startswith("new jobs are refused")
    guard.see(570, 0)
    assert said[3:] == [], "and a twentieth of the soft limit"
    guard.see(10, 0)
    assert said[3:] == [""]
    assert guard.figures() == {
        "memory_soft_bytes": 600,
        "memory_hard_bytes": 800,
        "held_bytes": 0,
        "memory_full": 0,
    }


# --- the driver -------------------------------------------------------------------------------


def part_of(size: int) -> bytes:
    """All but the last byte of a request that long."""
    return request(9, "submit", payload=bytes(size))[:-1]


async def test_beyond_the_hard_limit_connections_and_work_are_refused_until_a_part_is_free():
    troubles: dict[str, str] = {}
    limits = {"memory_soft_bytes": MIB, "memory_hard_bytes": 2 * MIB}
    async with Room(troubles.__setitem__, **limits) as room:
        peer = await room.peer()
        await peer.ask(request(2, "submit"))
        holders = [await room.peer() for _ in range(8)]
        for holder in holders:
            holder.say(part_of(250 << 10))
        await room.advance(1.1)
        await peer.ask(request(3, "ping"))
        assert "new connections are refused" in troubles["memory"]
        stranger = Peer(room)
        (answer,) = stranger.heard()
        assert (answer.request_id, answer.status) == (0, "overloaded")
        assert answer.body["details"]["memory_hard_bytes"] == 2 * MIB
        await room.turns()
        assert stranger.transport.lost
        for verb in ("submit", "lease"):
            (answer,) = await peer.ask(request(4, verb))
            assert answer.status == "overloaded" and "the limit is 2097152" in answer.body["message"]
        (answer,) = await peer.ask(request(5, "purge", ids=[[1, 1]]))
        assert answer.status == "ok"
        assert not any(holder.transport.closing for holder in holders), "each holds little"
        holders[0].transport.vanish()
        await room.advance(0.2)
        assert not room.driver.process_figures()["memory_full"], "although nobody has asked"
        assert (await room.peer()).connection in room.driver.connections
        assert troubles["memory"] == ""
        (answer,) = await peer.ask(request(6, "submit"))
        assert answer.status == "ok"


async def test_who_holds_the_largest_part_of_a_request_is_ended_first():
    async with Room(memory_hard_bytes=8 * MIB) as room:
        small, large, larger = [await room.peer() for _ in range(3)]
        small.say(part_of(100 << 10))
        room.driver.engine.state.memory.bytes += 7 * MIB
        large.say(part_of(600 << 10))
        larger.say(part_of(900 << 10))
        await room.advance(1.1)
        small.connection._driver._look_at_memory(room.clock.engine_ms)
        await room.settle()
        (answer,) = larger.heard()
        assert (answer.request_id, answer.status) == (0, "overloaded")
        assert larger.transport.closing
        assert not large.transport.closing and not small.transport.closing
        assert larger.connection.held_bytes == 0


async def test_a_flood_of_parts_is_seen_before_the_next_second():
    async with Room(memory_hard_bytes=3 * MIB) as room:
        peers = [await room.peer() for _ in range(5)]
        for peer in peers:
            peer.say(part_of(MIB - 100))
        assert 5 * MIB > LOOK_AFTER_BYTES
        await room.settle()
        assert sum(peer.transport.closing for peer in peers) == 3, (
            "with the connections they hold more than 5 MiB"
        )


async def test_replies_that_nobody_reads_are_held():
    async with Room() as room:
        peer = await room.peer()
        peer.transport.slow = True
        before = peer.connection.held_bytes
        await peer.ask(request(2, "ping"))
        assert peer.connection.held_bytes > before == 0
        room.driver._look_at_memory(room.clock.engine_ms)
        assert room.driver.process_figures()["held_bytes"] == CONNECTION_BYTES + peer.connection.held_bytes
