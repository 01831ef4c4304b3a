"""jqctl and the real daemon, as a new user would try them."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.daemon import ROOT, Daemon, environment
from tests.support.terminal import Terminal

pytestmark = pytest.mark.e2e


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """Runs jqctl against a daemon."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *args: str, stdin: bytes = b"") -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "jqctl", *args],
            input=stdin,
            capture_output=True,
            env=environment({"JQD_URL": self.url}),
            cwd=ROOT,
            timeout=30,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def json(self, *args: str, stdin: bytes = b"") -> list[Any]:
        done = self(*args, "-o", "json", stdin=stdin)
        assert (done.code, done.err) == (0, "")
        return [json.loads(line) for line in done.out.splitlines()]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as running:
        yield running


@pytest.fixture
def shell(daemon: Daemon) -> Shell:
    host, port = daemon.address
    return Shell(f"jqd://{host}:{port}")


def test_a_job_goes_from_submit_through_lease_to_ack(shell):
    assert shell("submit", "emails", "hello", "--meta", "to=ada").out == "1\n"
    (held,) = shell.json("lease", "emails", "--wait", "5s")
    assert (held["job_id"], held["attempt"], held["payload"], held["metadata"]) == (
        "1",
        1,
        "hello",
        {"to": "ada"},
    )
    assert shell.json("extend", "1", held["token"], "--lease", "10m")[0]["lease_ms_left"] == 600_000
    assert shell.json("ack", "1", held["token"], "--result", "sent") == [{"job_id": "1", "code": "ok"}]
    again = shell("ack", "1", held["token"])
    assert again.code == 1 and "lease_lost" in again.err
    (job,) = shell.json("job", "1")
    assert (job["state"], job["result"]) == ("done", "sent")
    (queue,) = shell.json("queues")
    assert (queue["queue"], queue["done"]) == ("emails", 1)


def test_ids_of_one_command_are_the_arguments_of_the_next(shell):
    shell("submit", "q", "-", stdin=b"\0\xff")
    held = shell("lease", "q", "-o", "id").out.split()
    assert shell("fail", *held, "--error", "bad\x1b[31m", "--dead").code == 0
    (job,) = shell.json("job", held[0])
    assert (job["state"], job["reason"], job["payload_base64"]) == ("dead", "killed", "AP8=")
    assert "\x1b" not in shell("job", held[0]).out
    dead = shell("jobs", "--state", "dead", "-o", "id").out.split()
    assert shell("requeue", *dead).code == 0
    held = shell("lease", "q", "-o", "id").out.split()
    assert shell("release", *held, "--delay", "1h").code == 0
    assert shell("cancel", held[0]).code == 0
    assert shell.json("job", held[0])[0]["state"] == "cancelled"


@pytest.mark.parametrize("verb", [(), ("lease",)])
def test_the_script_in_the_help_is_safe_on_an_empty_queue(shell, verb):
    (script,) = re.findall(r"^ *(held=.*)$", shell(*verb, "--help").out, re.MULTILINE)
    script = script.replace("jqctl", f"{shlex.quote(sys.executable)} -m jqctl")

    def run() -> tuple[int, str, str]:
        done = subprocess.run(
            ["sh", "-c", script],
            capture_output=True,
            text=True,
            env=environment({"JQD_URL": shell.url}),
            cwd=ROOT,
        )
        return done.returncode, done.stdout, done.stderr

    assert run() == (1, "", "")
    shell("submit", "emails", "x")
    code, out, err = run()
    assert (code, out.split(), err) == (0, ["1", "ok"], "")


