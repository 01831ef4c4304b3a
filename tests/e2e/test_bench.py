"""`jqctl bench` and the real daemon: what it leaves behind, what it never touches, how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jqd.client.sync import Client
from tests.support.daemon import ROOT, Daemon, environment

pytestmark = pytest.mark.e2e

PATIENCE_S = 30
NUMBERS = {
    "jobs": int, "seconds": float, "jobs_per_s": int, "requests": int, "latency_p50_us": int, "latency_p99_us": int,
    "server_pid": int, "server_cpu_us_per_job": float, "server_user_us_per_job": float,
    "server_system_us_per_job": float, "server_cpu_share": float, "client_cpu_share": float, "syncs": int,
    "jobs_per_sync": float,
}  # fmt: skip


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(f"unix://{daemon.socket_path}") as connected:
        yield connected


def start(daemon: Daemon, *args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "jqctl", "--url", f"unix://{daemon.socket_path}", "bench", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def counts(client: Client) -> dict[str, dict[str, int]]:
    """Return the queues with their states, without those that have no job."""
    return {
        queue.queue: {
            state: count
            for state in ("delayed", "ready", "leased", "done", "dead", "cancelled")
            if (count := getattr(queue, state))
        }
        for queue in client.queues().queues
    }


def wait_until_under_way(client: Client, state: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not counts(client).get("jqctl-bench", {}).get(state):
        assert time.monotonic() < deadline, "the benchmark does not begin"


@pytest.mark.parametrize(
    ("args", "left"),
    [
        (["submit", "--clients", "4", "--pipeline", "3"], {}),
        (["submit", "--batch", "300", "--pipeline", "2", "--payload-bytes", "0"], {}),
        (["lease", "--clients", "3", "--batch", "70"], {"done": 1_000}),
        (["lease", "--clients", "2", "--batch", "7", "--pipeline", "3"], {"done": 1_000}),
        (["mixed", "--clients", "3"], {"done": 1_000}),
        (["mixed", "--clients", "2", "--pipeline", "2", "--batch", "50"], {"done": 1_000}),
    ],
)
def test_a_run_has_its_figures_and_leaves_no_job(daemon, client, args, left):
    client.submit("emails", "theirs")
    client.submit_many("jobs", ["a", "b"], delay="1h")
    theirs = counts(client)
    code, out, err = ended(start(daemon, *args, "--jobs", "1000", "-o", "json"))
    assert (code, err) == (0, "")
    figures: dict[str, Any] = json.loads(out)
    waits = {"submit_to_lease_p50_us": int, "submit_to_lease_p99_us": int} if args[0] == "mixed" else {}
    assert {name: type(figures[name]) for name in {**NUMBERS, **waits}} == {**NUMBERS, **waits}
    assert ("submit_to_lease_p50_us" in figures) is bool(waits)
    assert (figures["bench"], figures["jobs"], figures["queue"]) == (args[0], 1_000, "jqctl-bench")
    assert figures["server_pid"] == daemon.pid and figures["syncs"] > 0
    assert 0 < figures["latency_p50_us"] <= figures["latency_p99_us"] <= figures["seconds"] * 1e6 + 1
    assert counts(client) == theirs | ({"jqctl-bench": left} if left else {})


def test_jobs_kept_by_one_run_are_taken_by_the_next(daemon, client):
    assert ended(start(daemon, "submit", "--jobs", "500", "--keep"))[0] == 0
    assert counts(client) == {"jqctl-bench": {"ready": 500}}
    code, _, err = ended(start(daemon, "mixed"))
    assert code == 1 and "has 500 ready" in err
    code, out, _ = ended(start(daemon, "lease", "--destroy-existing", "--batch", "60", "-o", "json"))
    assert (code, json.loads(out)["jobs"]) == (0, 500)
    assert counts(client) == {"jqctl-bench": {"done": 500}}


@pytest.mark.parametrize(("kind", "state"), [("submit", "ready"), ("lease", "ready"), ("mixed", "done")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_cleans_up(daemon, client, kind, state, number):
    client.submit("emails", "theirs")
    jobs = {"submit": "10000000", "lease": "5000000", "mixed": "10000000"}[kind]
    process = start(daemon, kind, "--jobs", jobs, "-o", "json")
    wait_until_under_way(client, state)
    os.kill(process.pid, number)
    code, out, err = ended(process)
    assert code == 128 + number
    there = counts(client)
    assert there.pop("emails") == {"ready": 1}
    assert set(there.get("jqctl-bench", {})) <= {"done"}
    if kind == "lease":  # it was still putting jobs in: there is nothing to show
        assert out == "" and "interrupted before anything was measured" in err and "jobs were purged" in err
    else:
        figures = json.loads(out)
        assert err == "" and figures["interrupted"] is True and 0 < figures["jobs"] < 10_000_000
        assert figures["remarks"][0] == "interrupted: these are the figures till then"


@pytest.mark.parametrize("kind", ["submit", "mixed"])
def test_a_daemon_that_is_killed_ends_it_with_one_line(daemon, client, kind):
    process = start(daemon, kind, "--jobs", "10000000")
    wait_until_under_way(client, "ready" if kind == "submit" else "done")
    daemon.kill()
    code, out, err = ended(process)
    assert (code, out) == (3, "") and err.count("\n") == 1
    assert err.startswith(f"jqctl: connection_lost: unix://{daemon.socket_path}: the connection was lost: ")
    assert "of 10000000 jobs; jobs may be left in the queue jqctl-bench: it could not be cleaned up" in err
