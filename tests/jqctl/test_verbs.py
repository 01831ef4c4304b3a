"""The command line against a server that says what the test tells it to."""

import base64
import gc
import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, cast

import click
import msgspec
import pytest

from jqctl import __main__ as program_module
from jqctl import connect
from jqctl.__main__ import run
from jqctl.group import COMMON, STATES
from jqctl.verbs import cli
from jqd.core.commands import (
    Ack,
    Cancel,
    EndedJob,
    Extend,
    Extended,
    Fail,
    JobFilter,
    JobInfo,
    JobList,
    Lease,
    Leased,
    LeasedJob,
    ListJobs,
    Pong,
    Purge,
    QueueInfo,
    QueueList,
    Release,
    Requeue,
    Submit,
    Submitted,
    SubmittedMany,
    Swept,
    Update,
    Updated,
    Verdicts,
    Wait,
    Waited,
    WorkerList,
)
from jqd.core.model import RetryPolicy
from jqd.errors import (
    EXIT_IO_ERROR,
    Busy,
    InvalidArgument,
    JobNotFound,
    PayloadTooLarge,
    QueueNotFound,
    StorageFull,
)
from tests.support.fakeserver import Asked, FakeServer
from tests.support.shell import Shell

TOKEN = (1 << 62) + 1  # more than a float, and than JavaScript, can count
OK_4 = Verdicts(results=[(4, 1, "ok")])


def leased(*jobs: LeasedJob) -> Leased:
    return Leased(token=TOKEN, lease_ms_left=30_000, wall_ms=5, jobs=list(jobs))


def job(job_id: int, **more: Any) -> JobInfo:
    fields = {"queue": "q", "state": "ready", "attempt": 0, "payload_bytes": 0}
    return JobInfo(job_id=job_id, created_wall_ms=1_000, changed_wall_ms=2_000, **{**fields, **more})


# --- submit -----------------------------------------------------------------------------------


def test_submit_says_every_option_and_prints_the_id(shell):
    shell.server.answers["submit"] = Submitted(job_id=17)
    code, out, _ = shell(
        "submit", "emails", "hé", "--priority", "-5", "--delay", "1h30m", "--max-retries", "1", "--max-crashes", "2",
        "--retry", "list,1s,2m", "--lease", "60", "--task", "t", "--at-most-once", "--meta", "a=b=c", "--meta", "d=",
    )  # fmt: skip
    assert (code, out) == (0, "17\n")
    assert shell.said == Submit(
        queue="emails", payload="hé".encode(), encoding="text", priority=-5, delay_ms=5_400_000, max_retries=1,
        max_crashes=2, retry=RetryPolicy(kind="list", delays_ms=(1_000, 120_000)), lease_ms=60_000, task="t", delivery="at_most_once", metadata={"a": "b=c", "d": ""},
    )  # fmt: skip
    shell("submit", "emails", "x", "--run-at", "1970-01-01T00:00:01Z", "--expires-at", "1970-01-01T00:00:02Z")
    assert (shell.said.run_at_ms, shell.said.expires_at_ms) == (1_000, 2_000)
    shell("submit", "emails", "x", "--expires", "5m")
    assert shell.said.expires_ms == 300_000
    assert shell.json("submit", "emails") == [{"job_id": "17", "existing": False}]
    assert shell.said == Submit(queue="emails")


def test_submit_says_the_keys_and_that_a_job_was_there_before(shell):
    shell.server.answers["submit"] = Submitted(job_id=17, existing=True)
    code, out, err = shell(
        "submit", "q", "--tenant", "acme", "--group", "g", "--dedupe-key", "d", "--dedupe", "debounce", "--dedupe-until", "started", "--dedupe-ttl", "5s",
        "--idempotency-key", "i", "--idempotency-ttl", "2d",
    )  # fmt: skip
    assert (code, out, err) == (0, "17\n", "it was there before\n")
    assert shell.said == Submit(
        queue="q", tenant="acme", group="g", dedupe_key="d", dedupe="debounce", dedupe_until="started", dedupe_ttl_ms=5_000,
        idempotency_key="i", idempotency_ttl_ms=172_800_000,
    )  # fmt: skip
    assert shell.json("submit", "q") == [{"job_id": "17", "existing": True}]


def test_submit_of_a_dash_sends_stdin_as_it_is(shell, monkeypatch, tmp_path):
    shell.server.answers["submit"] = Submitted(job_id=1)
    (tmp_path / "in").write_bytes(b"\0\xff")
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert shell("submit", "q", "-")[0] == 0
    assert (shell.said.payload, shell.said.encoding) == (b"\0\xff", "raw")


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (["{bad"], "expecting property name enclosed in double quotes at column 2"),
        (['{"a": '], "it ends too early, at column 7"),
        (["\udcff"], "no UTF-8 at byte 1"),
        ([], "it is empty"),
    ],
)
def test_a_payload_that_is_not_the_json_it_is_said_to_be_goes_nowhere(shell, payload, fault):
    code, out, err = shell("submit", "q", *payload, "--encoding", "json")
    assert (code, out) == (2, "") and f"PAYLOAD is not JSON: {fault}\n" in err
    assert shell.server.asked == []


def test_json_from_stdin_is_checked_too(shell, monkeypatch, tmp_path):
    shell.server.answers["submit"] = Submitted(job_id=1)
    for text, code in (('{"a": 1e999}\n', 0), ('{"a": 1\n', 2)):
        (tmp_path / "in").write_text(text)
        with (tmp_path / "in").open() as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            assert shell("submit", "q", "-", "--encoding", "json")[0] == code
    (asked,) = shell.server.asked
    assert (asked.command.payload, asked.command.encoding) == (b'{"a": 1e999}\n', "json")


