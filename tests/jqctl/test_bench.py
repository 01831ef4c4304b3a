"""`jqctl bench` against a server that says what the test tells it to: what is refused, which figures are shown."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from jqctl import bench, process
from jqctl.__main__ import run
from jqctl.group import STATES
from jqctl.process import Cpu
from jqd.client import load
from jqd.client.load import Latencies, Plan, Span
from jqd.core.commands import (
    Purge,
    QueueInfo,
    QueueList,
    ServerStats,
    Submit,
    Submitted,
    SubmittedMany,
    Swept,
)
from jqd.errors import Busy
from tests.support.fakeserver import Asked, FakeServer

SIZES = ("--jobs", "20", "--clients", "2", "--batch", "1")


def queue(name: str = bench.QUEUE, **counts: Any) -> QueueInfo:
    return QueueInfo(queue=name, **{**dict.fromkeys(STATES, 0), **counts})


def stats(**process_figures: int) -> ServerStats:
    return ServerStats(
        server="fake", store_id="s", epoch=1, engine_ms=1, wall_ms=1, uptime_ms=1, lsn=1, jobs={}, queue_count=0,
        lease_count=0, waiting_count=0, parked_count=0, session_count=0, key_count=0, result_bytes=0, memory_bytes=0, ended_bytes=0, tenant_count=0, tenants={}, process=process_figures,
    )  # fmt: skip


def purged(asked: Asked) -> Swept:
    ranges = asked.command.ids  # type: ignore[attr-defined]
    return Swept(count=sum(count for _, count in ranges), cursor=None, results=[])


class Shell:
    """Runs `jqctl bench` against `server`."""

    def __init__(self, server: FakeServer, capture: Any) -> None:
        self.server = server
        self._capture = capture
        self._ids = iter(range(1, 1_000_000))
        self._syncs = iter(range(0, 1_000, 10))
        server.answers |= {
            "queues": QueueList(queues=[], cursor=None),
            "stats": lambda _: stats(syncs=next(self._syncs)),
            "submit": lambda _: Submitted(job_id=next(self._ids)),
            "purge": purged,
        }

    def __call__(self, *args: str) -> tuple[int, str, str]:
        code = run(["--url", self.server.url, "bench", *args])
        out, err = self._capture.readouterr()
        return code, out, err

    def said(self, kind: type) -> list[Any]:
        return [asked.command for asked in self.server.asked if isinstance(asked.command, kind)]


@pytest.fixture
def shell(capsys) -> Iterator[Shell]:
    with FakeServer.thread() as server:
        yield Shell(server, capsys)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["submit", "--clients", "0"], "'--clients': 0 is not in the range 1<=x<=1000"),
        (["submit", "--pipeline", "1025"], "'--pipeline': 1025 is not in the range 1<=x<=1024"),
        (["lease", "--batch", "10001"], "'--batch': 10001 is not in the range 1<=x<=10000"),
        (["submit", "--payload-bytes", "1048577"], "1048577 is not in the range 0<=x<=1048576"),
        (["mixed", "--payload-bytes", "15"], "15 is not in the range 16<=x<=1048576"),
        (["lease", "--jobs", "10000001"], "10000001 is not in the range 1<=x<=10000000"),
        (["submit", "--payload-bytes", "1048576"], "= 104857600000 bytes: the limit is 1073741824"),
        (["submit", "--queue", "a b"], "queue = 'a b': a name must match"),
        (["mixed", "-o", "id"], "-o id: a benchmark has no ids to show"),
        (["submit", "--pid", "0"], "'--pid': 0 is not in the range x>=1"),
        (["submit", "--pid", "4194305"], "pid = 4194305: /proc/4194305/stat: No such file or directory"),
        (["lease", "--keep"], "No such option"),
    ],
)
def test_bad_sizes_are_refused_with_value_and_limit(shell, args, words):
    code, out, err = shell(*args)
    assert (code, out) == (2, "") and words in err
    assert shell.server.asked == [] and shell.server.connections == []


def test_the_options_have_the_limits_of_the_load():
    for name in (
        "CLIENTS_MAX",
        "IN_FLIGHT_MAX",
        "JOBS_PER_REQUEST_MAX",
        "PAYLOAD_BYTES_MAX",
        "JOBS_MAX",
        "STAMP_BYTES",
    ):
        assert getattr(bench, name) == getattr(load, name)


@pytest.mark.parametrize(
    ("there", "args", "words"),
    [
        (queue(ready=3, leased=1), [], "queue = jqctl-bench: has 3 ready, 1 leased: a benchmark takes"),
        (queue(dead=1), [], "has 1 dead"),
        (queue("emails", delayed=1), ["--queue", "emails"], "queue = emails: has 1 delayed"),
        (queue("emails", done=5), ["--queue", "emails"], "queue = emails: has 5 done"),
    ],
)
@pytest.mark.parametrize("kind", ["submit", "lease", "mixed"])
def test_a_queue_with_jobs_is_refused(shell, kind, there, args, words):
    pages = iter(
        [QueueList(queues=[queue("a", ready=9)], cursor="a"), QueueList(queues=[there], cursor=None)]
    )
    shell.server.answers["queues"] = lambda _: next(pages)
    code, out, err = shell(kind, *args)
    assert (code, out) == (1, "") and words in err and err.startswith("jqctl: wrong_state: ")
    assert ("--destroy-existing" in err) is (
        there.queue == bench.QUEUE
    )  # no such advice about a user's queue
    assert {asked.command.verb for asked in shell.server.asked} == {"queues"}


def test_jobs_that_an_earlier_run_has_finished_are_no_obstacle(shell):
    shell.server.answers["queues"] = QueueList(queues=[queue("jqctl-bench.2", done=100_000)], cursor=None)
    assert shell("submit", *SIZES, "--queue", "jqctl-bench.2")[0] == 0


def test_destroy_existing_wants_jobs_that_are_there(shell):
    shell.server.answers["queues"] = QueueList(queues=[queue("q", done=1)], cursor=None)
    code, _, err = shell("lease", "--queue", "q", "--destroy-existing")
    assert code == 1 and err == "jqctl: queue_not_found: queue = q: it has no ready jobs to take\n"


# --- a run ------------------------------------------------------------------------------------


def test_submit_puts_jobs_in_and_purges_those_alone(shell):
    code, out, err = shell("submit", *SIZES, "-o", "json")
    assert (code, err) == (0, "")
    figures = json.loads(out)
    assert len(shell.said(Submit)) == 20
    assert {command.queue for command in shell.said(Submit)} == {"jqctl-bench"}
    (purge,) = shell.said(Purge)
    assert (purge.ids, purge.filter) == ([(1, 20)], None)
    assert figures["remarks"][-1] == "20 jobs were purged, no job is left in the queue jqctl-bench"
    assert (figures["syncs"], figures["jobs_per_sync"], figures["interrupted"]) == (10, 2.0, False)


def test_kept_jobs_are_not_purged(shell):
    code, _, err = shell("submit", *SIZES, "--keep")
    assert code == 0 and "20 jobs stay in the queue jqctl-bench\n" in err
    assert shell.said(Purge) == []


def test_a_table_has_its_remarks_beside_it(shell):
    code, out, err = shell("submit", *SIZES)
    assert code == 0
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert shown["jobs"] == "20" and "jobs_per_s" in shown and "remarks" not in shown
    assert "the daemon's CPU time is not known: the daemon does not tell its pid; say --pid\n" in err
    assert err.endswith("20 jobs were purged, no job is left in the queue jqctl-bench\n")


def test_a_refusal_is_one_line_that_says_what_is_left(shell):
    ids = iter(range(1, 100))
    shell.server.answers["submit"] = lambda _: Submitted(job_id=n) if (n := next(ids)) < 5 else Busy("full")
    code, out, err = shell("submit", "--jobs", "20", "--clients", "1")
    assert (code, out) == (1, "")
    assert err == (
        "jqctl: busy: full; after 4 of 20 jobs; 4 jobs were purged, no job is left in the queue jqctl-bench\n"
    )


def test_what_cannot_be_cleaned_up_is_said(shell):
    shell.server.answers["purge"] = Busy("full")
    code, _, err = shell("submit", *SIZES)
    assert code == 0 and "jobs may be left in the queue jqctl-bench: it could not be cleaned up (busy)" in err


def test_jobs_that_went_in_before_a_refusal_of_the_fill_are_purged(shell):
    def once(asked: Asked) -> Any:
        filled = [one for one in shell.server.asked if one.command.verb == "submit_many"]
        return SubmittedMany(jobs=[(1, 10_000, False)]) if len(filled) == 1 else Busy("full")

    shell.server.answers["submit_many"] = once
    code, _, err = shell("lease", "--jobs", "40000")
    assert code == 1 and err.startswith(
        "jqctl: busy: full; after 10000 of 40000 jobs; 10000 jobs were purged"
    )
    (purge,) = shell.said(Purge)
    assert purge.ids == [(1, 10_000)]


# --- the daemon's processor time ----------------------------------------------------------------


def test_a_pid_that_is_given_is_measured(shell):
    code, out, _ = shell("submit", *SIZES, "--pid", str(os.getpid()), "-o", "json")
    figures = json.loads(out)
    assert code == 0 and figures["server_pid"] == os.getpid()
    assert (
        f"server_pid                {os.getpid()}\n" in shell("submit", *SIZES, "--pid", str(os.getpid()))[1]
    )
    assert "too few to tell" in figures["remarks"][0]  # 20 jobs cost less than half a second


@pytest.mark.parametrize(
    ("told", "words"),
    [({}, "does not tell its pid"), ({"pid": 4_194_305}, "is not here"), ({"pid": 1}, "is no jqd here")],
)
def test_what_is_not_known_is_left_out_and_said(shell, told, words):
    shell.server.answers["stats"] = stats(**told)
    figures = json.loads(shell("submit", *SIZES, "-o", "json")[1])
    assert not {name for name in figures if name.startswith("server_")}
    assert words in figures["remarks"][0] and figures["remarks"][0].endswith("; say --pid")


def test_a_daemon_on_another_machine_has_no_pid_here(shell, monkeypatch):
    monkeypatch.setattr(process, "is_near", lambda _: False)
    shell.server.answers["stats"] = stats(pid=os.getpid())
    figures = json.loads(shell("submit", *SIZES, "-o", "json")[1])
    assert "server_pid" not in figures
    assert figures["remarks"][0].endswith("is not on this machine")  # --pid would be no help


def test_figures_are_a_job_in_the_units_of_their_names():
    plan = Plan(kind="mixed", queue="q", clients=1, pipeline=1, batch=1, payload_bytes=16, jobs=1_000)
    requests, waits = Latencies(), Latencies()
    requests.add(250_000, 2_000)
    waits.add(700_000, 1_000)
    span = Span(jobs=1_000, seconds=2.0, cpu_s=0.5, requests=requests, waits=waits, stopped=False)
    figures = bench._figures(plan, span, stats(syncs=5), stats(syncs=105))
    figures |= bench._server_figures(span, Cpu(0.03, 0.01), 7)
    assert (figures["jobs_per_s"], figures["requests"], figures["latency_p50_us"]) == (500, 2_000, 250)
    assert (figures["submit_to_lease_p99_us"], figures["client_cpu_share"]) == (700, 0.25)
    assert (figures["syncs"], figures["jobs_per_sync"]) == (100, 10.0)
    assert (figures["server_cpu_us_per_job"], figures["server_cpu_share"]) == (40.0, 0.02)
    assert (figures["server_user_us_per_job"], figures["server_system_us_per_job"]) == (30.0, 10.0)


def test_a_client_that_uses_its_core_up_is_said(shell, monkeypatch):
    honest = bench._figures
    monkeypatch.setattr(bench, "_figures", lambda *all_: honest(*all_) | {"client_cpu_share": 0.91})
    figures = json.loads(shell("submit", *SIZES, "-o", "json")[1])
    assert any("the client used its core up" in remark for remark in figures["remarks"])


def test_progress_is_for_terminals_alone(shell, monkeypatch):
    assert "\r" not in shell("submit", *SIZES)[2]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert "20 of 20 jobs" in shell("submit", *SIZES)[2]


@pytest.mark.parametrize("kind", ["submit", "lease", "mixed"])
def test_each_has_help_with_examples(kind, capsys):
    assert run(["bench", kind, "--help"]) == 0
    assert f"  jqctl bench {kind}" in capsys.readouterr().out


def test_a_process_that_ends_meanwhile_is_said(shell, monkeypatch):
    answers = iter([Cpu(1, 1), Cpu(1, 1)])

    def cpu(pid: int) -> Cpu:
        if (now := next(answers, None)) is None:
            raise process.Unknown(f"pid = {pid}: gone")
        return now

    monkeypatch.setattr(process, "cpu", cpu)
    code, out, err = shell("submit", *SIZES, "--pid", "7")
    assert (code, out) == (3, "")
    assert err.startswith("jqctl: connection_lost: pid = 7: gone; 20 jobs were purged")
