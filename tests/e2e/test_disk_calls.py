"""The Nth write or sync of a real daemon fails, or takes its time. Faults 9, 10, 12 and 17 of docs/faults.md.

Only calls on the log count, by the one thread that makes them. A failed call is a failed batch: its requests
have no answer, nothing is written after it although the next call would succeed, and the exit code is 74. The
next daemon, whose disk fails one call later, is the one that looks at what the last one left.
"""

import contextlib
import os
import select
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.daemon import Daemon
from tests.support.parallel import two_at_a_time
from tests.support.strace import attached, last_segment, wrap
from tests.support.systemd import Manager
from tests.support.wire import PATIENCE_S, Answer, Wire, request

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(180)]

IO_ERROR = 74
NUMBERS = [*range(1, 11), 15, 20, 30, 40, 50]
PIPELINE = 3  # submits in one send: mostly one batch, one write and one sync


def open_segment(data: Path) -> Path:
    return data / f"{last_segment(data):016x}.wal"


class Told(NamedTuple):
    acknowledged: list[int]
    asked: int


def submit_until_it_ends(wire: Wire, first_id: int) -> Told:
    """Submit in small pipelines until the connection breaks, each job with its number as the payload."""
    acknowledged: list[int] = []
    asked = 0
    with contextlib.suppress(OSError, EOFError):
        while asked < 1_000:
            wire.write(
                b"".join(
                    request(first_id + index, "submit", payload=b"%d" % (asked + index))
                    for index in range(PIPELINE)
                )
            )
            asked += PIPELINE
            for _ in range(PIPELINE):
                answer = wire.receive()
                assert answer.status == "ok", answer
                acknowledged.append(answer.body["job_id"])
        raise AssertionError("the daemon goes on after its disk has failed")
    return Told(acknowledged, asked)


class Failure(NamedTuple):
    call: str
    error: str


FAILURES = [
    Failure("fdatasync", "EIO"),
    Failure("write", "EIO"),
    Failure("write", "ENOSPC"),
    Failure("fdatasync", "ENOSPC"),
]


def fail_calls(directory: Path, failures: Sequence[Failure]) -> None:
    for call, error in failures:
        data = directory / f"{call}-{error}"
        known: list[int] = []  # every job that a daemon has shown or acknowledged
        with Daemon(data, "--unix", "off") as daemon:
            for number in NUMBERS:
                # The first call that counts is for the first submit or, now and then, for a seal.
                # A write that finds no space once is repeated, with the room of the reserve: here it stays full.
                stays = "+" if (call, error) == ("write", "ENOSPC") else ""
                injection = f"inject={call}:error={error}:when={number}{stays}"
                with daemon.client() as wire, attached(daemon.pid, injection, [open_segment(data)]):
                    told = submit_until_it_ends(wire, 2)
                    assert daemon.wait() == IO_ERROR
                (line,) = daemon.logged("failed")
                assert line["exit_code"] == IO_ERROR
                assert str(data) in line["error"]
                assert len(told.acknowledged) < told.asked, "the failed batch was answered"
                daemon.start()
                with daemon.client() as wire:
                    found = [job["job_id"] for job in wire.listed()]
                kept = known + told.acknowledged
                # Without a hole: what was said, and of what was under way a beginning.
                assert found[: len(kept)] == kept
                assert len(found) <= len(known) + told.asked
                assert found == list(range(1, len(found) + 1))
                known = found


def test_failed_call_is_the_last_one_whichever_it_is(tmp_path):
    two_at_a_time(partial(fail_calls, tmp_path), FAILURES)


# --- slow -----------------------------------------------------------------------------------------

SUBMITS = 1_000
PAYLOAD_BYTES = 50_000
# 50 MB are submitted while 1 MiB may wait for the disk. Beside it: what one turn takes before it is counted, once as jobs
# and once as a record, and what was read ahead from the socket: 11 to 35 MB, by how much the machine lets come at a time.
# Without a bound all 50 MB are there twice.
RSS_GROWTH_MAX = 48 << 20


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flood(wire: Wire, statuses: list[str]) -> None:
    for request_id in range(2, SUBMITS + 2):
        wire.send(request_id, "submit", {"payload": bytes(PAYLOAD_BYTES)})
    statuses += [wire.receive().status for _ in range(SUBMITS)]


