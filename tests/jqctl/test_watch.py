"""Reading again and again: time is the test's, and so is what comes back."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any, cast

import click
import pytest

from jqctl import watch
from jqctl.group import STATES, Settings
from jqctl.output import Format
from jqd.core.commands import QueueInfo, QueueList
from jqd.errors import ConnectionLost, Draining, JobNotFound, QueueNotFound, StoreRolledBack
from tests.support.terminal import Terminal

AWAY = ConnectionLost("cannot reach x: Connection refused", outcome_unknown=False)


class Patience:
    """Stands for the connection."""

    def __init__(self) -> None:
        self.waits_for_nobody = False

    def wait_for_nobody(self) -> None:
        self.waits_for_nobody = True


class Time:
    """A clock that waiting moves. After the last reading the user presses Ctrl-C."""

    def __init__(self, readings: Iterable[object], took_s: float = 0, look_s: float = 0) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self._readings = list(readings)
        self._took_s = took_s
        self._look_s = look_s

    def read(self) -> object:
        self.now += self._took_s
        reading = self._readings.pop(0)
        if isinstance(reading, Exception):
            raise reading
        return reading

    def clock(self) -> float:
        self.now += self._look_s
        return self.now

    def wait(self, seconds: float) -> None:
        assert seconds >= 0  # or time.sleep() refuses it
        if not self._readings:
            raise KeyboardInterrupt
        self.waits.append(seconds)
        self.now += seconds

    def watch(
        self,
        every_s: float = 2.0,
        format: Format = "table",
        show: Callable[[object, int], None] = lambda reading, _: click.echo(reading),
    ) -> Patience:
        settings = Settings()
        settings.format = format
        patience = Patience()
        watch.watch(
            settings, cast("Any", patience), every_s, self.read, show,
            wait=self.wait, clock=self.clock, date_ms=lambda: int(self.now * 1_000),
        )  # fmt: skip
        return patience


@pytest.fixture
def screen(capsys, monkeypatch):
    """Makes stdout a terminal of so many rows. Returns a function that says what was drawn on it."""

    def make(rows: int = 24, columns: int = 80) -> Callable[[], list[str]]:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("LINES", str(rows))
        monkeypatch.setenv("COLUMNS", str(columns))
        return lambda: capsys.readouterr().out.split("\x1b[H\x1b[J")

    return make


def test_readings_come_at_a_steady_pace(capsys):
    time = Time(["a", "b", "c"], took_s=0.5)
    time.watch(2.0)
    assert time.waits == [2.0, 1.5]
    assert capsys.readouterr().out.splitlines()[1::2] == ["a", "b", "c"]


def test_a_slow_daemon_is_not_asked_in_a_rush(capsys):
    time = Time(["a", "b", "c", "d"], took_s=5.0)
    time.watch(2.0)
    assert time.waits == [2.0, 0.0, 0.0]


def test_a_clock_that_goes_on_while_it_is_looked_at_asks_for_no_wait_of_the_past(capsys):
    time = Time(["a", "b", "c"], took_s=5.0, look_s=0.25)
    time.watch(2.0)
    assert time.waits == [2.0 - 0.25, 0.0]


def test_a_table_is_appended_under_its_date(capsys):
    Time(["a", "b"]).watch(2.0)
    assert capsys.readouterr().out.splitlines() == [
        "1970-01-01T00:01:40.000Z",
        "a",
        "1970-01-01T00:01:42.000Z",
        "b",
    ]


def test_json_is_one_line_for_each_reading(capsys):
    Time(["a", "b"]).watch(format="json")
    assert capsys.readouterr().out == "a\nb\n"


def test_the_first_reading_must_succeed():
    for error in (AWAY, QueueNotFound("x")):
        with pytest.raises(type(error)):
            Time([error, "a"]).watch()


def test_an_outage_is_said_once_and_so_is_its_end(capsys):
    patience = Time(["a", AWAY, Draining("it stops"), "b", AWAY, "c"]).watch(format="json")
    out, err = capsys.readouterr()
    assert out == "a\nb\nc\n"
    away = "jqctl: connection_lost: cannot reach x: Connection refused; trying again\n"
    back = "jqctl: it is there again\n"
    assert err == away + back + away + back
    assert patience.waits_for_nobody


def test_what_no_waiting_mends_ends_it(capsys):
    with pytest.raises(JobNotFound):
        Time(["a", JobNotFound("x"), "b"]).watch()


def test_store_that_went_back_is_said_and_shown(capsys):
    Time(["a", StoreRolledBack("stats: the store went back", outcome_unknown=False), "b"]).watch()
    out, err = capsys.readouterr()
    assert out.splitlines()[1::2] == ["a", "b"]
    assert err == (
        "jqctl: store_rolled_back: stats: the store went back; trying again\njqctl: it is there again\n"
    )


def test_a_screen_is_drawn_over(screen):
    drawn = screen(rows=5)
    Time(["a", "b"]).watch()
    before, *frames = drawn()
    assert before == "\n" * 5  # what stood there is still to be found above
    assert frames == ["1970-01-01T00:01:40.000Z\n\na\n", "1970-01-01T00:01:42.000Z\n\nb\n"]


def test_a_screen_is_not_touched_where_there_is_nothing_to_show(screen):
    drawn = screen()
    with pytest.raises(ConnectionLost):
        Time([AWAY]).watch()
    assert drawn() == [""]


def test_in_an_outage_the_last_reading_stays(screen):
    drawn = screen()
    Time(["a", ConnectionLost("gone\x1b[2J", outcome_unknown=False), "b"]).watch()
    frames = drawn()[1:]
    assert frames[1] == "1970-01-01T00:01:42.000Z\nconnection_lost: gone\\x1b[2J\n\na\n"
    assert frames[2] == "1970-01-01T00:01:44.000Z\n\nb\n"


@pytest.mark.parametrize(
    ("lines", "rows", "shown"),
    [
        (["1", "2"], 5, ["1", "2"]),
        (["1", "2", "3"], 5, ["1", "... 2 more lines"]),
        (["x" * 80, "2"], 5, ["x" * 80, "2"]),
        (["x" * 81, "2"], 5, ["... 2 more lines"]),
        (["1", "2"], 1, None),
    ],
)
def test_what_does_not_fit_is_counted(screen, lines, rows, shown):
    drawn = screen(rows=rows)
    Time(["\n".join(lines)]).watch()
    (frame,) = drawn()[1:]
    if shown is None:
        assert frame == "1970-01-01T00:01:40.000Z\n... 3 more lines\n"
    else:
        assert frame.splitlines()[2:] == shown


def test_a_dumb_terminal_is_appended_to(screen, monkeypatch):
    drawn = screen()
    monkeypatch.setenv("TERM", "dumb")
    Time(["a"]).watch()
    assert drawn() == ["1970-01-01T00:01:40.000Z\na\n"]


# --- the verbs --------------------------------------------------------------------------------

COUNTS: dict[str, Any] = {state: number for number, state in enumerate(STATES, 1)}


def queue_list(*names: str) -> QueueList:
    return QueueList(queues=[QueueInfo(queue=name, **COUNTS) for name in names], cursor=None)


@pytest.mark.parametrize(
    "args",
    [
        ["queues", "--watch", "99ms"],
        ["stats", "--watch", "2d"],
        ["queues", "--watch", "x"],
        ["stats", "--watch", "1", "-o", "id"],
    ],
)
def test_watch_with_wrong_usage_asks_nothing(shell, args):
    code, out, err = shell(*args)
    assert (code, out) == (2, "") and err
    assert shell.server.asked == []


def test_queues_in_json_are_one_line_for_each_reading(shell, monkeypatch):
    shell.server.answers["queues"] = queue_list("a", "b")
    monkeypatch.setattr(watch.watch, "__kwdefaults__", {**watch.watch.__kwdefaults__, "wait": Time([]).wait})
    (line,) = shell.json("queues", "--watch", "2")
    assert line["at"].endswith("Z") and line["wall_ms"] > 0
    shown = {**COUNTS, "paused": False, "memory_bytes": 0}
    assert line["queues"] == [{"queue": "a", **shown}, {"queue": "b", **shown}]


def test_queues_are_watched_on_a_terminal_until_ctrl_c(shell):
    shell.server.answers["queues"] = lambda _: queue_list("q" * len(shell.server.asked))
    words = [sys.executable, "-m", "jqctl", "--url", shell.server.url, "queues", "--watch", "100ms"]
    with Terminal(words) as terminal:
        terminal.read_until("\x1b[H\x1b[J")
        assert "\x1b[1mQUEUE  DELAYED" in terminal.read_until("\x1b[H\x1b[J")
        assert "\nqqq " in terminal.read_until("\nqqq ")
        terminal.interrupt()
        assert terminal.end() == 0


def test_a_reader_that_goes_away_ends_it(shell):
    shell.server.answers["queues"] = queue_list("q")
    words = [
        sys.executable,
        "-m",
        "jqctl",
        "--url",
        shell.server.url,
        "queues",
        "--watch",
        "100ms",
        "-o",
        "json",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 141 and process.stderr.read() == b""