def counting(asked: Asked) -> SubmittedMany:
    """Answer a bulk submit with ids from 1, a range for each group."""
    jobs, first = [], 1
    for group in asked.command.groups:  # type: ignore[attr-defined]
        jobs.append((first, len(group.payloads), False))
        first += len(group.payloads)
    return SubmittedMany(jobs=jobs)


def test_a_file_goes_in_as_ranges(shell, tmp_path):
    shell.server.answers["submit_many"] = counting
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"payload": "a"}\n{"payload": "b"}\n\n{"payload": {"n": 1}, "max-retries": 9}\n')
    assert shell.json("submit", "q", "--file", str(path), "--priority", "3") == [
        {"job_id": "1", "count": 2, "existing": False},
        {"job_id": "3", "count": 1, "existing": False},
    ]
    first, second = shell.said.groups
    assert (first.payloads, first.encoding, first.priority) == ([b"a", b"b"], "text", 3)
    assert (second.payloads, second.encoding, second.max_retries) == ([b'{"n": 1}'], "json", 9)
    assert shell("submit", "q", "--file", str(path), "-o", "id")[1] == "1\n2\n3\n"
    out = shell("submit", "q", "--file", str(path))[1]
    assert [line.split() for line in out.splitlines()] == [["JOB_ID", "COUNT"], ["1", "2"], ["3", "1"]]
    path.write_text('{"payload": "a"}\n' * 20_001)
    out = shell("submit", "q", "--file", str(path))[1]
    assert [line.split()[-1] for line in out.splitlines()] == ["COUNT", "10000", "10000", "1"]


