"""Verbs about workers."""

from typing import Any

import pytest

from jqd.core.commands import ListWorkers, TellWorkers, WorkerInfo, WorkerList, WorkersTold
from jqd.errors import WorkerNotFound
from tests.support.fakeserver import Asked


def info(worker_id: str, **fields: Any) -> WorkerInfo:
    said: dict[str, Any] = {
        "worker": f"box:{worker_id}",
        "host": "box",
        "pid": 42,
        "version": "0.1.0",
        "queues": ["a", "b"],
        "concurrency": 10,
        "state": "running",
        "order": None,
        "leased": 4,
        "jobs": [(1 << 59, 3), (7, 1)],
        "since_wall_ms": 1_795_302_739_102,
        "state_since_wall_ms": 1_795_302_739_102,
        "heard_ms_ago": 1_200,
    }
    return WorkerInfo(worker_id=worker_id, **(said | fields))


@pytest.fixture
def two(shell):
    """Two workers, each on a page of its own."""

    def answer(asked: Asked) -> WorkerList:
        command: Any = asked.command
        if command.cursor:
            return WorkerList(workers=[info("bb", state="quiet", order="stop")], cursor=None)
        return WorkerList(workers=[info("aa")], cursor="aa")

    shell.server.answers["workers"] = answer
    return shell


@pytest.mark.parametrize("words", [("workers",), ("workers", "list")])
def test_all_pages_are_one_table(two, words):
    code, out, err = two(*words)
    assert (code, err) == (0, "")
    head, first, second = (line.split("  ") for line in out.splitlines())
    assert [word.strip() for word in head if word][:6] == [
        *("WORKER_ID", "WORKER", "STATE", "LEASED", "CONCURRENCY", "QUEUES")
    ]
    assert first[0] == "aa" and "a,b" in "".join(first) and "2026-11-21T23:12:19.102Z" in first
    assert "quiet, told stop" in second
    assert [asked.command for asked in two.server.asked] == [
        ListWorkers(cursor="", limit=1_000),
        ListWorkers(cursor="aa", limit=1_000),
    ]


def test_json_has_ids_as_strings_and_dates_twice(two):
    first, second = two.json("workers")
    assert first == {
        "worker_id": "aa",
        "worker": "box:aa",
        "host": "box",
        "pid": 42,
        "version": "0.1.0",
        "queues": ["a", "b"],
        "concurrency": 10,
        "state": "running",
        "leased": 4,
        "jobs": [[str(1 << 59), 3], ["7", 1]],
        "since_wall_ms": 1_795_302_739_102,
        "since_at": "2026-11-21T23:12:19.102Z",
        "state_since_wall_ms": 1_795_302_739_102,
        "state_since_at": "2026-11-21T23:12:19.102Z",
        "heard_ms_ago": 1_200,
    }
    assert (second["state"], second["order"]) == ("quiet", "stop")


def test_ids_are_what_the_next_command_wants(two):
    assert two("workers", "-o", "id") == (0, "aa\nbb\n", "")


def test_what_a_worker_says_of_itself_does_nothing_to_a_terminal(shell):
    shell.server.answers["workers"] = WorkerList(
        workers=[info("aa", worker="\x1b[2J", version="\x07")], cursor=None
    )
    out = shell("workers")[1]
    assert "\x1b" not in out and "\x07" not in out and r"\x1b[2J" in out


@pytest.mark.parametrize("order", ["quiet", "resume", "stop"])
@pytest.mark.parametrize(
    ("words", "fields"), [(("w1", "w2"), {"workers": ["w1", "w2"]}), (("--all",), {"all": True})]
)
def test_workers_are_told(shell, order, words, fields):
    shell.server.answers["tell_workers"] = WorkersTold(told=[("aa", "w1"), ("bb", "w2")])
    assert shell.json("workers", order, *words) == [
        {"worker_id": "aa", "worker": "w1", "order": order},
        {"worker_id": "bb", "worker": "w2", "order": order},
    ]
    assert shell.said == TellWorkers(order=order, **fields)
    assert shell("workers", order, *words, "-o", "id") == (0, "aa\nbb\n", "")


@pytest.mark.parametrize("words", [(), ("w1", "--all")])
def test_some_or_all_are_to_be_said(shell, words):
    code, _, err = shell("workers", "stop", *words)
    assert code == 2 and "say which workers to stop: their ids or labels, or --all" in err
    assert shell.server.asked == []


def test_a_name_that_nobody_has_is_exit_code_1(shell):
    shell.server.answers["tell_workers"] = WorkerNotFound("worker 'w9': none with this id or label")
    code, out, err = shell("workers", "quiet", "w9")
    assert (code, out) == (1, "") and "worker_not_found: worker 'w9'" in err


def test_that_nobody_was_there_to_be_told_is_said(shell):
    shell.server.answers["tell_workers"] = WorkersTold(told=[])
    code, out, err = shell("workers", "stop", "--all")
    assert (code, out) == (0, "") and "nobody was told" in err
