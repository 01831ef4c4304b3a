"""Disks that are full or fail, under a real daemon: real ENOSPC on a small tmpfs, EIO by strace.

Both need what a desk may lack (root, strace): they run with the slow suites, and fail there with what is
missing instead of being skipped.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, ended
from tests.support.wire import PATIENCE_S, Wire, request

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

IO_ERROR = 74
# A disk tries for a while before it gives up: time in which a reply that does not wait for it gets out and is seen.
FAILS_AFTER_US = 200_000


@pytest.fixture
def small_disk(tmp_path):
    """Return a directory with 8 MiB of room."""
    assert os.geteuid() == 0, "only root can mount a small disk: run the slow suites as root, as CI does"
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def enlarge(disk: Path, by: int) -> None:
    """Give the disk so many MiB more."""
    about = os.statvfs(disk)
    size = about.f_blocks * about.f_frsize + (by << 20)
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
        for block in (1 << 16, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(block)):
                    pass


def submit_until_it_ends(wire: Wire, payload: bytes = b"x") -> list[int]:
    """Submit one by one until the connection breaks; return the jobs that were acknowledged."""
    acknowledged: list[int] = []
    with contextlib.suppress(OSError, EOFError):
        while len(acknowledged) < 1_000:
            acknowledged.append(wire.ask("submit", payload=payload)["job_id"])
        raise AssertionError("the daemon goes on after its disk has failed")
    return acknowledged


def check_died_of_its_disk(daemon: Daemon) -> None:
    assert daemon.wait() == IO_ERROR
    (line,) = daemon.logged("failed")
    assert line["exit_code"] == IO_ERROR
    assert str(daemon.data_dir) in line["error"]
    assert "Traceback" not in daemon.story()


def check_kept(daemon: Daemon, acknowledged: list[int]) -> None:
    """Look at what a later daemon has: all that was acknowledged, and at most the one that was under way."""
    with daemon.client() as wire:
        found = [job["job_id"] for job in wire.listed()]
        assert found in (acknowledged, [*acknowledged, len(acknowledged) + 1])
        assert wire.ask("submit")["job_id"] == len(found) + 1


# --- full ---------------------------------------------------------------------------------------


def test_full_disk_at_the_start_is_said(small_disk):
    fill(small_disk)
    result = ended(small_disk / "data", "--unix", "off")
    assert result.code == IO_ERROR
    assert "space" in result.complaint and str(small_disk) in result.complaint


SMALL = ("--unix", "off", "--segment-bytes", "1MiB", "--low-space-bytes", "1MiB")


def submit_until(wire: Wire, status: str, payload: bytes = b"x") -> list[int]:
    """Submit one by one until an answer has this status; return the jobs that were taken."""
    acknowledged: list[int] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        answer = wire.try_ask("submit", payload=payload)
        if answer.status == "ok":
            acknowledged.append(answer.body["job_id"])
        if answer.status == status:
            return acknowledged
    raise AssertionError(f"no {status} within {PATIENCE_S} s, {len(acknowledged)} jobs were taken")


def finish_all(wire: Wire) -> list[int]:
    """Lease and ack until nothing is ready; return the jobs."""
    done: list[int] = []
    while (leased := wire.ask("lease", count=7))["jobs"]:
        ids = [job["job_id"] for job in leased["jobs"]]
        ranges = [[job_id, 1] for job_id in ids]
        verdicts = wire.ask("ack", items=[[leased["token"], ranges, None]])["results"]
        assert {verdict[2] for verdict in verdicts} == {"ok"}
        done += ids
    return done


def test_full_disk_refuses_new_jobs_finishes_old_ones_and_goes_on_by_itself(small_disk):
    daemon = Daemon(small_disk / "data", *SMALL)
    with daemon, daemon.client() as wire:
        submitted = submit_until(wire, "storage_full", bytes(20_000))
        assert len(submitted) > 50, "the disk was full before the log had several segments"
        for _ in range(5):
            fill(small_disk)
            assert wire.ask("stats")["process"]["storage_full"] == 1
            assert finish_all(wire) == submitted, "what was there could not be finished"
            (small_disk / "other").unlink()
            enlarge(small_disk, by=1)
            submitted = submit_until(wire, "ok")
            submitted += submit_until(wire, "storage_full", bytes(20_000))
        assert len(daemon.logged("storage_available")) >= 5
        daemon.kill()
    enlarge(small_disk, by=20)
    with daemon, daemon.client() as wire:
        assert finish_all(wire) == submitted, "a job was lost, or one that was finished is back"
        assert daemon.stop() == 0


def test_reserve_is_used_when_another_program_takes_the_rest(small_disk):
    daemon = Daemon(small_disk / "data", *SMALL)
    with daemon, daemon.client() as wire:
        submitted = [wire.ask("submit", payload=b"x")["job_id"] for _ in range(200)]
        fill(small_disk)
        assert os.statvfs(small_disk).f_bavail == 0
        assert finish_all(wire) == submitted
        assert not (small_disk / "data" / "reserve").exists(), "there was room all the time"
        assert len(submit_until(wire, "storage_full")) <= 1, (
            "new jobs were taken while the reserve was in use"
        )
        while not daemon.wait_for("storage_full")["reserve_is_lost"]:
            pass
        (small_disk / "other").unlink()
        more = submit_until(wire, "ok")
        assert (small_disk / "data" / "reserve").stat().st_blocks * 512 >= 1 << 20
        assert finish_all(wire) == more
        assert daemon.stop() == 0


def test_disk_that_stays_full_ends_the_daemon_and_loses_nothing_that_was_acknowledged(small_disk):
    daemon = Daemon(small_disk / "data", *SMALL)
    acknowledged: list[int] = []
    with daemon:
        with daemon.client() as wire:
            submitted = [wire.ask("submit", payload=b"x")["job_id"] for _ in range(100)]
            fill(small_disk)
            with contextlib.suppress(OSError, EOFError):
                while True:
                    leased = wire.ask("lease")
                    job_id = leased["jobs"][0]["job_id"]
                    wire.ask("ack", items=[[leased["token"], [[job_id, 1]], bytes(60_000)]])
                    acknowledged.append(job_id)
        check_died_of_its_disk(daemon)
    assert 10 < len(acknowledged) < 100, "the reserve of 1 MiB holds some 17 of them"
    result = ended(small_disk / "data", *SMALL)
    assert result.code == IO_ERROR, "still full"
    enlarge(small_disk, by=20)
    with daemon, daemon.client() as wire:
        states = {job["job_id"]: job["state"] for job in wire.listed()}
        assert list(states) == submitted
        assert {states[job_id] for job_id in acknowledged} == {"done"}
        assert list(states.values()).count("done") <= len(acknowledged) + 1


def test_disk_that_fills_up_under_a_pipeline(small_disk):
    daemon = Daemon(small_disk / "data", *SMALL)
    with daemon:
        with daemon.client() as wire:
            wire.write(b"".join(request(number, "submit", payload=bytes(20_000)) for number in range(2, 602)))
            answers = [wire.receive() for _ in range(2, 602)]
        assert {each.status for each in answers} == {"ok", "storage_full"}
        assert os.statvfs(small_disk).f_bavail * 4096 > 500_000, "more was taken than there was room for"
        daemon.kill()
    with daemon, daemon.client() as wire:
        taken = [each.body["job_id"] for each in answers if each.status == "ok"]
        assert taken == [job["job_id"] for job in wire.listed()]


# --- failing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def failing(data: Path, call: str, error: str, when: int) -> Iterator[Daemon]:
    """Start a daemon whose commit thread gets an error from one system call on the log, and later ones not.

    Only calls on the first segment by its final name count: what the start does has another name or thread.
    """
    strace = shutil.which("strace")
    assert strace, "strace is not installed: apt-get install strace"
    wrap = [
        strace,
        "-f",
        "-qq",
        "-o",
        os.devnull,
        "-P",
        f"{data}/0000000000000001.wal",
        "-e",
        f"trace={call}",
    ]
    failure = f"inject={call}:error={error}:delay_enter={FAILS_AFTER_US}:when={when}"
    with Daemon(data, "--unix", "off", wrap=[*wrap, "-e", failure]) as daemon:
        yield daemon


@pytest.mark.parametrize("when", [2, 3, 30])
@pytest.mark.parametrize(("call", "error"), [("fdatasync", "EIO"), ("fdatasync", "ENOSPC"), ("write", "EIO")])
def test_failed_call_is_the_last_one_and_nothing_is_acknowledged_by_it(tmp_path, call, error, when):
    data = tmp_path / "data"
    with failing(data, call, error, when) as daemon:
        with daemon.client() as wire:
            acknowledged = submit_until_it_ends(wire)
        check_died_of_its_disk(daemon)
    # The first call is for the start of the daemon, each later one for a submit, or now and then for a seal.
    assert when - 4 <= len(acknowledged) <= when - 2
    with Daemon(data, "--unix", "off") as daemon:
        (recovered,) = daemon.logged("recovered")
        assert not recovered["clean"]
        check_kept(daemon, acknowledged)


@pytest.mark.parametrize("when", [2, 3, 30])
def test_write_that_finds_no_space_once_is_repeated_and_nobody_notices(tmp_path, when):
    data = tmp_path / "data"
    with failing(data, "write", "ENOSPC", when) as daemon:
        with daemon.client() as wire:
            acknowledged = [wire.ask("submit", payload=b"x")["job_id"] for _ in range(40)]
        daemon.kill()
    with Daemon(data, "--unix", "off") as daemon:
        check_kept(daemon, acknowledged)


def test_failed_sync_leaves_every_client_without_an_answer(tmp_path):
    data = tmp_path / "data"
    acknowledged: set[int] = set()
    asked = 0
    with failing(data, "fdatasync", "EIO", 40) as daemon:
        wires = [Wire.connect(daemon.address) for _ in range(4)]
        with contextlib.suppress(OSError, EOFError):
            while True:
                for wire in wires:
                    wire.write(request(2, "submit", payload=b"x") + request(3, "get", job_id=asked + 1))
                    asked += 1
                for wire in wires:
                    answer = wire.receive()
                    assert answer.status == "ok"
                    acknowledged.add(answer.body["job_id"])
                    wire.receive()
        late = [answer for wire in wires for answer in wire.rest() if answer.request_id == 2]
        acknowledged |= {answer.body["job_id"] for answer in late}
        for wire in wires:
            wire.close()
        check_died_of_its_disk(daemon)
    assert 0 < len(acknowledged) < asked
    with Daemon(data, "--unix", "off") as daemon, daemon.client() as wire:
        assert acknowledged <= {job["job_id"] for job in wire.listed()}


def test_disk_that_stands_still_for_longer_than_a_lease_costs_nobody_a_lease(tmp_path):
    strace = shutil.which("strace")
    assert strace, "strace is not installed: apt-get install strace"
    slow = ["-e", "inject=fdatasync:delay_enter=2500ms:when=20+5"]
    wrap = [strace, "-f", "-qq", "-o", os.devnull, "-e", "trace=fdatasync", *slow]
    with Daemon(tmp_path / "data", "--unix", "off", wrap=wrap) as daemon, daemon.client() as wire:
        wire.ask("submit")
        token = wire.ask("lease", lease_ms=1_000)["token"]
        with daemon.client() as other:
            while not daemon.logged("slow_sync"):
                other.write(request(2, "submit"))
                # The worker asks again when it is answered, which a heartbeat of any client does.
                for _ in range(2):
                    results = wire.ask("extend", items=[[token, [[1, 1]]]], lease_ms=1_000)["results"]
                    assert results == [[1, 1, "ok"]]
                other.receive()
        assert wire.ask("get", job_id=1)["attempt"] == 1
        assert daemon.stop() == 0


def test_slow_disk_is_said_and_costs_nobody_a_lease(tmp_path):
    strace = shutil.which("strace")
    assert strace, "strace is not installed: apt-get install strace"
    slow = ["-e", "inject=fdatasync:delay_enter=300ms:when=20+"]
    wrap = [strace, "-f", "-qq", "-o", os.devnull, "-e", "trace=fdatasync", *slow]
    with Daemon(tmp_path / "data", "--unix", "off", "--slow-sync-ms", "250", wrap=wrap) as daemon:
        with daemon.client() as wire:
            token = wire.ask("submit") and wire.ask("lease", lease_ms=1_000)["token"]
            for _ in range(30):
                results = wire.ask("extend", items=[[token, [[1, 1]]]], lease_ms=1_000)["results"]
                assert results == [[1, 1, "ok"]]
                if daemon.logged("slow_sync"):
                    break
        (line, *_) = daemon.logged("slow_sync")
        assert line["took_ms"] >= 250 and line["limit_ms"] == 250
        assert daemon.stop() == 0
