"""A daemon that was stopped for longer than leases last, while its workers went on."""

import os
import signal

import pytest

from tests.support.daemon import Daemon
from tests.support.wire import Wire, request

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

WORKERS = 50
LEASE_MS = 1_000


def test_no_worker_loses_its_lease_to_a_daemon_that_stood_still(tmp_path):
    clock = Daemon(tmp_path / "clock")  # tells when time has passed
    with clock, clock.client() as timer, Daemon(tmp_path / "data") as daemon:
        workers = [Wire.connect(daemon.address) for _ in range(WORKERS)]
        tokens = []
        for worker in workers:
            worker.ask("submit")
            tokens.append(worker.ask("lease", lease_ms=LEASE_MS)["token"])

        def extend_all(request_id: int) -> None:
            for job_id, (worker, token) in enumerate(zip(workers, tokens, strict=True), 1):
                worker.write(request(request_id, "extend", items=[[token, [[job_id, 1]]]], lease_ms=LEASE_MS))

        def all_extended() -> None:
            for job_id, worker in enumerate(workers, 1):
                assert worker.receive().body["results"] == [[job_id, 1, "ok"]]

        for number in range(3):
            extend_all(100 + number)
            all_extended()
            os.kill(daemon.pid, signal.SIGSTOP)
            extend_all(200 + number)  # in time, and nobody reads it
            timer.ask("lease", wait_ms=3 * LEASE_MS)
            os.kill(daemon.pid, signal.SIGCONT)
            all_extended()
        assert len(daemon.logged("stood_still")) == 3
        with daemon.client() as wire:
            assert {job["attempt"] for job in wire.listed()} == {1}
            assert wire.ask("stats")["lease_count"] == WORKERS
        # Who stays silent loses the lease all the same: the jobs come to somebody else.
        got: set[int] = set()
        while len(got) < WORKERS:
            got |= {job["job_id"] for job in workers[0].ask("lease", count=WORKERS, wait_ms=30_000)["jobs"]}
        for worker in workers:
            worker.close()
