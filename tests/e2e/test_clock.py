"""The wall clock jumps under a daemon, or a daemon stands still. Faults 15 and 16 of docs/faults.md.

libfaketime, preloaded, moves the wall clock of the daemon while it runs. It is told to leave the monotonic clocks
alone; version 0.9.10 counts CLOCK_BOOTTIME, which jqd's durations go by, among them. Each jump is a test of that
too: the same environment is asked for both clocks, and boot time must be the kernel's own (/proc/uptime).
"""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, ended, environment
from tests.support.wire import Wire

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.e2e]

CONFIGURATION = 78
SECOND_S, HOUR_S, DAY_S, YEAR_S = 1, 3_600, 86_400, 31_536_000
# One after the other in one life: each is told as the distance from the true time.
JUMPS_S = [1, 0, -1, 0, HOUR_S, 0, -HOUR_S, 0, DAY_S, 0, -DAY_S, 0, 10 * YEAR_S, 0]

_BOTH_CLOCKS = """
import time
print(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), open("/proc/uptime").read().split()[0])
"""


class FakeClock:
    """Moves the wall clock of processes that are started with `environ`, as often as wanted."""

    def __init__(self, directory: Path) -> None:
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        assert libraries, "libfaketime is not installed: apt-get install faketime"
        self._file = directory / "faketime"
        self.environ = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, ahead_s: int) -> None:
        """Set the clock so far from the true time, and make sure that boot time goes on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}\n")
        new.rename(self._file)
        told = subprocess.run(
            [sys.executable, "-c", _BOTH_CLOCKS],
            env=environment(self.environ),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        wall_s, boot_s, uptime_s = map(float, told.split())
        assert abs(wall_s - (time.time() + ahead_s)) < 60, "the wall clock does not obey"
        assert abs(boot_s - uptime_s) < 60, "libfaketime moves CLOCK_BOOTTIME too: nothing is proved with it"


def states(wire: Wire, *job_ids: int) -> list[str]:
    return [wire.ask("get", job_id=job_id)["state"] for job_id in job_ids]


def test_jumps_of_the_wall_clock_move_dates_and_nothing_else(tmp_path):
    clock = FakeClock(tmp_path)
    with Daemon(tmp_path / "data", "--unix", "off", environ=clock.environ) as daemon, daemon.client() as wire:
        assert "libfaketime" in Path(f"/proc/{daemon.pid}/maps").read_text()
        held = wire.ask("submit", queue="held")["job_id"]
        token = wire.ask("lease", queues=["held"], lease_ms=600_000)["token"]
        delayed = wire.ask("submit", queue="delayed", delay_ms=600_000)["job_id"]
        ahead_before_s = 0
        for ahead_s in JUMPS_S:
            begun = wire.ask("stats")
            jump_ms = (ahead_s - ahead_before_s) * 1_000
            # Half a second before where the clock will be, and ten minutes ahead of both where it is and will be.
            passed, ahead = (
                wire.ask("submit", queue="dated", run_at_ms=begun["wall_ms"] + distance_ms)["job_id"]
                for distance_ms in (jump_ms - 500, max(0, jump_ms) + 600_000)
            )
            clock.set(ahead_s)
            # Parked: the daemon notices by itself that a date has come.
            grant = wire.ask("lease", queues=["dated"], wait_ms=20_000, count=10)
            assert [job["job_id"] for job in grant["jobs"]] == [passed]
            wire.ask("ack", items=[[grant["token"], [[passed, 1]], None]])
            now = wire.ask("stats")
            assert abs(now["wall_ms"] - begun["wall_ms"] - jump_ms) < 60_000
            assert 0 <= now["engine_ms"] - begun["engine_ms"] < 60_000
            assert states(wire, held, delayed, ahead) == ["leased", "delayed", "delayed"]
            assert 0 < wire.ask("get", job_id=held)["lease_ms_left"] <= 600_000
            results = wire.ask("extend", items=[[token, [[held, 1]]]], lease_ms=600_000)["results"]
            assert results == [[held, 1, "ok"]]
            wire.ask("cancel", ids=[[ahead, 1]])
            ahead_before_s = ahead_s
        assert daemon.stop() == 0


@pytest.mark.parametrize("ahead_s", [HOUR_S, DAY_S + HOUR_S, 10 * YEAR_S])
def test_clock_that_is_back_at_the_start_is_refused_beyond_a_day(tmp_path, ahead_s):
    clock = FakeClock(tmp_path)
    clock.set(ahead_s)
    data = tmp_path / "data"
    with Daemon(data, "--unix", "off", environ=clock.environ) as daemon, daemon.client() as wire:
        delayed = wire.ask("submit", delay_ms=600_000)["job_id"]
        wire.ask("submit", run_at_ms=wire.ask("stats")["wall_ms"] + 1_000_000)
        token = wire.ask("submit", queue="held") and wire.ask("lease", queues=["held"])["token"]
        assert daemon.stop() == 0
    flags = ["--unix", "off"]
    if ahead_s > DAY_S:
        before = {path.name: path.stat().st_mtime_ns for path in data.glob("*.wal")}
        result = ended(data, *flags)
        assert result.code == CONFIGURATION
        assert str(data) in result.complaint and "--accept-clock" in result.complaint
        assert {path.name for path in data.glob("*.wal")} >= set(before)
        flags.append("--accept-clock")
    with Daemon(data, *flags) as daemon, daemon.client() as wire:
        assert states(wire, delayed, 2, 3) == ["delayed", "delayed", "leased"]
        assert wire.ask("extend", items=[[token, [[3, 1]]]])["results"] == [[3, 1, "ok"]]
        # The epoch rises although the clock went back, so tokens stay unique.
        assert wire.ask("submit", queue="next") and wire.ask("lease", queues=["next"])["token"] > token


# --- stopped --------------------------------------------------------------------------------------

WORKERS = 50
LEASE_MS = 1_000
# Heartbeats that each worker sends while the daemon stands still: three leases long.
BEATS = 12


@pytest.mark.parametrize(
    "workers",
    [
        WORKERS,
    ],
)
def test_daemon_that_was_stopped_hears_its_workers_before_it_ends_their_leases(tmp_path, workers):
    with Daemon(tmp_path / "data", "--unix", "off") as daemon, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(daemon.client()) for _ in range(workers)]
        tokens = []
        for wire in wires:
            wire.ask("submit")
            tokens.append(wire.ask("lease", lease_ms=LEASE_MS)["token"])
        beats = 0

        def beat() -> None:
            nonlocal beats
            for job_id, (wire, token) in enumerate(zip(wires, tokens, strict=True), 1):
                wire.send(100 + beats, "extend", {"items": [[token, [[job_id, 1]]]], "lease_ms": LEASE_MS})
            beats += 1

        beat()
        daemon.signal(signal.SIGSTOP)
        pause = threading.Event()
        for _ in range(BEATS):
            pause.wait(LEASE_MS / 4_000)
            beat()
        daemon.signal(signal.SIGCONT)
        verdicts = [wire.receive().body["results"][0][2] for wire in wires for _ in range(beats)]
        assert set(verdicts) == {"ok"}
        for job_id, wire in enumerate(wires, 1):
            assert wire.try_ask("get", job_id=job_id).body["attempt"] == 1
