"""Verbs about queues; a question is asked on a real terminal."""

import subprocess
import sys
from typing import Any

import pytest

from jqctl.group import STATES
from jqd.core.commands import (
    GetQueue,
    JobFilter,
    Pause,
    Purge,
    QueueChanged,
    QueueDetails,
    QueueInfo,
    Resume,
    SetQueue,
    Swept,
)
from jqd.core.model import RetryPolicy
from jqd.errors import QueueNotFound
from tests.support.fakeserver import Asked
from tests.support.terminal import Terminal


def info(name: str) -> QueueInfo:
    counts: dict[str, Any] = {state: number for number, state in enumerate(STATES, 1)}
    return QueueInfo(queue=name, **counts)


def purging(counts: dict[bool, int]) -> Any:
    """Answer `purge` with a count for a dry run and one for the real thing, in pages of 1,000."""

    def answer(asked: Asked) -> Swept:
        command: Any = asked.command
        left = counts[command.dry_run] - command.cursor
        more = left > 1_000
        return Swept(count=min(left, 1_000), cursor=command.cursor + 1_000 if more else None, results=[])

    return answer


def purges(shell: Any) -> list[tuple[bool, int]]:
    return [(asked.command.dry_run, asked.command.cursor) for asked in shell.server.asked]


# --- show -------------------------------------------------------------------------------------


def details(name: str) -> QueueDetails:
    return QueueDetails(
        info=info(name),
        lease_ms=30_000,
        max_retries=3,
        max_crashes=5,
        retry=RetryPolicy(kind="fixed", base_ms=5_000),
        retention_ms=3_600_000,
        dead_retention_ms=60_000,
        length_max=7,
        waits=[(1_024, 3)],
        runs=[],
    )


def test_one_queue_is_shown_with_its_counts_and_what_holds_in_it(shell):
    shell.server.answers["queue"] = details("c")
    (shown,) = shell.json("queue", "show", "c")
    assert shell.said == GetQueue(queue="c")
    assert shown == {
        "queue": "c",
        "memory_bytes": 0,
        **{state: number for number, state in enumerate(STATES, 1)},
        "paused": False,
        "lease_ms": 30_000,
        "max_retries": 3,
        "max_crashes": 5,
        "retry": {"kind": "fixed", "base_ms": 5_000},
        "retention_ms": 3_600_000,
        "dead_retention_ms": 60_000,
        "length_max": 7,
        "waits": [[1_024, 3]],
        "runs": [],
    }
    lines = [line.split() for line in shell("queue", "show", "c")[1].splitlines()]
    assert lines[0] == ["queue", "c"] and ["delayed", "1"] in lines and ["waits[0]", "[1024,3]"] in lines
    assert shell("queue", "-o", "id", "show", "c")[1] == "c\n"


def test_a_queue_that_is_not_there_is_refused(shell):
    shell.server.answers["queue"] = QueueNotFound("queue = 'bb': it has no jobs and no settings")
    code, out, err = shell("queue", "show", "bb")
    assert (code, out, err) == (
        1,
        "",
        "jqctl: queue_not_found: queue = 'bb': it has no jobs and no settings\n",
    )


def test_a_queue_is_set(shell):
    shell.server.answers["set_queue"] = QueueChanged(queue="q", paused=False)
    shown = shell.json(
        "queue", "set", "q", "--lease", "5m", "--max-retries", "1", "--max-crashes", "0", "--retry", "fixed,5s",
        "--retention", "1d", "--dead-retention", "60", "--length-max", "0", "--reset",
    )  # fmt: skip
    assert shown == [{"queue": "q", "paused": False}]
    assert shell.said == SetQueue(
        queue="q",
        lease_ms=300_000,
        max_retries=1,
        max_crashes=0,
        retry=RetryPolicy(kind="fixed", base_ms=5_000),
        retention_ms=86_400_000,
        dead_retention_ms=60_000,
        length_max=0,
        reset=True,
    )
    assert shell("queue", "set", "q", "-o", "id") == (0, "q\n", "")
    assert shell.said == SetQueue(queue="q")


@pytest.mark.parametrize(("verb", "command"), [("pause", Pause(queue="q")), ("resume", Resume(queue="q"))])
def test_a_queue_is_paused_and_resumed(shell, verb, command):
    shell.server.answers[verb] = QueueChanged(queue="q", paused=verb == "pause")
    assert shell.json("queue", verb, "q") == [{"queue": "q", "paused": verb == "pause"}]
    assert shell.said == command


# --- purge without a terminal -----------------------------------------------------------------


