"""`jqctl work`: commands as workers, against the real daemon, as a user starts them."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from jqd.client.sync import Client
from jqd.core.commands import JobInfo
from tests.support.daemon import ROOT, Daemon, environment
from tests.support.until import PATIENCE_S, happens

pytestmark = pytest.mark.e2e


class Scene:
    """A daemon, a client of it, and workers that are ended with the block."""

    def __init__(self, directory: Path, daemon: Daemon) -> None:
        self.directory = directory
        self.url = f"unix://{daemon.socket_path}"
        self.client = Client(self.url)
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "jqctl", "work", *args],
            env={**environment({"JQD_URL": self.url}), "PYTHONPATH": str(ROOT)},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *args: str) -> tuple[int, str, str]:
        process = self.start(*args)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err

    def once(self, command: str, payload: bytes | str, *args: str, **options: Any) -> JobInfo:
        """Have one job done, and return how it stands."""
        job_id = self.client.submit("q", payload, **options).job_id
        code, out, err = self.run("q", "--exec", command, "--burst", *args)
        assert (code, out) == (0, ""), err
        return self.client.get(job_id)

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=PATIENCE_S)
        self.client.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        made = Scene(tmp_path, daemon)
        yield made
        made.close()


def result(info: JobInfo) -> object:
    return None if info.result is None else msgpack.unpackb(info.result)


# --- what a command is given --------------------------------------------------------------------


def test_the_payload_is_on_stdin_and_stdout_is_the_result(scene):
    info = scene.once("cat", "one\ntwo")
    assert (info.state, result(info)) == ("done", "one\ntwo")


def test_output_that_is_no_text_stays_bytes(scene):
    assert result(scene.once("cat", b"\xff\x00")) == b"\xff\x00"


def test_the_payload_replaces_braces_as_one_argument_that_no_shell_reads(scene):
    payload = "a b; touch owned $(touch owned) 'c'"
    info = scene.once("printf '%s|' to={} {} end", payload)
    assert result(info) == f"to={payload}|{payload}|end|"
    assert not (scene.directory / "owned").exists()


def test_the_environment_describes_the_job(scene):
    names = "$JQD_JOB_ID $JQD_QUEUE $JQD_ATTEMPT $JQD_PRIORITY $JQD_TASK"
    command = f"""sh -c 'echo {names} "$JQD_METADATA"; test $JQD_TOKEN'"""
    info = scene.once(command, "", priority=3, task="any.name", metadata={"a": "b"})
    assert result(info) == f'{info.job_id} q 1 3 any.name {{"a": "b"}}\n'


def test_a_command_need_not_read_and_may_say_more_than_is_kept(scene):
    assert scene.once("true", b"x" * 300_000).state == "done"
    info = scene.once("head -c 2000000 /dev/zero", "")
    assert info.state == "done" and result(info) == "\0" * 64_000


# --- what its exit code says --------------------------------------------------------------------


def test_a_failure_is_an_error_with_the_end_of_stderr(scene):
    info = scene.once("sh -c 'echo lost >&2; exit 3'", "")
    assert (info.state, info.errors, info.error) == ("delayed", 1, "exit code 3: lost")
    info = scene.once("sh -c 'kill -9 $$'", "", max_retries=0)
    assert (info.state, info.error) == ("dead", "ended by SIGKILL")


def test_exit_code_65_is_for_good_and_75_does_not_count(scene):
    info = scene.once("sh -c 'echo no such user >&2; exit 65'", "")
    assert (info.state, info.error) == ("dead", "exit code 65: no such user")
    info = scene.once("sh -c 'exit 75'", "", "--retry-in", "1h")
    assert (info.state, info.errors, info.attempt) == ("delayed", 0, 0)


@pytest.mark.parametrize(
    ("payload", "why"),
    [(b"a\0b", "embedded null byte"), (b"x" * 200_000, "200000 bytes are too long")],
)
def test_a_payload_that_cannot_be_an_argument_is_refused_for_good(scene, payload, why):
    info = scene.once("echo {}", payload)
    assert (info.state, info.error) == ("dead", f"the payload cannot be an argument: {why}")


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(scene):
    info = scene.once("sh -c 'sleep 1000 & echo $! > child; wait'", "", "--limit", "500ms")
    assert (info.state, info.error) == ("delayed", "timeout: it took longer than 0.5 s")
    child = int((scene.directory / "child").read_text())
    happens(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


# --- a jqctl that is killed ---------------------------------------------------------------------

# It writes down its own number and that of what it starts, and runs until it is killed.
RUNS = "sh -c 'sleep 1000 & echo $$ $! > $1.new; mv $1.new $1; wait' sh {}"


def running(scene: Scene, worker: subprocess.Popen[str], name: str) -> list[int]:
    """Wait until a command of RUNS has begun and jqctl has seen to its end. Returns its processes."""
    assert worker.stderr is not None
    happens(lambda: " is process " in worker.stderr.readline())
    happens((scene.directory / name).exists)
    return [int(pid) for pid in (scene.directory / name).read_text().split()]


def guards(scene: Scene) -> list[int]:
    """Find the programs beside the workers of this test."""
    found: list[int] = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            words = (directory / "cmdline").read_bytes().split(b"\0")
            if (
                any(word.endswith(b"leftovers.py") for word in words)
                and scene.url.encode() in (directory / "environ").read_bytes()
            ):
                found.append(int(directory.name))
    return found


def test_what_runs_and_all_that_it_started_ends_with_a_jqctl_that_is_killed(scene):
    for name in ("one", "two"):
        scene.client.submit("q", name)
    worker = scene.start("q", "--exec", RUNS, "-j", "2", "-v")
    pids = running(scene, worker, "one") + running(scene, worker, "two")
    (guard,) = guards(scene)
    os.kill(guard, signal.SIGTERM)  # as systemd does to all of a service: jqctl has a grace, and so has this
    worker.kill()
    happens(lambda: not any(map(is_running, pids)))
    happens(lambda: not guards(scene))


def test_the_program_beside_it_is_there_again_after_its_own_end(scene):
    scene.client.submit("q", "one")
    worker = scene.start("q", "--exec", RUNS, "-j", "2", "-v")
    pids = running(scene, worker, "one")
    (guard,) = guards(scene)
    os.kill(guard, signal.SIGKILL)
    happens(lambda: not guards(scene))
    scene.client.submit("q", "two")
    pids += running(scene, worker, "two")
    worker.kill()
    happens(lambda: not any(map(is_running, pids)))


def test_nothing_stands_beside_a_worker_that_has_ended(scene):
    seen = scene.once("sh -c 'echo $PPID; exec sleep 0'", "")
    assert seen.state == "done" and not guards(scene)


def test_what_has_ended_is_left_alone_by_a_killed_jqctl(scene):
    """Its number may be another process's by then; here it is the one of what it has left behind."""
    job_id = scene.client.submit("q", "").job_id
    leaves = "sh -c 'sleep 1000 >/dev/null 2>&1 & echo $! > left.new; mv left.new left'"
    worker = scene.start("q", "--exec", leaves, "-v")
    (left,) = running(scene, worker, "left")
    try:
        happens(lambda: scene.client.get(job_id).state == "done")
        worker.kill()
        happens(lambda: not guards(scene))
        assert is_running(left)
    finally:
        os.kill(left, signal.SIGKILL)


