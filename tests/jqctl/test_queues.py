"""Verbs about queues; a question is asked on a real terminal."""

import itertools
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from jqctl.group import STATES
from jqd.core.commands import JobFilter, Purge, QueueInfo, QueueList, Swept
from jqd.errors import QueueNotFound
from tests.support.fakeserver import Asked
from tests.support.terminal import Terminal


def info(name: str) -> QueueInfo:
    counts = {state: number for number, state in enumerate(STATES, 1)}
    return QueueInfo(queue=name, **counts)


def paged(*pages: Sequence[str]) -> Any:
    """Answer `queues` with these names, page by page; the cursor is the last name."""
    following = {"": pages[0], **{page[-1]: after for page, after in itertools.pairwise(pages)}}

    def answer(asked: Asked) -> QueueList:
        names = following[asked.command.cursor]  # type: ignore[attr-defined]
        return QueueList(
            queues=[info(name) for name in names], cursor=None if names is pages[-1] else names[-1]
        )

    return answer


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


def test_one_queue_is_shown_with_its_counts(shell):
    shell.server.answers["queues"] = paged(["a", "b"], ["c", "d"], ["e"])
    (shown,) = shell.json("queue", "show", "c")
    assert shown == {"queue": "c", **{state: number for number, state in enumerate(STATES, 1)}}
    out = shell("queue", "show", "b")[1]
    assert [line.split() for line in out.splitlines()][:2] == [["queue", "b"], ["delayed", "1"]]
    assert shell("queue", "-o", "id", "show", "b")[1] == "b\n"


@pytest.mark.parametrize(("name", "requests"), [("bb", 2), ("z", 3)])
def test_a_queue_that_is_not_there_is_refused(shell, name, requests):
    shell.server.answers["queues"] = paged(["a", "b"], ["c", "d"], ["e"])
    assert shell("queue", "show", name) == (
        1,
        "",
        f"jqctl: queue_not_found: queue = '{name}': it has no jobs\n",
    )
    assert len(shell.server.asked) == requests  # no farther than where it would stand


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
