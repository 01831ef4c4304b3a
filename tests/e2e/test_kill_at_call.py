"""SIGKILL before the Nth system call, N rising, in every phase of a daemon's life. Fault 1 of docs/faults.md.

What the disk and the network know of a process changes only at system calls, so that a kill between two
instructions is one between two calls. strace kills at the entry of a call; a point names call and number, and
each point is one real kill, or the test fails. After it a real daemon recovers, and the ledger is asked.

    phase       killed at                                       the calls
    first       the first start of all, directory by directory  of the whole process on the data directory
    start       starts that find a torn tail                    likewise
    answer      replies on their way to the clients             write, in the loop's thread
    append      batches on their way to the disk                write, fdatasync on the open segment
    rotation    a full segment is followed by the next          on the next segment, the directory, `store`
    seal        an idle log says that it is durable             on the open segment
    stop        SIGTERM                                         of the loop's thread on the data directory

Together with test_kill.py that is more than 200 kills.
"""

import itertools
import os
import random
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.daemon import Daemon
from tests.support.killing import KillLoop
from tests.support.parallel import two_at_a_time
from tests.support.strace import attached, files_of, last_segment, wrap

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(180)]

SEED = int(os.environ.get("JQD_KILL_SEED") or random.randrange(1 << 32))
FLAGS = ("--unix", "off", "--segment-bytes", "1MiB")
# Half a frame, as a crash leaves it behind the last whole one.
TORN = b"\xa7jqd, and no more"
START_CALLS = ["openat", "write", "fdatasync", "fsync", "rename", "mkdir"]
FILL_BYTES = 60_000  # of each job while segments are to fill: some twenty make one


class Point(NamedTuple):
    """Before which call the daemon is killed."""

    call: str
    number: int

    @property
    def injection(self) -> str:
        return f"inject={self.call}:signal=KILL:when={self.number}"


def points(**counts: int) -> list[Point]:
    return [Point(call, number) for call, count in counts.items() for number in range(1, count + 1)]


def was_killed(daemon: Daemon) -> bool:
    code = daemon.wait()
    assert code in (0, -signal.SIGKILL), daemon.story()
    return code != 0


def came_up(daemon: Daemon) -> bool:
    """Start it; False: it was killed before it served."""
    daemon.launch()
    try:
        daemon.ready = daemon.wait_for("ready")
    except AssertionError:
        assert was_killed(daemon)
        return False
    return True


def a_loop(data: Path) -> KillLoop:
    return KillLoop(data, f"{SEED}-{data.name}", producers=2, workers=2, readers=1)


def finish(loop: KillLoop) -> None:
    """Let the clients have all their answers, and look at everything."""
    ledger = loop.ledger
    if not ledger.faults:
        loop.wait_for_work(20)
        loop.end()
    print(f"{loop.daemon.data_dir.name}: {loop.kills} kills, {ledger.ops} requests answered; {ledger.marks}")
    assert not ledger.faults, f"seed {SEED}: {len(ledger.faults)} faults\n" + "\n".join(ledger.faults[:20])


# --- starts -------------------------------------------------------------------------------------


# A program of Python opens hundreds of files before it comes to the log: of those calls only the log's count.
def paths_for(call: str, data: Path) -> list[Path]:
    if call != "openat":
        return []
    last = last_segment(data)
    return [data.parent, *files_of(data, [last, last + 1]), data / "quarantine"]


def kill_first_starts(directory: Path, calls: Sequence[str]) -> None:
    for call in calls:
        for number in itertools.count(1):
            data = directory / f"{call}-{number}"
            killed = Daemon(data, *FLAGS, wrap=wrap(Point(call, number).injection, paths_for(call, data)))
            if came_up(killed):
                killed.kill()
                break
            with Daemon(data, *FLAGS) as daemon, daemon.client() as wire:
                assert wire.listed() == []
                assert wire.ask("submit")["job_id"] == 1
        print(f"first {call}: {number - 1} kills")
        assert number > 1, f"a first start makes no {call}"


def test_first_start_may_be_killed_at_any_call(tmp_path):
    two_at_a_time(partial(kill_first_starts, tmp_path), START_CALLS)


def tear(data: Path) -> None:
    """Leave what crashes leave: half a frame in the log, half a file that has no name yet."""
    (data / f"{last_segment(data) + 2:016x}.wal.tmp").touch()
    with (data / f"{last_segment(data):016x}.wal").open("ab") as segment:
        segment.write(TORN)


