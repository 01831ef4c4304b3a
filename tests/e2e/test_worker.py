"""Workers in processes of their own, with a real daemon: killed, stopped, kept busy, cut off, and the daemon restarted.

What holds in all of it: each job's effect happens at least once, no job is stuck, none is dead because something restarted.
"""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.proxy import Proxy
from tests.support.until import PATIENCE_S, happens
from tests.support.workers import Program

pytestmark = [pytest.mark.e2e]


def has_more(program: Program, count: int) -> bool:
    return len(program.notes()) > count


# --- signals ------------------------------------------------------------------------------------


def test_sigterm_lets_what_runs_end_and_leases_nothing_more(program):
    with program.worker("-c", "1") as worker:
        first = program.submit("busy", 0.5)
        happens(lambda: program.notes() == ["begins"])
        second = program.submit("note", "never")
        assert worker.stop() == 0
    assert program.is_done(first) and program.client.get(second).state == "ready"
    assert program.client.stats().lease_count == 0
    assert "1 jobs done" in worker.said


def test_ctrl_c_for_the_whole_group_lets_the_processes_of_the_pool_finish(program):
    with program.worker("--pool", "process") as worker:
        job_id = program.submit("busy", 0.5)
        happens(program.notes)
        os.killpg(worker.process.pid, signal.SIGINT)
        assert worker.process.wait(PATIENCE_S) == 0
    assert program.is_done(job_id)


@pytest.mark.parametrize("task", ["hang", "busy"])
def test_what_does_not_end_within_the_grace_goes_back_and_its_attempt_does_not_count(program, task):
    with program.worker("--grace", "0.2s") as worker:
        job_id = program.submit(task, 60.0)
        happens(program.notes)
        assert worker.stop() == 0
    info = program.client.get(job_id)
    assert (info.state, info.attempt, info.errors, info.crashes) == ("ready", 0, 0, 0)


def test_a_second_sigterm_ends_it_at_once(program):
    with program.worker("--grace", "10m") as worker:
        job_id = program.submit("hang")
        happens(program.notes)
        worker.process.terminate()
        happens(lambda: "stopping" in worker.said)
        assert worker.stop() == 0
    assert program.client.get(job_id).state == "ready"


@pytest.mark.parametrize(("task", "pool"), [("hang", "thread"), ("busy", "thread"), ("busy", "process")])
def test_a_killed_workers_job_goes_to_another_one_long_before_its_lease_has_run_out(program, task, pool):
    with program.worker("--pool", pool) as worker:
        job_id = program.submit(task, 60.0, lease=600)
        happens(lambda: len(program.notes()) == 1)
        with program.worker():
            worker.process.kill()
            happens(lambda: len(program.notes()) == 2)
            info = program.client.get(job_id)
            assert (info.state, info.attempt, info.crashes, info.errors) == ("leased", 2, 1, 0)
            assert info.attempts[0].error == "its worker's connection was lost"


# --- a busy handler -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "pool"),
    [
        ("busy", "thread"),
        ("abusy", "thread"),
        pytest.param("busy", "process", marks=pytest.mark.slow),
        pytest.param("abusy", "process", marks=pytest.mark.slow),
    ],
)
def test_a_handler_that_computes_for_three_leases_keeps_its_lease(program, task, pool):
    """A pure-Python loop, in a thread or on the event loop itself, with another worker that waits for the job."""
    with program.worker("-c", "2", "--pool", pool), program.worker("-c", "2"):
        job_id = program.submit(task, 6.5, lease=2)
        happens(lambda: program.is_done(job_id))
    info = program.client.get(job_id)
    assert (info.attempt, info.crashes, info.result) == (1, 0, b"\x01") and program.notes() == ["begins"]


# --- the server goes away -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_restart_of_the_daemon_in_the_middle_loses_and_kills_nothing(program, daemon, how):
    with program.worker("-c", "4"), program.worker("-c", "4", "--pool", "process"):
        names = [str(n) for n in range(120)]
        ids = [program.submit("note" if n % 2 else "anote", name) for n, name in enumerate(names)]
        # Longer than its lease, which is extended before, over and after each restart. The lease is long enough for a
        # worker that gets its turn late: twelve processes start and compute here.
        slow = program.submit("busy", 5.5, lease=4)
        for _ in range(2):
            happens(partial(has_more, program, min(len(program.notes()), 100)))
            getattr(daemon, how)()
            daemon.start()
            names += [f"{len(names)}"]
            ids.append(program.submit("note", names[-1]))
        happens(lambda: program.counts()["done"] == len(ids) + 1)
    assert program.counts() == {"ready": 0, "delayed": 0, "leased": 0, "done": len(ids) + 1, "dead": 0}
    assert set(names) <= set(program.notes())
    assert program.client.get(slow).attempt == 1


def test_cut_sockets_lose_nothing_and_cost_no_lease_or_attempt(tmp_path, daemon):
    proxy = Proxy(daemon.socket_path)
    (tmp_path / "program").mkdir()
    try:
        with Program(tmp_path / "program", proxy.url) as program, program.worker("-c", "4"):
            slow = program.submit("busy", 5.0, lease=4)
            ids = []
            for n in range(20):
                ids.append(program.submit("note", str(n), 0.01))
                proxy.cut()
                happens(partial(program.has_noted, str(n)))
            happens(lambda: all(map(program.is_done, [*ids, slow])))
            assert sorted(map(int, program.notes()[1:])) == list(
                range(20)
            )  # each once: acks were asked again
            assert program.client.get(slow).attempt == 1
    finally:
        proxy.close()


# --- a pool of processes ------------------------------------------------------------------------