def test_a_queue_is_purged_page_by_page(shell):
    shell.server.answers["purge"] = purging({False: 2_005})
    assert shell.json("queue", "purge", "q", "--yes") == [{"count": 2_005, "dry_run": False}]
    assert purges(shell) == [(False, 0), (False, 1_000), (False, 2_000)]
    assert shell.server.asked[0].command == Purge(filter=JobFilter(queue="q"))
    assert shell("queue", "purge", "q", "--state", "dead", "--yes", "-o", "id") == (0, "", "")
    assert shell.server.asked[3].command == Purge(filter=JobFilter(queue="q", state="dead"))


def test_a_dry_run_only_counts(shell):
    shell.server.answers["purge"] = purging({True: 1_001})
    assert shell.json("queue", "purge", "q", "--dry-run") == [{"count": 1_001, "dry_run": True}]
    assert shell.json("queue", "purge", "q", "--dry-run", "--yes") == [{"count": 1_001, "dry_run": True}]
    assert {dry_run for dry_run, _ in purges(shell)} == {True}


def test_where_nobody_can_be_asked_yes_is_required(shell):
    code, out, err = shell("queue", "purge", "q")
    assert (code, out) == (2, "") and "--yes purges, --dry-run only counts" in err
    assert shell.server.asked == []


def test_purge_of_a_queue_that_is_not_there(shell):
    shell.server.answers["purge"] = QueueNotFound("queue = 'q': it has no jobs")
    assert shell("queue", "purge", "q", "--yes")[::2] == (
        1,
        "jqctl: queue_not_found: queue = 'q': it has no jobs\n",
    )


@pytest.mark.parametrize(
    "args", [["queue", "show"], ["queue", "purge"], ["queue", "purge", "q", "--state", "done"]]
)
def test_wrong_usage_of_queue_asks_nothing(shell, args):
    assert shell(*args)[0] == 2
    assert shell.server.asked == []


# --- purge on a terminal ----------------------------------------------------------------------

QUESTION = "Remove 1005 delayed and ready jobs of queue q without a trace? [y/N] "


def purge_on_a_terminal(shell: Any, *args: str, **streams: Any) -> Terminal:
    words = [sys.executable, "-m", "jqctl", "--url", shell.server.url, "queue", "purge", "q", *args]
    return Terminal(words, columns=200, **streams)


@pytest.mark.parametrize("answer", ["y\n", "YES\n"])
def test_yes_purges(shell, answer):
    shell.server.answers["purge"] = purging({True: 1_005, False: 1_006})
    with purge_on_a_terminal(shell, "-o", "json", stdout=subprocess.PIPE) as terminal:
        terminal.read_until(QUESTION)
        assert purges(shell) == [(True, 0), (True, 1_000)]
        terminal.type(answer)
        assert terminal.end() == 0
        # A question is no output: a program that reads it gets the count alone.
        assert terminal.process.stdout.read() == b'{"count":1006,"dry_run":false}\n'
    assert purges(shell)[2:] == [(False, 0), (False, 1_000)]


@pytest.mark.parametrize("answer", ["n\n", "\n", "maybe\n", "\x04"])  # \x04 is Ctrl-D: the input ends
def test_anything_else_does_not(shell, answer):
    shell.server.answers["purge"] = purging({True: 1_005})
    with purge_on_a_terminal(shell) as terminal:
        terminal.read_until(QUESTION)
        terminal.type(answer)
        assert terminal.end() == 1
        assert terminal.shown.endswith("\r\nnothing was changed\r\n")
    assert len(purges(shell)) == 2


def test_ctrl_c_at_the_question_is_an_interrupt(shell):
    shell.server.answers["purge"] = purging({True: 1_005})
    with purge_on_a_terminal(shell) as terminal:
        terminal.read_until(QUESTION)
        terminal.wait_until_it_reads()
        terminal.interrupt()
        assert terminal.end() == 130
    assert len(purges(shell)) == 2


def test_nobody_is_asked_about_nothing(shell):
    shell.server.answers["purge"] = purging({True: 0})
    with purge_on_a_terminal(shell, "-o", "json") as terminal:
        assert terminal.end() == 0
        assert terminal.shown == '{"count":0,"dry_run":false}\r\n'
    assert purges(shell) == [(True, 0)]


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_a_question_that_would_reach_nobody_is_not_asked(shell, stream):
    with purge_on_a_terminal(shell, **{stream: subprocess.DEVNULL}) as terminal:
        assert terminal.end() == 2
    assert purges(shell) == []