def test_a_file_is_taken_from_where_it_stands(shell, tmp_path):
    shell.server.answers["submit_many"] = counting
    path = tmp_path / "jobs.jsonl"
    path.write_text('a heading\n{"payload": "a"}\n')
    words = shlex.join(
        [sys.executable, "-m", "jqctl", "--url", shell.server.url, "submit", "q", "--file", "-"]
    )
    done = subprocess.run(
        ["sh", "-c", f"{{ read -r heading; {words}; }} < {path}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [group.payloads for group in shell.said.groups] == [[b"a"]]


def test_a_bad_line_is_named_and_nothing_goes_in(shell, tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"payload": "a"}\n' * 10_001 + '{"prio": 1}\n')
    code, out, err = shell("submit", "q", "--file", str(path))
    assert (code, out) == (2, "") and "line 10002: 'prio': no such option" in err
    assert shell.server.asked == []


def test_a_file_that_fails_halfway_says_which_lines_are_in(shell, tmp_path):
    shell.server.answers["submit_many"] = lambda asked: (
        Busy("full") if len(shell.server.asked) > 1 else counting(asked)
    )
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"payload": "a"}\n' * 20_005)
    code, out, err = shell("submit", "q", "--file", str(path), "-o", "json")
    assert code == 1 and json.loads(out)["count"] == 10_000
    assert "lines 10001 to 20000: none of them is in" in err
    assert "lines 1 to 10000 are in" in err and "jqctl: busy: full" in err


# --- worker -----------------------------------------------------------------------------------


def test_lease_prints_what_ack_wants(shell):
    shell.server.answers["lease"] = leased(
        LeasedJob(job_id=4, queue="q", attempt=2, payload=b"hi", encoding="text")
    )
    code, out, _ = shell("lease", "q", "r", "--count", "2", "--wait", "1s", "--lease", "1m")
    assert code == 0 and out.splitlines()[1].split() == ["4", str(TOKEN), "2", "hi", "q", "-"]
    assert shell.said == Lease(queues=["q", "r"], count=2, wait_ms=1_000, lease_ms=60_000)
    assert shell("-o", "id", "lease", "q")[1] == f"4 {TOKEN}\n"
    (shown,) = shell.json("lease", "q")
    assert (shown["job_id"], shown["token"], shown["payload"]) == ("4", str(TOKEN), "hi")


def test_queues_may_have_weights(shell):
    shell.server.answers["lease"] = leased()
    shell("lease", "urgent=3", "mail=1")
    assert shell.said == Lease(queues=["urgent", "mail"], weights=[3, 1])


@pytest.mark.parametrize(
    "weight", ["0", "1001", "-1", "x", "9" * 5_000]
)  # int() reads no more than 4,300 digits
def test_a_weight_out_of_range_is_wrong_usage(shell, weight):
    code, _, complaint = shell("lease", f"urgent={weight}")
    assert code == 2
    assert "give every queue a weight of 1 to 1000" in complaint


def test_nothing_to_lease_is_no_error(shell):
    shell.server.answers["lease"] = Leased(token=0, lease_ms_left=0, wall_ms=0, jobs=[])
    assert shell("lease", "q") == (0, "", "nothing to lease\n")
    assert shell("lease", "q", "-o", "json") == (0, "", "")


@pytest.mark.parametrize(
    ("args", "command"),
    [
        (["ack", "--result", "r"], Ack(items=[(TOKEN, [(4, 1)], b"r")], encoding="text")),
        (["ack", "--error", "e"], Ack(items=[(TOKEN, [(4, 1)], None)], result_error="e")),
        (["fail"], Fail(items=[(TOKEN, [(4, 1)])])),
        (
            ["fail", "--error", "e", "--retry-in", "5m"],
            Fail(items=[(TOKEN, [(4, 1)])], error="e", retry_in_ms=300_000),
        ),
        (
            ["fail", "--retry", "fixed,5s"],
            Fail(items=[(TOKEN, [(4, 1)])], retry=RetryPolicy(kind="fixed", base_ms=5_000)),
        ),
        (["fail", "--dead"], Fail(items=[(TOKEN, [(4, 1)])], dead=True)),
        (["release", "--delay", "1s"], Release(items=[(TOKEN, [(4, 1)])], delay_ms=1_000)),
    ],
)
def test_held_jobs_are_spent(shell, args, command):
    shell.server.answers[args[0]] = OK_4
    assert shell.json(args[0], "4", str(TOKEN), *args[1:]) == [{"job_id": "4", "code": "ok"}]
    assert shell.said == command


def test_extend_says_how_long_it_holds(shell):
    shell.server.answers["extend"] = Extended(results=[(4, 1, "ok")], lease_ms_left=600_000)
    shown = shell.json("extend", "4", "9", "--lease", "10m")
    assert shown == [{"job_id": "4", "code": "ok", "lease_ms_left": 600_000}]
    assert shell.said == Extend(items=[(9, [(4, 1)])], lease_ms=600_000)


def test_a_lost_lease_is_refused(shell):
    shell.server.answers["ack"] = Verdicts(results=[(4, 1, "lease_lost")])
    code, out, err = shell("ack", "4", "9")
    assert code == 1 and "lease_lost" in out and err.startswith("jqctl: lease_lost: ack of job 4: ")


# --- management -------------------------------------------------------------------------------


def test_several_ids_have_a_verdict_each(shell):
    shell.server.answers["cancel"] = Swept(
        count=2, cursor=None, results=[(4, 2, "ok"), (9, 1, "wrong_state")]
    )
    code, out, err = shell("cancel", "4", "5", "9", "-o", "id")
    assert (code, out) == (1, "4\n5\n") and err.startswith("jqctl: wrong_state: cancel of job 9")
    assert shell.said == Cancel(ids=[(4, 2), (9, 1)])


def test_a_queue_is_swept_page_by_page(shell):
    pages = iter([Swept(count=1_000, cursor=77, results=[]), Swept(count=5, cursor=None, results=[])])
    shell.server.answers["requeue"] = lambda _: next(pages)
    assert shell.json("requeue", "--queue", "q", "--dry-run") == [{"count": 1_005, "dry_run": True}]
    assert [asked.command for asked in shell.server.asked] == [
        Requeue(filter=JobFilter(queue="q"), cursor=cursor, dry_run=True) for cursor in (0, 77)
    ]


def test_update_says_what_is_to_change_and_prints_the_state(shell):
    shell.server.answers["update"] = Updated(job_id=4, state="delayed")
    code, out, _ = shell(
        "update", "4", "--priority", "-2", "--delay", "5m", "--payload", "[1]", "--encoding", "json", "--meta", "a=b"
    )  # fmt: skip
    assert (code, out) == (0, "4  delayed\n")
    assert shell.said == Update(
        job_id=4, priority=-2, delay_ms=300_000, payload=b"[1]", encoding="json", metadata={"a": "b"}
    )
    assert shell.json("update", "4", "--run-at", "1970-01-01T00:00:01Z") == [
        {"job_id": "4", "state": "delayed"}
    ]
    assert shell.said == Update(job_id=4, run_at_ms=1_000)


def test_cancel_of_running_jobs(shell):
    shell.server.answers["cancel"] = Swept(count=1, cursor=None, results=[(4, 1, "ok")], marked=1)
    assert shell("cancel", "4", "--running")[0] == 0
    assert shell.said == Cancel(ids=[(4, 1)], running=True)
    shell.server.answers["cancel"] = Swept(count=1, cursor=None, results=[], marked=1)
    shell("cancel", "--state", "leased", "--running")
    assert shell.said == Cancel(filter=JobFilter(state="leased"), running=True)


def test_cancel_by_queue_and_state(shell):
    shell.server.answers["cancel"] = Swept(count=3, cursor=None, results=[])
    out = shell("cancel", "--queue", "q", "--state", "delayed")[1]
    assert out == "3 jobs cancelled\n"
    assert shell.said == Cancel(filter=JobFilter(queue="q", state="delayed"))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["jobs"], ListJobs(filter=JobFilter(where="age > 1h"))),
        (["cancel", "--queue", "q"], Cancel(filter=JobFilter(queue="q", where="age > 1h"))),
        (["requeue"], Requeue(filter=JobFilter(where="age > 1h"))),
        (["purge", "--yes"], Purge(filter=JobFilter(where="age > 1h"))),
        (["purge", "--dry-run"], Purge(filter=JobFilter(where="age > 1h"), dry_run=True)),
        (["queue", "purge", "q", "--yes"], Purge(filter=JobFilter(queue="q", where="age > 1h"))),
        (["dead", "list"], ListJobs(filter=JobFilter(state="dead", where="age > 1h"))),
        (["dead", "requeue"], Requeue(filter=JobFilter(state="dead", where="age > 1h"))),
        (["dead", "purge", "--yes"], Purge(filter=JobFilter(state="dead", where="age > 1h"))),
    ],
)
def test_a_filter_says_which_jobs_are_meant(shell, words, command):
    shell.server.answers[command.verb] = (
        JobList(jobs=[], cursor=None) if command.verb == "list" else Swept(count=3, cursor=None, results=[])
    )
    assert shell(*words, "--filter", "age > 1h")[0] == 0
    assert shell.said == command


