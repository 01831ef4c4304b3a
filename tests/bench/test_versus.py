"""The comparison beside peers: every workload does on every server what it says, and leaves nothing behind.

What starts beanstalkd or Redis runs with the slow suites, and fails there without them.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import peers, versus
from tests.bench.dialects import Counts
from tests.bench.peers import Beanstalkd, Contestant, Jqd, Redis
from tests.bench.versus import PEERS, WORKLOADS, Size, Workload, ratios, row, run_once
from tests.bench.wire import Refused

ROOT = Path(__file__).resolve().parents[2]
WORKLOAD = {workload.name: workload for workload in WORKLOADS}


def jobs(name: str) -> int:
    """Return a handful: what the largest request of the workload holds, or more than a lane has in flight."""
    return versus.MANY if name == "vs_submit_many" else 200


def rates(*pairs: tuple[float, float]):
    """Return pairs of runs that were so fast."""
    return [
        tuple(
            {"jobs_per_s": rate, "p50_us": rate, "p99_us": rate, "value": 1.0, "client_share": 0.1}
            for rate in pair
        )
        for pair in pairs
    ]


def workload(asked: float | None, figure: str = "jobs_per_s") -> Workload:
    return Workload("vs_x", "x", lambda *_: {}, {"redis": asked}, figure=figure)


# --- ratios -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "figure", "reached"),
    [
        (2.0, "jobs_per_s", True),
        (2.1, "jobs_per_s", False),
        (2.0, "p50_us", True),
        (1.9, "p50_us", False),
        (None, "jobs_per_s", None),
    ],
)
def test_median_of_neighbours_is_held_against_what_is_asked(asked, figure, reached):
    result = ratios(workload(asked, figure), "redis", rates((10, 10), (60, 30), (10, 1)))
    assert (result["ratio_min"], result["ratio"], result["ratio_max"]) == (1, 2, 10)
    assert result["reached"] is reached


def test_row_says_whether_it_is_reached_and_whose_rate_is_the_generators():
    pairs = rates((20, 10))
    assert "reached" in row(ratios(workload(2), "redis", pairs), pairs)
    shown = row(ratios(workload(3), "redis", pairs), pairs)
    assert "MISSED" in shown and "GENERATOR" not in shown
    pairs[0][1]["client_share"] = 0.95
    jqd, peer = row(ratios(workload(3), "redis", pairs), pairs).split(";")
    assert "GENERATOR" in peer and "GENERATOR" not in jqd


def test_run_of_less_than_a_tick_has_no_cpu_ratio():
    pairs = rates((20, 10))
    pairs[0][1]["value"] = 0.0
    assert ratios(workload(2), "redis", pairs)["cpu_ratio"] is None


# --- what goes wrong ----------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("vs_submit_many", lambda true: true._replace(waiting=true.waiting - 1)),
        ("vs_lease_100_10", lambda true: true._replace(leased=0 if true.waiting else 1)),
        ("vs_stream", lambda true: true._replace(waiting=1)),
        ("vs_latency", lambda true: true._replace(leased=1)),
    ],
    ids=["submit lost", "lease kept", "submit left", "lease left"],
)
def test_run_whose_jobs_are_not_where_they_should_be_is_refused(name, lie, tmp_path, monkeypatch):
    counts = Jqd.counts
    monkeypatch.setattr(Jqd, "counts", lambda self: lie(counts(self)))
    with pytest.raises(RuntimeError, match=r"jqd has Counts.*and should have Counts"):
        run_once(WORKLOAD[name], Jqd, Size(jobs=jobs(name)), str(tmp_path))
    assert not os.listdir(tmp_path)


RUNS = """
import os, signal, sys
from tests.bench import interrupt, versus
from tests.bench.peers import Jqd

said = False

def say(pid):
    global said
    if not said:
        said = True
        print(pid, flush=True)

class InTheRun(Jqd):
    def dialect(self):  # the generator asks for it when its loop runs
        say(self.pid)
        return super().dialect()

