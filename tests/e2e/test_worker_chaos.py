"""Ten thousand jobs while workers and the daemon are killed, stopped and replaced at random.

What holds: each job's effect happens at least once, no stale ack is accepted, no job is stuck, none is dead because
something restarted.
"""

import os
import random
import signal
from functools import partial

import msgspec
import pytest

from jqd.client.arguments import pack
from jqd.client.sync import Client
from tests.support.daemon import Daemon
from tests.support.proxy import Proxy
from tests.support.until import happens
from tests.support.workers import Program, WorkerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

JOBS = 10_000
BLOWS = 24  # kills, stops and pauses, spread over the run
LEASE_S = 2
RUN_S = 240.0  # patience, not a measure


class Crew:
    """Workers, by their names; who falls is replaced."""

    def __init__(self, program: Program, size: int) -> None:
        self.program = program
        self.made = 0
        self.members: dict[str, WorkerProcess] = {}
        for _ in range(size):
            self.hire()

    def hire(self) -> None:
        self.made += 1
        name = f"w{self.made}"
        self.members[name] = self.program.worker("-c", "8", "--name", name, start=False)

    def end(self) -> None:
        for worker in self.members.values():
            worker.__exit__()


def is_worked_off(program: Program, jobs: int) -> bool:
    return program.counts()["done"] == jobs


def has_done(program: Program, jobs: int) -> bool:
    return program.counts()["done"] >= jobs


def holds_nothing(client: Client, name: str) -> bool:
    return all(job.worker != name for job in client.list(filter="state = leased", limit=1_000).jobs)


def strike(dice: random.Random, crew: Crew, daemon: Daemon, blows: dict[str, int]) -> None:
    """Do one of the things that happen to processes."""
    blow = dice.choice(("kill worker", "stop worker", "pause worker", "kill daemon", "stop daemon"))
    blows[blow] = blows.get(blow, 0) + 1
    name = dice.choice(sorted(crew.members))
    worker = crew.members[name]
    if blow == "kill worker":
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    elif blow == "stop worker":
        worker.process.terminate()
        code = worker.process.wait(60)
        assert code == 0 or "serves" not in worker.said  # it had not begun to listen to signals
    elif blow == "pause worker":
        # Until all that it held went to others: what it says then comes too late.
        os.killpg(worker.process.pid, signal.SIGSTOP)
        try:
            happens(partial(holds_nothing, crew.program.client, name))
        finally:
            os.killpg(worker.process.pid, signal.SIGCONT)
        return
    else:
        daemon.kill() if blow == "kill daemon" else daemon.stop()
        daemon.start()
        return
    del crew.members[name]
    crew.hire()


def test_each_of_ten_thousand_jobs_has_its_effect(program, daemon):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    client = program.client
    payloads = [pack("arguments", {"number": n}) for n in range(JOBS)]
    client.submit_many("default", payloads, task="mark", encoding="msgpack", lease=LEASE_S)
    crew = Crew(program, 3)
    blows: dict[str, int] = {}
    try:
        for number in range(BLOWS):
            happens(partial(has_done, program, JOBS * number // (BLOWS + 4)), RUN_S)
            strike(dice, crew, daemon, blows)
        happens(partial(is_worked_off, program, JOBS), RUN_S)
    finally:
        crew.end()
    assert program.counts() == {"ready": 0, "delayed": 0, "leased": 0, "done": JOBS, "dead": 0}, blows
    effects = program.notes()
    assert set(map(int, effects)) == set(range(JOBS))
    repeated = 0
    for job in client.list(limit=1_000, filter="attempt > 1").jobs:
        info = client.get(job.job_id)
        assert info.result is not None
        # If an ack under an older token had been taken, the result would be that of an earlier attempt.
        assert msgspec.msgpack.decode(info.result) == info.attempt, info
        repeated += info.attempt - 1
    print(f"{blows}: {len(effects)} effects, {repeated} deliveries more than jobs")


def test_a_rolling_deploy_takes_no_attempt_and_does_nothing_twice(program, daemon):
    client = program.client
    names = []
    old = program.worker("-c", "4")
    for generation in range(5):
        for n in range(50):
            names.append(f"{generation}-{n}")
            program.submit("note" if n % 2 else "anote", names[-1], *([0.02] if n % 2 else []), lease=LEASE_S)
        new = program.worker("-c", "4", start=False)
        happens(partial(program.has_noted, f"{generation}-0"))
        assert old.stop() == 0
        old = new
    with old:
        happens(partial(is_worked_off, program, len(names)))
    assert sorted(program.notes()) == sorted(names)  # each once
    assert {(job.attempt, job.crashes, job.errors) for job in client.list(limit=1_000).jobs} == {(1, 0, 0)}


def test_a_half_open_line_costs_no_lease_and_the_worker_goes_on(tmp_path, daemon):
    """Nothing arrives any more on the lines that there are, and nobody is told: a firewall that forgot them."""
    proxy = Proxy(daemon.socket_path)
    (tmp_path / "program").mkdir()
    try:
        with Program(tmp_path / "program", f"unix://{daemon.socket_path}") as program:
            through = Program.__new__(Program)
            through.__dict__.update(program.__dict__, url=proxy.url)
            with through.worker("-c", "4"):
                slow = program.submit("busy", 8.0, lease=4)
                happens(partial(program.has_noted, "begins"))
                proxy.freeze()
                later = program.submit("note", "later")
                happens(lambda: program.is_done(slow) and program.is_done(later), RUN_S)
                assert program.client.get(slow).attempt == 1
    finally:
        proxy.close()