def test_a_filter_with_a_mistake_is_refused_with_its_position(shell):
    shell.server.answers["list"] = InvalidArgument("filter.where, character 4: expected a field, found 'x'")
    code, out, err = shell("jobs", "--filter", "no x")
    assert (code, out) == (2, "")
    assert err.endswith("\nError: --filter, character 4: expected a field, found 'x'\n")


def test_the_dead_are_listed_with_why_they_died(shell):
    shell.server.answers["list"] = JobList(
        jobs=[job(7, state="dead", reason="retries", attempt=4, error="SMTP 451")], cursor=None
    )
    code, out, _ = shell("dead", "list", "--queue", "q")
    assert code == 0 and shell.said == ListJobs(filter=JobFilter(queue="q", state="dead"))
    head, line = out.splitlines()
    assert head.split() == ["JOB_ID", "QUEUE", "REASON", "ATTEMPT", "CHANGED_AT", "ERROR"]
    assert line.split() == ["7", "q", "retries", "4", "1970-01-01T00:00:02.000Z", "SMTP", "451"]


def test_all_the_dead_are_meant_only_where_that_is_said(shell):
    shell.server.answers["requeue"] = Swept(count=3, cursor=None, results=[])
    assert shell.json("dead", "requeue", "--all") == [{"count": 3, "dry_run": False}]
    assert shell.said == Requeue(filter=JobFilter(state="dead"))
    shell.server.answers["requeue"] = Swept(count=1, cursor=None, results=[(4, 1, "ok")])
    assert shell("dead", "requeue", "4", "-o", "id") == (0, "4\n", "")
    assert shell.said == Requeue(ids=[(4, 1)])


def test_purge_of_ids_asks_nobody(shell):
    shell.server.answers["purge"] = Swept(
        count=2, cursor=None, results=[(4, 2, "ok"), (9, 1, "job_not_found")]
    )
    code, out, err = shell("purge", "4", "5", "9", "-o", "id")
    assert (code, out) == (1, "4\n5\n") and err.startswith("jqctl: job_not_found: purge of job 9")
    assert shell.said == Purge(ids=[(4, 2), (9, 1)])
    shell("purge", "4", "--dry-run")
    assert shell.said == Purge(ids=[(4, 1)], dry_run=True)


def test_a_sweep_that_fails_halfway_says_how_far_it_came(shell):
    shell.server.answers["cancel"] = lambda asked: (
        Busy("full") if asked.command.cursor else Swept(count=1_000, cursor=77, results=[])
    )
    code, out, err = shell("cancel", "--queue", "q")
    assert (code, out) == (1, "")
    assert err == "cancel: 1000 jobs were changed before this\njqctl: busy: full\n"
    assert shell("cancel", "--queue", "q", "--dry-run")[2] == "jqctl: busy: full\n"


@pytest.mark.parametrize("verb", ["cancel", "requeue"])
def test_ids_are_printed_where_ids_were_given(shell, verb):
    shell.server.answers[verb] = Swept(count=3, cursor=None, results=[])
    assert shell(verb, "--queue", "q", "-o", "id") == (0, "", "")
    shell.server.answers[verb] = Swept(count=2, cursor=None, results=[(4, 2, "ok")])
    assert shell(verb, "4", "5", "-o", "id") == (0, "4\n5\n", "")
    assert shell(verb, "4", "5", "--dry-run", "-o", "id") == (0, "4\n5\n", "")


# --- reading ----------------------------------------------------------------------------------


def test_job_shows_dates_ids_and_payload_for_programs(shell):
    shell.server.answers["get"] = job(
        1 << 59, payload=b'{"a":1}', encoding="json", result=b"\xff", run_at_ms=0
    )
    (shown,) = shell.json("job", "7")
    assert shown["job_id"] == str(1 << 59)
    assert (shown["created_wall_ms"], shown["created_at"]) == (1_000, "1970-01-01T00:00:01.000Z")
    assert (shown["run_at_ms"], shown["run_at"]) == (0, "1970-01-01T00:00:00.000Z")
    assert shown["payload"] == {"a": 1} and base64.b64decode(shown["result_base64"]) == b"\xff"
    assert "lease_ms_left" not in shown


def test_what_a_typed_task_takes_and_returns_is_shown_to_people(shell):
    took, returned = msgspec.msgpack.encode({"to": "ada"}), msgspec.msgpack.encode([1, b"\x1b"])
    fields: Any = {"result": returned, "result_encoding": "msgpack"}
    shell.server.answers["get"] = job(7, payload=took, encoding="msgpack", **fields)
    lines = dict(line.split() for line in shell("job", "7")[1].splitlines())
    assert (lines["payload"], lines["result"]) == ('{"to":"ada"}', r'[1,"\u001b"]')
    shell.server.answers["wait"] = Waited(jobs=[ended(7, **fields)], pending=0)
    assert shell("wait", "7")[1] == "7  done  " + r'[1,"\u001b"]  -' + "\n"
    (shown,) = shell.json("wait", "7")
    assert shown["result"] == [1, "\x1b"] and base64.b64decode(shown["result_base64"]) == returned
    held = LeasedJob(job_id=4, queue="q", attempt=1, payload=took, encoding="msgpack")
    shell.server.answers["lease"] = leased(held)
    assert '{"to":"ada"}' in shell("lease", "q")[1].split()


