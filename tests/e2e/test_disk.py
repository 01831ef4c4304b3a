"""Disks that are full or fail, under a real daemon: real ENOSPC on a small tmpfs, EIO by strace.

Both need what a desk may lack (root, strace): they run with the slow suites, and fail there with what is
missing instead of being skipped.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, ended
from tests.support.wire import Wire, request

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

IO_ERROR = 74


@pytest.fixture
def small_disk(tmp_path):
    """Return a directory with 6 MiB of room."""
    assert os.geteuid() == 0, "only root can mount a small disk: run the slow suites as root, as CI does"
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)


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
        while True:
            acknowledged.append(wire.ask("submit", payload=payload)["job_id"])
    return acknowledged


def check_died_of_its_disk(daemon: Daemon) -> None:
    assert daemon.wait() == IO_ERROR
    (line,) = daemon.logged("failed")
    assert line["exit_code"] == IO_ERROR
    assert str(daemon.data_dir) in line["error"]


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


def test_disk_that_fills_up_loses_nothing_that_was_acknowledged(small_disk):
    daemon = Daemon(small_disk / "data", "--unix", "off", "--segment-bytes", "1MiB")
    with daemon:
        with daemon.client() as wire:
            acknowledged = submit_until_it_ends(wire, bytes(50_000))
        check_died_of_its_disk(daemon)
    assert len(acknowledged) > 50, "the disk was full before the log had several segments"
    result = ended(small_disk / "data", "--unix", "off")
    assert result.code == IO_ERROR, "still full"
    enlarge(small_disk)
    with daemon:
        check_kept(daemon, acknowledged)


def test_disk_that_fills_up_under_a_pipeline(small_disk):
    daemon = Daemon(small_disk / "data", "--unix", "off", "--segment-bytes", "1MiB")
    with daemon:
        with daemon.client() as wire:
            with contextlib.suppress(OSError):
                wire.write(
                    b"".join(request(number, "submit", payload=bytes(20_000)) for number in range(2, 602))
                )
            with contextlib.suppress(OSError):
                answers = wire.rest()
        check_died_of_its_disk(daemon)
    assert {each.status for each in answers} == {"ok"}
    enlarge(small_disk)
    with daemon, daemon.client() as wire:
        assert {each.body["job_id"] for each in answers} <= {job["job_id"] for job in wire.listed()}


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
    with Daemon(
        data, "--unix", "off", wrap=[*wrap, "-e", f"inject={call}:error={error}:when={when}"]
    ) as daemon:
        yield daemon


@pytest.mark.parametrize("when", [2, 3, 30])
@pytest.mark.parametrize(("call", "error"), [("fdatasync", "EIO"), ("write", "EIO"), ("write", "ENOSPC")])
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