# --- as a worker --------------------------------------------------------------------------------


def test_as_many_run_at_a_time_as_are_asked_for(scene):
    """Each waits for the other's file: with fewer than two at a time neither would end."""
    ids = [scene.client.submit("q", payload).job_id for payload in ("a b", "b a")]
    meets = "sh -c 'set -- $1; touch $1; until [ -e $2 ]; do sleep 0.01; done' sh {}"
    code, _, err = scene.run("q", "--exec", meets, "-j", "2", "--burst")
    assert code == 0, err
    assert [scene.client.get(job_id).state for job_id in ids] == ["done", "done"]


def test_sigterm_lets_what_runs_end_and_leases_nothing_more(scene):
    first, second = (scene.client.submit("q", "").job_id for _ in range(2))
    worker = scene.start("q", "--exec", "sh -c 'touch begun; until [ -e go ]; do sleep 0.01; done'")
    happens((scene.directory / "begun").exists)
    worker.terminate()
    assert worker.stderr is not None
    happens(lambda: "stopping" in worker.stderr.readline())
    (scene.directory / "go").touch()
    assert worker.wait(PATIENCE_S) == 0
    assert [scene.client.get(job_id).state for job_id in (first, second)] == ["done", "ready"]


def test_a_second_signal_gives_the_job_back_without_an_attempt(scene):
    job_id = scene.client.submit("q", "").job_id
    worker = scene.start("q", "--exec", "sh -c 'echo $$ > pid; exec sleep 1000'")
    happens(lambda: (scene.directory / "pid").exists() and (scene.directory / "pid").read_text())
    worker.send_signal(signal.SIGINT)
    assert worker.stderr is not None
    happens(lambda: "stopping" in worker.stderr.readline())
    worker.send_signal(signal.SIGINT)
    assert worker.wait(PATIENCE_S) == 0
    info = scene.client.get(job_id)
    assert (info.state, info.attempt, info.errors, info.crashes) == ("ready", 0, 0, 0)
    assert not is_running(int((scene.directory / "pid").read_text()))


def test_queues_are_served_in_their_order(scene):
    for queue in ("late", "early"):
        scene.client.submit(queue, queue)
    code, _, err = scene.run("early", "late", "--exec", "sh -c 'echo $1 >> order' sh {}", "--burst")
    assert code == 0, err
    assert (scene.directory / "order").read_text() == "early\nlate\n"


# --- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["q", "--exec", ""], "there is nothing to run"),
        (["q", "--exec", "no-such-program {}"], "--exec 'no-such-program': there is no such program"),
        (["q", "--exec", "echo 'a"], "No closing quotation"),
        (["q"], "Missing option '--exec'"),
        (["--exec", "true"], "Missing argument 'QUEUE...'"),
        (["q", "--exec", "true", "-j", "0"], "0 is not in the range"),
        (["q", "--exec", "true", "--limit", "soon"], "soon"),
    ],
)
def test_wrong_use_is_said_before_anybody_is_asked(scene, args, words):
    code, out, err = scene.run(*args)
    assert (code, out) == (2, "")
    assert words in err


def test_a_daemon_that_is_not_there_is_told_at_once(scene):
    code, out, err = scene.run(
        "q", "--exec", "true", "--url", f"unix://{scene.directory}/nobody", "--timeout", "1s"
    )
    assert (code, out) == (3, "")
    assert "cannot reach" in err


def test_a_daemon_that_restarts_is_waited_for(tmp_path):
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        scene = Scene(tmp_path, daemon)
        try:
            worker = scene.start("q", "--exec", "cat")
            first = scene.client.submit("q", "1").job_id
            happens(lambda: scene.client.get(first).state == "done")
            os.kill(daemon.process.pid, signal.SIGKILL)
            daemon.process.wait(PATIENCE_S)
            daemon.start()
            second = scene.client.submit("q", "2").job_id
            happens(lambda: scene.client.get(second).state == "done")
            worker.terminate()
            assert worker.wait(PATIENCE_S) == 0
        finally:
            scene.close()