def kill_later_starts(directory: Path, calls: Sequence[str]) -> None:
    data = directory / calls[0]
    with a_loop(data) as loop:
        for call in calls:
            loop.wait_for_work(20)
            loop.kill()
            for number in itertools.count(1):
                tear(data)
                loop.daemon.wrap = wrap(Point(call, number).injection, paths_for(call, data))
                if came_up(loop.daemon):
                    break
                loop.killed()
            assert number > 1, f"a start makes no {call}"
            loop.daemon.kill()
            loop.daemon.wrap = ()
            loop.start_daemon()
        finish(loop)


def test_start_that_cuts_a_torn_tail_may_be_killed_at_any_call(tmp_path):
    # Each killed start is followed by one that is killed a call later, so most crash over what a crash left.
    two_at_a_time(partial(kill_later_starts, tmp_path), [*START_CALLS, "unlink"])


# --- service ------------------------------------------------------------------------------------


class Where(NamedTuple):
    """One point in the life of a daemon that serves."""

    point: Point
    paths: Callable[[Path], list[Path]] = lambda data: []
    main_thread_only: bool = False
    fill_bytes: int = 0


def open_segment(data: Path) -> list[Path]:
    return [data / f"{last_segment(data):016x}.wal"]


def next_segments(data: Path) -> list[Path]:
    # Several: the log may already have gone on to one when strace begins to look.
    last = last_segment(data)
    return [data / f"{number:016x}.wal.tmp" for number in range(last + 1, last + 10)]


ANSWER = [Where(point, main_thread_only=True) for point in points(write=24)]
APPEND = [Where(point, open_segment) for point in points(write=20, fdatasync=20)]
ROTATION = [
    *(Where(point, fill_bytes=FILL_BYTES) for point in points(openat=4, rename=4, fsync=4)),
    *(Where(point, next_segments, fill_bytes=FILL_BYTES) for point in points(write=1, fdatasync=1)),
    *(
        Where(point, lambda data: [data / "store.tmp"], fill_bytes=FILL_BYTES)
        for point in points(write=2, fdatasync=2)
    ),
]


def kill_under_load(directory: Path, places: Sequence[Where]) -> None:
    data = directory / f"{places[0].point.call}-{places[0].point.number}"
    with a_loop(data) as loop:
        for where in places:
            loop.wait_for_work(20)
            loop.fill_bytes = where.fill_bytes
            with attached(
                loop.daemon.pid,
                where.point.injection,
                where.paths(data),
                main_thread_only=where.main_thread_only,
            ):
                assert was_killed(loop.daemon)
            loop.gate.clear()
            loop.killed()
            loop.start_daemon()
        finish(loop)


@pytest.mark.parametrize("places", [ANSWER, APPEND, ROTATION], ids=["answer", "append", "rotation"])
def test_daemon_that_serves_may_be_killed_at_any_call(tmp_path, places):
    two_at_a_time(partial(kill_under_load, tmp_path), places)


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_idle_daemon_may_be_killed_at_its_seal(tmp_path, call):
    data = tmp_path / "data"
    with Daemon(data, *FLAGS) as daemon:
        with daemon.client() as wire:
            wire.ask("submit")
            # The first such call is for the second submit; what follows in the silence after it is the seal.
            with attached(daemon.pid, Point(call, 2).injection, open_segment(data)):
                assert wire.ask("submit")["job_id"] == 2
                assert was_killed(daemon)
        with daemon, daemon.client() as wire:
            assert [job["job_id"] for job in wire.listed()] == [1, 2]


def kill_stops(directory: Path, calls: Sequence[str]) -> None:
    data = directory / calls[0]
    with a_loop(data) as loop:
        for call in calls:
            for number in itertools.count(1):
                loop.wait_for_work(20)
                paths = files_of(data, [last_segment(data)])
                with attached(loop.daemon.pid, Point(call, number).injection, paths, main_thread_only=True):
                    loop.daemon.signal(signal.SIGTERM)
                    killed = was_killed(loop.daemon)
                loop.gate.clear()
                if killed:
                    loop.killed()
                loop.start_daemon()
                if not killed:
                    break
            assert number > 1, f"a clean stop makes no {call}"
        finish(loop)


def test_daemon_that_stops_may_be_killed_at_any_call(tmp_path):
    two_at_a_time(partial(kill_stops, tmp_path), ["write", "fdatasync", "openat", "rename", "fsync"])
