"""What an operator sees of workers and tells them: real processes of `jqd worker` and `jqctl work`, and a real daemon."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import environment
from tests.support.until import PATIENCE_S, happens
from tests.support.workers import Program, WorkerProcess

pytestmark = pytest.mark.e2e


def jqctl(program: Program, *words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "jqctl", "--url", program.url, "workers", *words, "-o", "json"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def states(program: Program) -> dict[int, str]:
    """By process id; the order is taken over when nothing is open any more."""
    return {
        info.pid: info.state if info.order is None else info.order
        for info in program.client.workers().workers
    }


def release(program: Program, name: str) -> None:
    (program.directory / name).touch()


def test_a_worker_is_listed_with_the_jobs_that_it_holds(program):
    with program.worker("-c", "2", "-q", "default,other", "--name", "w1") as worker:
        job_id = program.submit("gate", "go")
        happens(program.notes)
        (info,) = jqctl(program)
        assert {name: info[name] for name in ("worker", "pid", "queues", "concurrency", "state", "jobs")} == {
            "worker": "w1",
            "pid": worker.process.pid,
            "queues": ["default", "other"],
            "concurrency": 2,
            "state": "running",
            "jobs": [[str(job_id), 1]],
        }
        release(program, "go")
        happens(lambda: program.is_done(job_id))
        assert worker.stop() == 0
    happens(lambda: not states(program))


def test_a_quiet_worker_finishes_what_it_has_and_leases_nothing_until_it_is_told_to(program):
    with program.worker("-c", "4", "--name", "w1", "--health", "alive") as worker:
        first = program.submit("gate", "go")
        happens(program.notes)
        assert [told["worker"] for told in jqctl(program, "quiet", "w1")] == ["w1"]
        happens(lambda: states(program) == {worker.process.pid: "quiet"})
        second = program.submit("note", "second")
        release(program, "go")
        happens(lambda: program.is_done(first))
        (program.directory / "alive").unlink()
        happens((program.directory / "alive").exists)  # it is alive: so says the next beat
        assert program.client.get(second).state == "ready" and worker.process.poll() is None
        jqctl(program, "resume", "--all")
        happens(lambda: program.is_done(second))
        happens(lambda: states(program) == {worker.process.pid: "running"})


def test_a_worker_that_is_told_to_stop_finishes_what_it_has_and_exits_0(program):
    with program.worker("-c", "4") as worker, program.worker("-c", "4") as other:
        jqctl(program, "quiet", str_id(program, other))
        happens(lambda: states(program).get(other.process.pid) == "quiet")
        first = program.submit("gate", "go")
        happens(program.notes)
        jqctl(program, "stop", str_id(program, worker))
        happens(lambda: states(program).get(worker.process.pid) == "stopping")
        second = program.submit("note", "second")
        release(program, "go")
        assert worker.process.wait(PATIENCE_S) == 0
        assert program.is_done(first) and program.client.get(first).attempt == 1
        assert program.client.get(second).state == "ready"
        happens(lambda: list(states(program)) == [other.process.pid])
        jqctl(program, "stop", "--all")  # quiet or not
        assert other.process.wait(PATIENCE_S) == 0


def str_id(program: Program, worker: WorkerProcess) -> str:
    happens(lambda: worker.process.pid in states(program))
    infos = program.client.workers().workers
    return next(info.worker_id for info in infos if info.pid == worker.process.pid)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_after_a_restart_of_the_daemon_workers_are_listed_again_and_quiet_ones_are_quiet(
    program, daemon, how
):
    with program.worker() as one, program.worker() as two:
        jqctl(program, "quiet", str_id(program, two))
        happens(lambda: states(program).get(two.process.pid) == "quiet")
        ids = {str_id(program, each) for each in (one, two)}
        getattr(daemon, how)()
        daemon.start()
        happens(lambda: states(program) == {one.process.pid: "running", two.process.pid: "quiet"})
        assert {str_id(program, each) for each in (one, two)} == ids
        job_id = program.submit("who")
        happens(lambda: program.is_done(job_id))
        assert int.from_bytes(program.client.get(job_id).result[1:], "big") == one.process.pid


def test_one_that_would_begin_anew_with_its_sources_ends_too(program):
    with program.worker("--reload", start=False) as worker:
        happens(lambda: "running" in states(program).values())
        jqctl(program, "stop", "--all")
        assert worker.process.wait(PATIENCE_S) == 0
        assert worker.said.count("serves") == 1


def test_a_killed_worker_leaves_the_list(program):
    with program.worker() as worker:
        happens(lambda: list(states(program)) == [worker.process.pid])
        worker.process.kill()
        happens(lambda: not states(program))


def test_a_sigterm_while_it_would_begin_anew_ends_it(program):
    """max-jobs is reached, and the last job still runs: whoever says stop wants no other worker."""
    with program.worker("--max-jobs", "1", "-c", "1") as worker:
        job_id = program.submit("gate", "go")
        happens(program.notes)
        happens(lambda: states(program) == {worker.process.pid: "stopping"})
        worker.process.send_signal(signal.SIGTERM)
        happens(lambda: "SIGTERM" in worker.said)
        release(program, "go")
        assert worker.process.wait(PATIENCE_S) == 0
        assert worker.said.count("serves") == 1
    assert program.is_done(job_id), "it had its grace"


def test_a_shell_worker_is_a_worker_like_any_other(program):
    done = Path(program.directory / "shell.log")
    with done.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jqctl", "--url", program.url, "work", "default", "--exec", "true"],
            env=environment(),
            stdout=log,
            stderr=log,
        )
        try:
            happens(lambda: states(program) == {process.pid: "running"})
            jqctl(program, "stop", "--all")
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait(PATIENCE_S)
