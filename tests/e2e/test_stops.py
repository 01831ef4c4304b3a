"""SIGTERM in the middle of everything, workers that die, and descriptors that run out.

Faults 19, 33 and 35 of docs/faults.md.
"""

import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon, environment
from tests.support.killing import KillLoop
from tests.support.parallel import two_at_a_time
from tests.support.strace import strace_of
from tests.support.wire import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(180)]

SEED = int(os.environ.get("JQD_KILL_SEED") or random.randrange(1 << 32))
STOPS = 200
DRAIN_S_MAX = 10  # what `jqd --help` promises


# --- stops --------------------------------------------------------------------------------------


def stop_again_and_again(directory: Path, numbers: Sequence[int]) -> None:
    data = directory / str(numbers[0])
    loop = KillLoop(data, f"{SEED}-{data.name}", producers=2, workers=2, readers=1)
    ledger = loop.ledger
    with loop:
        for _ in numbers:
            loop.wait_for_work(loop.random.randrange(10, 80))
            loop.daemon.signal(signal.SIGTERM)
            loop.daemon.process.wait(DRAIN_S_MAX)
            loop.gate.clear()
            assert loop.daemon.wait() == 0
            assert loop.daemon.logged("stopped")
            loop.start_daemon()
            (recovered,) = loop.daemon.logged("recovered")
            assert recovered["clean"], "a clean stop left no mark"
            assert not ledger.faults, f"seed {SEED}: {ledger.faults[:20]}"
        loop.wait_for_work(10)
        loop.end()
    assert not ledger.faults, f"seed {SEED}: {ledger.faults[:20]}"
    # Else every stop found an idle daemon.
    assert (
        ledger.marks.get("not taken by a stopping daemon", 0) + ledger.marks.get("submit sent again", 0) > 0
    )


@pytest.mark.timeout(360)  # 60 s where nothing else runs
def test_stops_under_load_keep_what_was_answered_and_leave_a_clean_log(tmp_path):
    two_at_a_time(partial(stop_again_and_again, tmp_path), range(STOPS))


# --- a job that kills its workers ---------------------------------------------------------------

CRASHES_MAX = 2

# A process that takes the job and is gone: what it was told goes to stdout first.
_DYING_WORKER = """
import os, signal, sys
from tests.support.wire import Wire
wire = Wire.connect((sys.argv[1], int(sys.argv[2])))
(job,) = wire.ask("lease", lease_ms=1_000, wait_ms=20_000)["jobs"]
print(job["attempt"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def work_and_die(daemon: Daemon) -> int:
    host, port = daemon.address
    worker = subprocess.run(
        [sys.executable, "-c", _DYING_WORKER, host, str(port)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    assert worker.returncode == -signal.SIGKILL, worker.stderr
    return int(worker.stdout)


def test_job_that_kills_its_workers_is_dead_after_its_budget_over_restarts(tmp_path):
    with Daemon(tmp_path / "data", "--unix", "off") as daemon:
        with daemon.client() as wire:
            wire.ask("submit", max_crashes=CRASHES_MAX)
        for attempt in range(1, CRASHES_MAX + 2):
            assert work_and_die(daemon) == attempt
            with daemon.client() as wire:
                # Until the lease has run out and the crash is in the log; then the daemon dies too.
                while (job := wire.ask("get", job_id=1))["state"] == "leased":
                    assert wire.ask("lease", queues=["none"], wait_ms=100)["jobs"] == []
            daemon.kill()
            daemon.start()
        with daemon.client() as wire:
            job = wire.ask("get", job_id=1)
            assert (job["state"], job["reason"], job["attempt"]) == ("dead", "crashes", CRASHES_MAX + 1)
            assert wire.ask("lease")["jobs"] == []


# --- descriptors that run out -------------------------------------------------------------------

FILES_MAX = 80
CONNECTS, CROWD = 1_000, 250
JOBS = 80
FILL_BYTES = 60_000  # with so many jobs the log has four segments

_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def connect_a_lot(address: tuple[str, int]) -> None:
    """Hold far more connections open than the daemon has descriptors, until it has ended each."""
    for _ in range(CONNECTS // CROWD):
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(socket.create_connection(address, PATIENCE_S)) for _ in range(CROWD)]
            for one in crowd:
                with contextlib.suppress(ConnectionResetError):
                    while one.recv(1 << 12):
                        pass


def test_daemon_without_descriptors_loses_nothing_and_does_not_spin(tmp_path):
    data = tmp_path / "data"
    # The few that are let in say nothing, and are sent away soon.
    flags = ("--segment-bytes", "1MiB", "--hello-timeout-ms", "500")
    limited = [sys.executable, "-c", _LIMITED, str(FILES_MAX)]
    with Daemon(data, "--unix", "off", *flags, wrap=limited) as daemon:
        assert (
            "80" in Path(f"/proc/{daemon.pid}/limits").read_text().split("Max open files")[1].split("\n")[0]
        )
        crowd = threading.Thread(target=connect_a_lot, args=(daemon.address,))
        with daemon.client() as wire, strace_of(daemon.pid, "accept4", tmp_path / "calls") as calls:
            crowd.start()
            acknowledged = [wire.ask("submit", payload=bytes(FILL_BYTES))["job_id"] for _ in range(JOBS)]
            crowd.join()
            while (grant := wire.ask("lease", count=JOBS))["jobs"]:
                ranges = [[job["job_id"], 1] for job in grant["jobs"]]
                wire.ask("ack", items=[[grant["token"], ranges, None]])
        accepts = calls.read_text().count("accept4(")
        # One call takes a connection, perhaps another one hears that there is none left. A loop that had no
        # descriptor for it, and was told again and again, would make thousands.
        assert CONNECTS <= accepts <= 2 * CONNECTS
        daemon.kill()
    assert len(list(data.glob("*.wal"))) >= 4
    with Daemon(data, "--unix", "off") as daemon, daemon.client() as wire:
        assert [job["job_id"] for job in wire.listed()] == acknowledged
        assert {job["state"] for job in wire.listed()} == {"done"}


def test_daemon_that_can_open_nothing_serves_on_and_does_not_spin(tmp_path):
    flags = ("--unix", "off", "--hello-timeout-ms", "500")
    with Daemon(tmp_path / "data", *flags) as daemon, daemon.client() as wire:
        # Below what the settings were made for: the operator, or the machine, has taken the files away.
        in_use = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (in_use + 2, in_use + 2))
        with strace_of(daemon.pid, "accept4", tmp_path / "calls") as calls:
            crowd = threading.Thread(target=connect_a_lot, args=(daemon.address,))
            crowd.start()
            jobs = [wire.ask("submit")["job_id"] for _ in range(JOBS)]
            crowd.join()
        accepts = calls.read_text().count("accept4(")
        assert CONNECTS <= accepts <= 2 * CONNECTS
        assert [job["job_id"] for job in wire.listed()] == jobs