def test_jobs_are_listed_through_all_pages_or_up_to_a_limit(shell):
    def page(asked: Asked) -> JobList:
        assert isinstance(asked.command, ListJobs)
        first = asked.command.cursor or 1
        last = min(first + asked.command.limit, 1_500)
        return JobList(jobs=[job(n) for n in range(first, last)], cursor=last if last < 1_500 else None)

    shell.server.answers["list"] = page
    assert shell("jobs", "--limit", "0", "-o", "id")[1].split() == [str(n) for n in range(1, 1_500)]
    assert len(shell("jobs", "--limit", "1200", "-o", "id")[1].split()) == 1_200
    code, out, err = shell("jobs", "--queue", "q", "--state", "dead", "--limit", "2")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["JOB_ID", "1", "2"]
    assert "--limit 0 shows all" in err
    assert shell.said == ListJobs(filter=JobFilter(queue="q", state="dead"), limit=2)


def test_where_there_are_no_queues_and_no_workers_a_person_is_told(shell):
    shell.server.answers |= {
        "queues": QueueList(queues=[], cursor=None),
        "workers": WorkerList(workers=[], cursor=None),
    }
    assert shell("queues") == (0, "", "no queues: one is there from its first job on\n")
    assert shell("workers") == (0, "", "no worker is connected\n")
    for form in ("id", "json"):
        assert shell("queues", "-o", form) == shell("workers", "list", "-o", form) == (0, "", "")


def test_where_there_are_no_jobs_a_person_is_told(shell):
    shell.server.answers["list"] = JobList(jobs=[], cursor=None)
    assert shell("jobs", "--state", "dead") == (0, "", "no such jobs\n")
    assert shell("jobs", "-o", "id") == shell("jobs", "-o", "json") == (0, "", "")


def test_a_submit_can_name_what_happens_to_a_duplicate_and_the_delivery_in_other_words(shell):
    shell.server.answers["submit"] = Submitted(job_id=1)
    words = (
        "submit",
        "q",
        "p",
        "--dedupe-key",
        "k",
        "--on-duplicate",
        "reject",
        "--delivery",
        "at-most-once",
    )
    assert shell(*words)[0] == 0
    assert (shell.said.dedupe, shell.said.delivery) == ("reject", "at_most_once")
    code, _, err = shell("submit", "q", "--at-most-once", "--delivery", "at-least-once")
    assert code == 2 and "give one of them" in err


def test_queues_ping_and_stats(shell):
    counts: dict[str, Any] = {
        "delayed": 1,
        "ready": 2,
        "leased": 3,
        "done": 4,
        "dead": 5,
        "cancelled": 6,
        "expired": 7,
    }
    shell.server.answers |= {
        "queues": QueueList(
            queues=[QueueInfo(queue="q", **counts, paused=True, ready_age_ms=9, memory_bytes=10)], cursor=None
        ),
        "ping": Pong(wall_ms=1, engine_ms=2),
    }
    assert shell.json("queues") == [
        {"queue": "q", **counts, "paused": True, "ready_age_ms": 9, "memory_bytes": 10}
    ]
    assert shell("queues")[1].splitlines()[1].split() == ["q", *map(str, range(1, 8)), "yes", "9"]
    (shown,) = shell.json("ping")
    assert shown["url"] == shell.server.url and shown["round_trip_ms"] > 0


# --- exit codes -------------------------------------------------------------------------------


def test_a_refusal_exits_1_with_its_code(shell):
    shell.server.answers |= {"get": JobNotFound("job_id = 7"), "list": QueueNotFound("queue = 'x\x1b[0m'")}
    assert shell("job", "7") == (1, "", "jqctl: job_not_found: job_id = 7\n")
    assert shell("jobs", "--queue", "x")[2] == "jqctl: queue_not_found: queue = 'x\\x1b[0m'\n"