class InTheRemoval(Jqd):
    def kill(self):
        if self._process is not None:
            say(self.pid)
            os.kill(os.getpid(), int(sys.argv[3]))
        super().kill()

kind = globals()[sys.argv[1]]
size = versus.Size(seconds=60) if kind is InTheRun else versus.Size(jobs=10)
with interrupt.listening():
    versus.run_once(versus.WORKLOADS[0], kind, size, sys.argv[2])
    versus.run_once(versus.WORKLOADS[0], kind, size, sys.argv[2])
    print("went on", flush=True)
"""


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["InTheRun", "InTheRemoval"])
def test_signal_ends_the_server_and_removes_its_data(when, number, tmp_path):
    argv = [sys.executable, "-c", RUNS, when, str(tmp_path), str(int(number))]
    with subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        server = int(process.stdout.readline())
        if when == "InTheRun":
            process.send_signal(number)
        out, err = process.communicate()
    assert (out, err, process.returncode) == ("", "terminated\n", 1)
    assert not os.listdir(tmp_path)
    assert not os.path.exists(f"/proc/{server}")


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("contestant", [Beanstalkd, Redis])
def test_refusal_of_a_peer_ends_the_run(contestant, tmp_path, monkeypatch):
    ack = contestant.dialect.ack
    monkeypatch.setattr(contestant.dialect, "ack", lambda self, jobs: ack(self, jobs) * 2)
    with pytest.raises(Refused):
        run_once(WORKLOAD["vs_lease_1_50"], contestant, Size(jobs=200), str(tmp_path))
    assert not os.listdir(tmp_path)


def test_missing_program_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(peers.MissingProgramError, match="apt-get install beanstalkd redis-server"):
        run_once(WORKLOADS[0], Beanstalkd, Size(jobs=1), str(tmp_path))
    assert not os.listdir(tmp_path)


# --- beside peers -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "contestant"),
    [(one.name, contestant) for one in WORKLOADS for contestant in (Jqd, *map(PEERS.get, one.asked))],
)
def test_workload_counts_the_jobs_that_a_server_did(name, contestant, tmp_path):
    """Run each; that the jobs are where they should be is checked in the workload."""
    figures = run_once(WORKLOAD[name], contestant, Size(jobs=jobs(name)), str(tmp_path))
    assert figures["jobs"] == jobs(name)
    assert figures.get("submitted", jobs(name)) == jobs(name)
    if name == "vs_latency":
        assert 0 < figures["p50_us"] <= figures["p99_us"]
    assert not os.listdir(tmp_path)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("contestant", [Jqd, Beanstalkd, Redis])
def test_jobs_of_every_server_outlive_it(contestant, tmp_path):
    def measure(server: Contestant, size: Size) -> dict[str, float]:
        figures = WORKLOAD["vs_submit_50"].measure(server, size)
        server.kill()
        server.start()
        versus.check(server, Counts(waiting=size.jobs, leased=0))
        return figures

    outlive = Workload("outlive", "submit, kill -9, start", measure, {})
    assert run_once(outlive, contestant, Size(jobs=200), str(tmp_path))["jobs"] == 200


@pytest.mark.slow
@pytest.mark.e2e
def test_program_prints_ratios_and_writes_everything(tmp_path):
    data, file = tmp_path / "data", tmp_path / "figures.json"
    data.mkdir()
    argv = [
        sys.executable,
        "-m",
        "tests.bench",
        "--only",
        "vs_submit_many",
        "--runs",
        "2",
        "--seconds",
        "0.1",
    ]
    done = subprocess.run(
        [*argv, "--dir", str(data), "--json", str(file)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    (result,) = written["peers"]
    assert (result["name"], result["peer"], result["asked"]) == ("vs_submit_many", "redis", 1)
    assert result["ratio_min"] <= result["ratio"] <= result["ratio_max"]
    assert [set(pair) for pair in result["pairs"]] == [{"jqd", "redis"}] * 2
    assert f"{result['ratio']:.2f}" in done.stdout.splitlines()[-1]
    assert {"beanstalkd", "redis-server"} <= set(written)
    assert not os.listdir(data)
