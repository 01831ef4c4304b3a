"""What reaches the service manager: real datagrams, and a loop that is moved by hand where time counts."""

import asyncio
import itertools
import os
import socket
import threading
from contextlib import closing, contextmanager

import pytest

from jqd.server import notify
from jqd.server.notify import Notifier

PID = 4_242


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.setblocking(False)
        yield bound


@pytest.fixture
def warnings(monkeypatch):
    said: list[dict[str, object]] = []
    monkeypatch.setattr("jqd.server.notify.log.warning", lambda event, **fields: said.append(fields))
    return said


def heard(manager):
    messages = []
    try:
        while True:
            messages.append(manager.recv(4_096).decode())
    except BlockingIOError:
        return messages


@pytest.fixture
def notifier(manager):
    with closing(Notifier(manager.getsockname())) as made:
        yield made


@contextmanager
def watched(manager, watchdog_s):
    with closing(Notifier(manager.getsockname(), watchdog_s)) as made:
        yield made


# --- messages ---------------------------------------------------------------------------------


def test_message_is_one_datagram_of_lines(manager, notifier):
    notifier.tell("READY=1", "STATUS=Serving unix:///a\nMAINPID=1")
    assert heard(manager) == ["READY=1\nSTATUS=Serving unix:///a MAINPID=1"]


def test_abstract_name_begins_with_at():
    name = f"jqd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.setblocking(False)
        with closing(Notifier(f"@{name}")) as notifier:
            notifier.tell("READY=1")
        assert heard(manager) == ["READY=1"]


def test_nobody_listens_without_the_variable(manager):
    Notifier.taken_from({"WATCHDOG_USEC": "1000"}, PID).tell("READY=1")
    notify.SILENT.tell("READY=1")


@pytest.mark.parametrize("address", ["/nonexistent/notify", "/" + "x" * 200, "vsock:2:1234", "relative"])
def test_failure_is_logged_once_and_ends_nothing(warnings, address):
    with closing(Notifier(address)) as notifier:
        notifier.tell("READY=1")
        notifier.tell("WATCHDOG=1")
    assert len(warnings) == 1


def test_failure_after_a_success_is_logged_again(notifier, warnings, tmp_path):
    path = tmp_path / "notify"
    for times in (1, 2):
        path.rename(tmp_path / "gone")
        notifier.tell("WATCHDOG=1")
        (tmp_path / "gone").rename(path)
        notifier.tell("WATCHDOG=1")
        assert len(warnings) == times


def test_manager_that_takes_nothing_holds_up_only_what_must_arrive(manager, notifier, warnings):
    for _ in itertools.takewhile(lambda _: not warnings, itertools.count()):
        notifier.tell("WATCHDOG=1")  # until its queue is full; a blocking send would hang here
    reader = threading.Thread(target=lambda: (manager.setblocking(True), manager.recv(4_096)))
    reader.start()
    notifier.tell("STOPPING=1", must_arrive=True)
    reader.join()
    manager.setblocking(False)
    assert heard(manager)[-1] == "STOPPING=1"


def test_text_that_is_no_utf_8_is_sent_all_the_same(manager, notifier):
    notifier.tell("STATUS=\udcff")
    assert heard(manager) == ["STATUS=?"]


# --- the environment --------------------------------------------------------------------------


def test_variables_are_taken_out(manager):
    environ = {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(PID),
        "A": "b",
    }
    with closing(Notifier.taken_from(environ, PID)) as notifier:
        notifier.tell("READY=1")
        assert environ == {"A": "b"}
        assert notifier.watchdog_s == 3
    assert heard(manager) == ["READY=1"]


@pytest.mark.parametrize(
    ("variables", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(PID + 1)}, None),
        ({"WATCHDOG_PID": str(PID)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "\u00b2"}, None),
    ],
)
def test_watchdog_counts_if_it_is_for_this_process(variables, watchdog_s):
    assert Notifier.taken_from(variables, PID).watchdog_s == watchdog_s


# --- the watchdog -----------------------------------------------------------------------------


class Loop:
    """A loop whose time passes when the test says so."""

    def __init__(self):
        self.planned = []

    def call_later(self, after_s, callback, *args):
        self.planned.append((after_s, callback, args))

    def run(self):
        ((after_s, callback, args),) = self.planned
        self.planned.clear()
        callback(*args)
        return after_s


def test_watchdog_is_fed_by_the_loop_twice_a_period(manager):
    loop = Loop()
    with watched(manager, 10) as notifier:
        notifier.feed_watchdog(loop)
        assert heard(manager) == ["WATCHDOG=1"]
        for _ in range(3):
            assert heard(manager) == [], "nobody feeds it but the loop"
            assert loop.run() == 5
            assert heard(manager) == ["WATCHDOG=1"]


def test_watchdog_that_nobody_keeps_is_not_fed(manager, notifier):
    loop = Loop()
    notifier.feed_watchdog(loop)
    assert heard(manager) == loop.planned == []


async def test_stuck_loop_feeds_no_watchdog_and_a_stuck_thread_does_not_matter(manager):
    loop = asyncio.get_running_loop()
    stuck = threading.Event()
    other = threading.Thread(target=stuck.wait)  # as the commit thread is by a disk that takes its time
    other.start()
    manager.settimeout(10)
    with watched(manager, 0.002) as notifier:
        notifier.feed_watchdog(loop)
        for _ in range(3):
            assert await asyncio.to_thread(manager.recv, 100) == b"WATCHDOG=1"
        manager.setblocking(False)
        heard(manager)  # what was sent up to here
        manager.settimeout(0.1)  # a hundred intervals, in which the loop waits here and runs nothing
        with pytest.raises(TimeoutError):
            manager.recv(100)
    stuck.set()
    other.join()