def test_a_refusal_that_a_retry_can_help_says_when(shell):
    shell.server.answers["submit"] = StorageFull("7 bytes are free", retry_after_ms=1_500)
    assert shell("submit", "q", "x") == (
        1,
        "",
        "jqctl: storage_full: 7 bytes are free (try again in 1.5 s)\n",
    )


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["submit"],
        ["submit", "q", "--delay", "soon"],
        ["submit", "q", "--run-at", "2030-01-31T08:00:00"],
        ["submit", "q", "--meta", "novalue"],
        ["submit", "q", "x", "--file", "/dev/null"],
        ["ack", "0", "1"],
        ["ack", "1", "x"],
        ["ack", "1"],
        ["cancel"],
        ["cancel", "1", "--queue", "q"],
        ["requeue"],
        ["purge"],
        ["lease"],
        ["--url", "http://x", "ping"],
        ["--timeout", "x", "ping"],
        ["--timeout", "0", "ping"],
        ["ping", "--timeout", "0.1ms"],
        ["fail", "1", "2", "--dead", "--retry-in", "5m"],
        ["fail", "1", "2", "--dead", "--retry", "fixed"],
        ["fail", "1", "2", "--retry-in", "5m", "--retry", "fixed"],
        ["submit", "q", "--retry", "often"],
        ["update", "1", "--delay", "5m", "--run-at", "1970-01-01T00:00:01Z"],
        ["update", "1", "--payload", "{", "--encoding", "json"],
        ["update", "--priority", "1"],
        ["fail", "1", "2", "--dead", "--retry-in", "0"],
        ["ack", "1", "2", "--result", "r", "--error", "e"],
        ["ack", "1", "2", "--result", "", "--error", ""],
        ["-o", "xml", "ping"],
        ["cancel", "1", "--filter", "age > 1h"],
        ["submit", "a b", "--timeout", "1s"],
        ["lease", "a@b"],
        ["lease", "a@b=3"],
        ["lease", "=3"],
        ["work", "a@b", "--exec", "true"],
        ["work", "q", "a=3", "--exec", "true"],
        ["work", "q", "--exec", "true", "--lease", "40d"],
        ["queue", "pause", ""],
        ["submit", "a=3", "--timeout", "1s"],
        ["lease", "a=3", "b"],
        ["lease", "a=0"],
        ["lease", "a=1001"],
        ["lease", "a=x"],
        ["lease", "a=1", "a=2"],
        ["requeue", "1", "--queue", "q"],
        ["purge", "1", "--filter", "age > 1h"],
        ["purge", "--filter", "age > 1h"],
        ["dead"],
        ["dead", "requeue"],
        ["dead", "requeue", "1", "--all"],
        ["dead", "requeue", "--all", "--queue", "q"],
        ["dead", "purge", "--yes"],
        ["dead", "purge", "--all"],
    ],
)
def test_wrong_usage_exits_2_and_asks_nothing(shell, args):
    code, out, err = shell(*args)
    assert (code, out) == (2, "") and err
    assert shell.server.asked == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lease", "q", "--wait", "40s"], "--wait 40s: at most 30s"),
        (["submit", "q", "--priority", "40000"], "--priority 40000: at most 32767"),
        (["submit", "q", "--lease", "0"], "--lease 0s: at least 1s"),
        (["submit", "q", "--run-at", "1960-01-01T00:00:00Z"], "--run-at 1960-01-01T00:00:00.000Z: at least 1970-01-01T00:00:00.000Z"),
        (["submit", "q", "--retry", "fixed,400d"], "Invalid value for '--retry': policy = 'fixed,400d': base: at most 366d"),
        (["queue", "set", "q", "--length-max", "-1"], "--length-max -1: at least 0"),
        (["queue", "set", "q", "--dead-retention", "90d"], "--dead-retention 90d: at most 30d"),
        (["jobs", "--filter", ""], "--filter '': expected `str` of length >= 1"),
        (["extend", "1", "2", "--text", "x" * 300], f"--text '{'x' * 59}... (300 characters): expected `str` of length <= 256"),
        # Found when a request is to be made of it: a byte that is no UTF-8.
        (["submit", "q", "\udcff"], "payload = '\\udcff': no UTF-8: surrogates not allowed"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_wrong_usage_in_the_words_that_were_typed(shell, words, said):
    shell.server.answers["queue"] = QueueNotFound("queue = 'q'")
    code, out, err = shell(*words)
    assert (code, out) == (2, "") and err.startswith("Usage: jqctl ")
    assert err.endswith(f"\nError: {said}\n")


def test_what_only_the_daemon_can_know_is_wrong_usage_as_well(shell):
    shell.server.answers["submit"] = PayloadTooLarge("payload = 7 bytes: the limit is 5")
    code, _, err = shell("submit", "q", "x")
    assert code == 2 and err.endswith("Error: payload = 7 bytes: the limit is 5\n")


def test_a_queue_that_cannot_be_is_said_with_the_rule(shell):
    code, _, err = shell("work", "mail", "a@b", "--exec", "true")
    assert code == 2 and err.startswith("Usage: jqctl work ")
    assert "queue = 'a@b': a name must match [A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}\n" in err


def test_advice_of_the_shell_is_for_the_shell(shell):
    for option, said in (("--delay", "soon"), ("--run-at", "tomorrow"), ("--run-at", "2030-01-31T08:00")):
        code, _, err = shell("submit", "q", "x", option, said)
        assert code == 2 and said in err and "timedelta" not in err and "datetime" not in err


def test_sweep_is_counted_in_a_sentence(shell):
    shell.server.answers["cancel"] = Swept(count=1_200, cursor=None, results=[])
    assert shell("cancel", "--queue", "q", "--dry-run")[1] == (
        "1,200 jobs would be cancelled; nothing was changed\n"
    )
    assert shell.json("cancel", "--queue", "q") == [{"count": 1200, "dry_run": False}]
    assert shell("-o", "id", "cancel", "--queue", "q")[1] == ""
    shell.server.answers["requeue"] = Swept(count=1, cursor=None, results=[])
    assert shell("requeue", "--queue", "q")[1] == "1 job requeued\n"


@pytest.mark.parametrize(("words", "what"), [(["x", "2"], "a job id"), (["1", "x"], "a token")])
def test_what_is_no_number_is_said_in_words(shell, words, what):
    code, _, err = shell("ack", *words)
    assert code == 2 and f"'x': {what} is a number, as it was printed" in err


def test_nobody_there_exits_3(shell):
    code, _, err = shell("--url", "jqd://127.0.0.1:1", "ping")
    assert code == 3
    assert err == "jqctl: connection_lost: cannot reach jqd://127.0.0.1:1: Connection refused\n"


def test_a_host_that_is_not_found_is_said_without_a_number(shell, monkeypatch):
    def find(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", find)
    code, _, err = shell("--url", "jqd://nobody.invalid", "ping")
    assert code == 3
    assert err == "jqctl: connection_lost: cannot reach jqd://nobody.invalid: Name or service not known\n"


def test_a_server_of_another_protocol_exits_3(shell):
    shell.server.welcome = lambda: shell.server.connections[-1].write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    code, out, err = shell("ping")
    assert (code, out) == (3, "")
    assert err.startswith(f"jqctl: connection_lost: {shell.server.url} does not speak jqd: ")


def test_no_reply_in_time_exits_3_and_says_that_the_outcome_is_unknown(shell):
    code, _, err = shell("submit", "q", "x", "--timeout", "10ms")
    assert code == 3 and err.startswith("jqctl: request_timeout: ") and "outcome unknown" in err


# --- where the server is ----------------------------------------------------------------------


def test_the_first_default_that_connects_is_used(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("JQD_URL", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1_000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(connect, "SERVICE_SOCKET", tmp_path / "service.sock")
    monkeypatch.setattr(connect, "DEFAULT_URL", "jqd://127.0.0.1:1")
    assert run(["ping"]) == 3
    assert capsys.readouterr().err.endswith(
        "jqd://127.0.0.1:1: Connection refused (start a daemon with `jqd`, or say where it is with --url)\n"
    )
    (tmp_path / "jqd").mkdir()
    path = tmp_path / "jqd" / "jqd.sock"
    (tmp_path / "service.sock").touch()  # left over: nobody listens
    with FakeServer.thread(str(path)) as server:
        server.answers["ping"] = Pong(wall_ms=1, engine_ms=2)
        assert run(["ping", "-o", "id"]) == 0
        assert capsys.readouterr().out == f"unix://{path}\n"


def test_the_environment_says_where_and_an_option_says_better(shell, monkeypatch, capsys):
    shell.server.answers["ping"] = Pong(wall_ms=1, engine_ms=2)
    monkeypatch.setenv("JQD_URL", shell.server.url)
    assert run(["ping"]) == 0
    monkeypatch.setenv("JQD_URL", "jqd://127.0.0.1:1")
    assert run(["ping"]) == 3
    assert run(["ping", "--url", shell.server.url]) == 0
    assert run(["--url", shell.server.url, "ping"]) == 0


def test_an_address_that_is_none_is_said_with_where_it_was_found(shell, monkeypatch, capsys):
    shell.server.answers["ping"] = Pong(wall_ms=1, engine_ms=2)
    fault = "url = 'http://x\\x1b': a server is jqd://HOST:PORT or unix:///PATH\n"
    monkeypatch.setenv("JQD_URL", "http://x\x1b")
    assert run(["ping"]) == 2
    assert f"Error: Invalid value for $JQD_URL: {fault}" in capsys.readouterr().err
    for words in (["--url", shell.server.url, "ping"], ["ping", "--url", shell.server.url]):
        assert run(words) == 0
    for words in (["--url", "http://x\x1b", "ping"], ["ping", "--url", "http://x\x1b"]):
        assert run(words) == 2
        assert f"Error: Invalid value for '--url': {fault}" in capsys.readouterr().err


# --- the program ------------------------------------------------------------------------------


def spoken(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every verb as it is typed."""
    for name, command in group.commands.items():
        yield (*above, name)
        if isinstance(command, click.Group):
            yield from spoken(command, (*above, name))


@pytest.mark.parametrize("words", sorted(spoken(cli)), ids=" ".join)
def test_every_verb_has_help_and_an_example(words, capsys):
    assert run([*words, "--help"]) == 0
    assert f"  jqctl {' '.join(words)}" in capsys.readouterr().out.partition("Example")[2]


def command_of(words: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


@pytest.mark.parametrize(
    "words", sorted(words for words in spoken(cli) if words[0] not in ("completion", "wal")), ids=" ".join
)
def test_what_every_verb_takes_stands_last_in_its_help(words):
    assert {parameter.name for parameter in command_of(words).params[-3:]} == COMMON


@pytest.mark.parametrize("words", sorted(spoken(cli)), ids=" ".join)
def test_every_option_says_what_it_is(words):
    command = command_of(words)
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_what_surprises_stands_in_the_help(capsys):
    for name, words in (
        ("lease", "A lease lasts 30s unless --lease says otherwise"),
        ("submit", "without it the job has an empty payload"),
    ):
        assert run([name, "--help"]) == 0
        assert words in " ".join(capsys.readouterr().out.split())


# Each of these costs more than a tenth of what a whole command should; some verbs need one, none of the plain ones.
HEAVY = {
    "asyncio", "base64", "email", "http", "json", "logging", "multiprocessing", "pathlib", "random", "rich", "shutil",
    "ssl", "subprocess", "uvloop", "jqctl.bulk", "jqctl.completion", "jqd.client.aio", "jqd.client.link",
}  # fmt: skip
LOADED = """
import sys
before = set(sys.modules)
from jqctl.__main__ import main
try:
    main()
finally:
    print("loaded", *set(sys.modules) - before, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["ping"],
        ["ping", "-o", "json"],
        ["queues"],
        ["submit", "q", "x"],
        ["lease", "q"],
        ["ack", "4", "1"],
        ["cancel", "--queue", "q"],
    ],
    ids=" ".join,
)
def test_a_plain_verb_loads_nothing_heavy(shell, args):
    shell.server.answers |= {
        "ping": Pong(wall_ms=1, engine_ms=2),
        "queues": QueueList(
            queues=[QueueInfo(queue="q", **cast("Any", dict.fromkeys(STATES, 1)))], cursor=None
        ),
        "submit": Submitted(job_id=1),
        "lease": leased(LeasedJob(job_id=4, queue="q", attempt=2, payload=b"hi", encoding="text")),
        "ack": OK_4,
        "cancel": Swept(count=1, cursor=None, results=[]),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "--url", shell.server.url, *args], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "jqctl.verbs" in done.stderr.split()
    assert HEAVY & set(done.stderr.split()) == set()


def test_ctrl_c_while_it_loads_is_an_interrupt(monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program_module, "_load", interrupted)
    with pytest.raises(SystemExit) as ended:
        program_module.main()
    assert ended.value.code == 130
    gc.unfreeze()  # what main() froze for the end of its process


def test_a_reader_that_goes_away_is_no_error(shell):
    shell.server.answers["list"] = lambda _: JobList(jobs=[job(n) for n in range(1, 1_001)], cursor=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "jqctl", "--url", shell.server.url, "jobs", "--limit", "0", "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(30) == 141


def program(shell: Shell, *args: str, redirect: str) -> tuple[int, str]:
    """Run the program with its streams redirected by a shell. Returns exit code and stderr."""
    words = shlex.join([sys.executable, "-m", "jqctl", "--url", shell.server.url, *args])
    done = subprocess.run(["sh", "-c", f"{words} {redirect}"], stderr=subprocess.PIPE, text=True, timeout=30)
    return done.returncode, done.stderr


@pytest.mark.parametrize("args", [["queues"], ["queues", "-o", "json"], ["--help"], ["submit", "q"]])
def test_output_that_cannot_be_written_is_said_in_a_line(shell, args):
    shell.server.answers |= {
        "queues": QueueList(
            queues=[QueueInfo(queue="q", **cast("Any", dict.fromkeys(STATES, 1)))], cursor=None
        ),
        "submit": Submitted(job_id=1),
    }
    line = "jqctl: cannot write the output: No space left on device\n"
    assert program(shell, *args, redirect="> /dev/full") == (74, line)
    assert program(shell, *args, redirect="> /dev/full 2>&1") == (74, "")


def test_closed_streams_are_said_in_a_line(shell):
    assert program(shell, "queues", redirect=">&-") == (
        74,
        "jqctl: cannot write the output: stdout is closed\n",
    )
    assert program(shell, "queues", redirect=">&- 2>&-") == (74, "")
    assert program(shell, "submit", "q", "-", redirect="<&-") == (
        74,
        "jqctl: cannot read stdin: it is closed\n",
    )
    assert shell.server.asked == []


def test_exit_codes_stand_in_the_help(capsys):
    assert run(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.partition("Exit codes: ")[2].split())
    assert [code for code in (0, 1, 2, 3, EXIT_IO_ERROR) if f"{code} " in text] == [0, 1, 2, 3, 74]


# --- wait ---------------------------------------------------------------------------------------


def ended(job_id: int, state: Any = "done", **more: Any) -> EndedJob:
    return EndedJob(job_id=job_id, state=state, changed_wall_ms=1_000, **more)


def test_wait_prints_what_became_of_the_jobs(shell):
    shell.server.answers["wait"] = Waited(
        jobs=[ended(18), ended(17, result=b"res", result_encoding="text")], pending=0
    )
    assert shell("wait", "17", "18")[:2] == (0, "17  done  res  -\n18  done  -    -\n")
    assert shell.said == Wait(ids=[(17, 2)], wait_ms=30_000, all=True)
    code, out, _ = shell("wait", "17", "18", "--any", "--wait", "10s", "-o", "json")
    assert (code, [json.loads(line)["job_id"] for line in out.splitlines()]) == (0, ["17", "18"])
    assert (shell.said.all, 9_000 < shell.said.wait_ms <= 10_000) == (False, True)
    assert shell("wait", "17", "18", "-o", "id")[1] == "17\n18\n"


def test_the_exit_code_of_wait_says_how_it_ended(shell):
    shell.server.answers["wait"] = Waited(jobs=[ended(17, "dead", error="no")], pending=0)
    assert shell("wait", "17")[:2] == (1, "17  dead  -  no\n")
    shell.server.answers["wait"] = Waited(jobs=[], pending=0, gone=[(17, 1)])
    code, out, err = shell("wait", "17")
    assert (code, out) == (1, "")
    assert err.startswith("jqctl: job_not_found: wait of job 17: no such job")
    shell.server.answers["wait"] = Waited(jobs=[], pending=1)
    assert shell("wait", "17", "--wait", "0") == (
        4,
        "",
        "jqctl: wait_timeout: job 17 is not at its end after 0 s\n",
    )


def test_extend_says_progress(shell):
    shell.server.answers["extend"] = Extended(results=[(4, 1, "ok")], lease_ms_left=5)
    assert shell("extend", "4", str(TOKEN), "--progress", "40", "--text", "half")[0] == 0
    assert shell.said == Extend(items=[(TOKEN, [(4, 1)])], progress_percent=40, progress_text="half")
    assert shell("extend", "4", str(TOKEN), "--progress", "101")[0] == 2
    shell.server.answers["get"] = job(4, progress_percent=40, progress_text="half")
    assert "progress_percent  40\n" in shell("job", "4")[1]


def test_submit_says_how_long_its_result_is_kept(shell):
    shell.server.answers["submit"] = Submitted(job_id=17)
    shell("submit", "emails", "--result-ttl", "5m")
    assert shell.said.result_ttl_ms == 300_000