def extend(wire: Wire, request_id: int, token: int) -> None:
    wire.send(request_id, "extend", {"items": [[token, [[1, 1]]]], "lease_ms": 1_000})


class Heard(NamedTuple):
    """What was seen and answered around a sync of five seconds."""

    signs_of_life: int  # before the sync was over
    extends: list[Answer]  # one for each of them
    statuses: list[str]  # of the flood
    growth_bytes: int
    attempt: int  # of the job whose lease was extended


def sync_for_seconds(directory: Path, *, flooded: bool) -> Heard:
    """Heartbeat with a lease of one second while a sync takes five, and let somebody submit without end."""
    statuses: list[str] = []
    with Manager(directory, watchdog_us=400_000) as manager:
        daemon = manager.daemon("--listen", "127.0.0.1:0", "--commit-queue-bytes", "1MiB")
        with daemon, daemon.client() as worker, daemon.client() as producer:
            worker.ask("submit", queue="held")
            token = worker.ask("lease", queues=["held"], lease_ms=1_000)["token"]
            before = highest = rss_bytes(daemon.pid)
            manager.until("READY")
            slow = "inject=fdatasync:delay_exit=5s:when=1"
            with attached(daemon.pid, slow, [open_segment(manager.state)]):
                flooding = threading.Thread(target=flood, args=(producer, statuses))
                if flooded:
                    flooding.start()
                extends = 0
                # A sign of life comes from the loop; the worker hears nothing before the sync is over.
                while not select.select([worker.sock], [], [], 0)[0]:
                    manager.until("WATCHDOG")
                    extends += 1
                    extend(worker, 100 + extends, token)
                    highest = max(highest, rss_bytes(daemon.pid))
                answers = [worker.receive() for _ in range(extends)]
            if flooded:
                flooding.join(PATIENCE_S)
                assert not flooding.is_alive()
            (line, *_) = daemon.logged("slow_sync")
            assert line["took_ms"] >= 4_900
            attempt = worker.try_ask("get", job_id=1).body["attempt"]
            return Heard(extends, answers, statuses, highest - before, attempt)


def test_sync_of_seconds_costs_neither_the_loop_nor_memory(tmp_path):
    heard = sync_for_seconds(tmp_path, flooded=True)
    assert heard.signs_of_life >= 10, "the loop stood still while the disk did"
    assert len(heard.statuses) == SUBMITS
    assert set(heard.statuses) == {"ok", "busy"}
    assert heard.growth_bytes < RSS_GROWTH_MAX


@pytest.mark.parametrize("flooded", [False, True])
def test_sync_of_seconds_costs_no_worker_its_lease(tmp_path, flooded):
    heard = sync_for_seconds(tmp_path, flooded=flooded)
    assert len(heard.extends) == heard.signs_of_life
    # Under a flood the queue for the disk is full, also of what is taken last: heartbeats count all the same.
    assert {answer.status for answer in heard.extends} <= ({"ok", "busy"} if flooded else {"ok"})
    taken = [answer.body["results"][0][2] for answer in heard.extends if answer.status == "ok"]
    assert taken and set(taken) == {"ok"}
    assert heard.attempt == 1


def test_slow_syncs_are_shared_and_cost_no_lease(tmp_path):
    connections, rounds = 20, 20
    data = tmp_path / "data"
    slow = wrap("inject=fdatasync:delay_exit=20ms")
    with Daemon(data, "--unix", "off", wrap=slow) as daemon, contextlib.ExitStack() as stack:
        worker = stack.enter_context(daemon.client())
        wires = [stack.enter_context(daemon.client()) for _ in range(connections)]
        worker.ask("submit", queue="held")
        token = worker.ask("lease", queues=["held"], lease_ms=1_000)["token"]
        syncs_before = worker.ask("stats")["process"]["syncs"]
        for number in range(rounds):
            for wire in wires:
                wire.send(2 + number, "submit", {})
            extend(worker, 1_000 + number, token)
            assert {wire.receive().status for wire in wires} == {"ok"}
            assert worker.receive().body["results"] == [[1, 1, "ok"]]
        with daemon.client() as wire:
            syncs = wire.ask("stats")["process"]["syncs"] - syncs_before
    assert rounds <= syncs < connections * rounds // 4