def test_a_file_of_jobs_goes_in_and_is_swept(shell, tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_text("".join(json.dumps({"payload": {"n": n}}) + "\n" for n in range(12_000)))
    ranges = shell.json("submit", "bulk", "--file", str(path), "--delay", "1h")
    assert [(one["job_id"], one["count"]) for one in ranges] == [("1", 10_000), ("10001", 2_000)]
    assert shell.json("cancel", "--queue", "bulk", "--dry-run") == [{"count": 12_000, "dry_run": True}]
    assert shell.json("cancel", "--queue", "bulk") == [{"count": 12_000, "dry_run": False}]
    assert len(shell("jobs", "--limit", "0", "-o", "id").out.split()) == 12_000


@pytest.mark.parametrize(
    ("words", "undo"),
    [(["pause", "emials"], "resume emials"), (["set", "emials", "--lease", "5m"], "set emials --reset")],
)
def test_a_queue_that_a_slip_has_made_is_told_and_taken_back(shell, words, undo):
    made = shell("queue", *words)
    assert (made.code, made.err) == (
        0,
        f"queue emials was not there: this made it; `jqctl queue {undo}` takes it back\n",
    )
    assert shell("queue", *words).err == ""
    assert shell("queue", *undo.split()).err == ""
    assert shell("queue", "show", "emials").err.startswith("jqctl: queue_not_found: ")
    assert shell("queue", "set", "emials", "--reset").err == ""
    assert shell("queue", *words, "-o", "json").err == ""


def test_refusals_name_code_value_and_limit(shell):
    refused = shell("submit", "a b", "x")
    assert refused.code == 2 and "queue = 'a b': a name must match" in refused.err
    assert shell("job", "99").err.startswith("jqctl: job_not_found: ")
    assert shell("jobs", "--queue", "none").err.startswith("jqctl: queue_not_found: ")
    large = shell("submit", "q", "-", stdin=bytes((1 << 20) + 1))
    assert large.code == 2 and "Error: payload = 1048577 bytes: the limit is 1048576" in large.err


def test_a_job_is_there_after_kill_9(daemon, tmp_path):
    shell = Shell(f"unix://{daemon.socket_path}")
    assert shell("submit", "q", "x").out == "1\n"
    daemon.kill()
    away = shell("ping")
    assert away.code == 3 and away.err.startswith("jqctl: connection_lost: cannot reach unix://")
    daemon.start()
    assert shell("lease", "q", "-o", "id").out.startswith("1 ")
    assert shell.json("ping")[0]["round_trip_ms"] > 0
    assert shell.json("stats")[0]["jobs"]["leased"] == 1


def test_watch_goes_on_over_a_restart(daemon):
    shell = Shell(f"unix://{daemon.socket_path}")
    shell("submit", "q", "x")
    words = [sys.executable, "-m", "jqctl", "--url", shell.url, "queues", "--watch", "100ms"]
    with Terminal(words, columns=200) as terminal:
        assert "connection_lost" not in terminal.read_until("\nq ")
        daemon.kill()
        terminal.read_until("connection_lost: queues: cannot reach unix://")
        daemon.start()
        shell("submit", "again", "x")
        terminal.read_until("\nagain ")
        terminal.interrupt()
        assert terminal.end() == 0


def test_a_queue_is_shown_and_purged(shell):
    shell("submit", "q", "a")
    shell("submit", "q", "b", "--delay", "1h")
    held = shell("lease", "q", "-o", "id").out.split()
    shell("fail", *held, "--dead")
    shell("submit", "q", "c")
    (shown,) = shell.json("queue", "show", "q")
    assert (shown["delayed"], shown["ready"], shown["dead"]) == (1, 1, 1)
    assert shell.json("queue", "purge", "q", "--dry-run") == [{"count": 2, "dry_run": True}]
    assert shell("queue", "purge", "q").code == 2
    assert shell.json("queue", "purge", "q", "--yes") == [{"count": 2, "dry_run": False}]
    (shown,) = shell.json("queue", "show", "q")
    assert (shown["delayed"], shown["ready"], shown["dead"]) == (0, 0, 1)
    assert shell.json("purge", held[0]) == [{"job_id": held[0], "code": "ok"}]
    gone = shell("queue", "show", "q")
    assert (
        gone.code == 1 and gone.err == "jqctl: queue_not_found: queue = 'q': it has no jobs and no settings\n"
    )
    assert gone.err == shell("queue", "purge", "q", "--yes").err