def test_a_process_of_the_pool_that_dies_is_an_error_of_its_job_only(program):
    with program.worker("--pool", "process", "-c", "1") as worker:
        job_id = program.submit("crash")
        happens(lambda: program.client.get(job_id).errors == 1)
        assert program.client.get(job_id).error == "its process ended: SIGKILL"
        note = program.submit("note", "x")
        happens(lambda: program.is_done(note))
        assert worker.stop() == 0


def test_a_timeout_ends_the_process_that_would_not_listen(program):
    with program.worker("--pool", "process", "-c", "1") as worker:
        job_id = program.submit("forever")
        happens(lambda: program.client.get(job_id).errors == 1)
        assert program.client.get(job_id).error == "timeout: it took longer than 0.3 s"
        pid = int(program.notes()[0].removeprefix("pid "))
        happens(lambda: not Path(f"/proc/{pid}").exists())
        assert worker.stop() == 0


@pytest.mark.parametrize("task", ["note", "busy"])
def test_a_killed_worker_leaves_no_process_behind(program, task):
    """Whether it waits for work, or computes: others do its job by then."""
    with program.worker("--pool", "process", "-c", "1") as worker:
        job_id = program.submit(task, 60.0 if task == "busy" else "x")
        happens(program.notes)
        happens(lambda: task == "busy" or program.is_done(job_id))
        threads = Path(f"/proc/{worker.process.pid}/task").glob("*/children")
        (pid,) = (pid for each in threads for pid in each.read_text().split())
        worker.process.kill()
        happens(lambda: not Path(f"/proc/{pid}").exists())


# --- beginning anew -----------------------------------------------------------------------------


def test_after_max_jobs_it_begins_anew_under_the_same_process_id(program):
    with program.worker("--max-jobs", "2", "-c", "1") as worker:
        ids = [program.submit("who") for _ in range(5)]
        happens(lambda: all(map(program.is_done, ids)))
        happens(lambda: worker.said.count("serves") == 3)
        assert {int.from_bytes(program.client.get(each).result[1:], "big") for each in ids} == {
            worker.process.pid
        }
        assert worker.stop() == 0


@pytest.mark.parametrize("limit", [("--max-jobs", "2"), ("--max-rss", "16M")])
def test_a_process_of_the_pool_is_replaced(program, limit):
    with program.worker("--pool", "process", "-c", "1", *limit) as worker:
        ids = [program.submit("who") for _ in range(4)]
        happens(lambda: all(map(program.is_done, ids)))
        pids = [program.client.get(each).result for each in ids]
        assert len(set(pids)) == (2 if limit[0] == "--max-jobs" else 4)
        assert worker.said.count("serves") == 1 and worker.stop() == 0


def test_with_reload_it_begins_anew_when_a_source_changes(program):
    with program.worker("--reload", start=False) as worker:
        first = program.submit("anote", "old")
        happens(lambda: program.is_done(first))
        source = program.path.read_text()
        program.path.write_text("def broken(:")  # the worker of that ends, and the next change is waited for
        os.utime(program.path, ns=(1, 1))  # another time than before, whatever the clock's steps are
        happens(lambda: "SyntaxError" in worker.said)
        program.path.write_text(source.replace("    write(text)", "    write(text + ' and new')"))
        happens(lambda: worker.said.count("serves") == 2)
        second = program.submit("anote", "old")
        happens(lambda: program.is_done(second))
        assert program.notes() == ["old", "old and new"]
        assert worker.stop() == 0


# --- the command line ---------------------------------------------------------------------------


def command(program: Program, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "jqd", "worker", *words],
        cwd=program.directory,
        env=program.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["nowhere:app"], 2, "nowhere:app: No module named 'nowhere'"),
        (["shop:nothing"], 2, "has no attribute 'nothing'"),
        (["shop:write"], 2, "shop:write is a function: name a jqd.App"),
        (["shop", "--url", "redis://x"], 2, "url = 'redis://x'"),
        (["shop", "-c", "0"], 2, "'-c' / '--concurrency'"),
        (["shop", "--max-rss", "lots"], 2, "lots: a number of bytes, or 512M, 2G"),
        (["shop", "--grace", "soon"], 2, "duration = 'soon'"),
        (["shop", "-q", "a@b"], 2, "queue = 'a@b': a name must match [A-Za-z0-9_]"),
        (["shop", "-q", " ,"], 2, "-q ' ,': name a queue"),
        (["shop", "--lease", "40d"], 2, "lease = 40d: at most 1d"),
        (
            ["shop", "--max-rss", "5"],
            2,
            "5: at least 16M, Python alone takes most of that; a number alone is bytes, as in 512M",
        ),
        (["broken"], 1, "ModuleNotFoundError: No module named 'not_installed'"),
    ],
)
def test_what_makes_no_sense_is_said(program, words, code, why):
    (program.directory / "broken.py").write_text("import not_installed\n")
    assert command(program, *words)[0] == code and why in command(program, *words)[1]


def test_a_burst_ends_when_nothing_is_left(program):
    ids = [program.submit("note", str(n)) for n in range(3)]
    assert command(program, "shop", "-q", "other, default,", "--burst", "--health", "alive")[0] == 0
    assert all(map(program.is_done, ids)) and (program.directory / "alive").exists()


def test_it_waits_for_a_daemon_that_is_not_there_yet(program, daemon):
    daemon.kill()
    with program.worker(start=False) as worker:
        happens(lambda: "no jobs: cannot reach" in worker.said)
        daemon.start()
        job_id = program.submit("note", "x")
        happens(lambda: program.is_done(job_id))
        worker.process.send_signal(signal.SIGINT)
        assert worker.process.wait(PATIENCE_S) == 0
