"""What may be in the log, and what a broken stderr may cost."""

import ast
import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from enum import Enum
from pathlib import Path, PurePosixPath

import pytest
import structlog

from jqd.core.model import Lease
from jqd.server import log as jqd_log
from jqd.server.log import (
    HIDDEN,
    ITEMS_MAX,
    LINE_CHARS_MAX,
    QUEUE_CHARS_MAX,
    TEXT_CHARS_MAX,
    TRACEBACK_CHARS_MAX,
    configure,
    flush,
    get_logger,
)

ROOT = Path(__file__).resolve().parents[2]
# Each could start a line, move a cursor, hide or reorder text, or is no character at all.
UNSAFE = [
    "\n",
    "\r",
    "\0",
    "\x1b[2J",
    "\x7f",
    "\x85",
    "\x9b31m",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u200b",
    "\ufeff",
    "\udcff",
]
UNSAFE_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff\ud800-\udfff]")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Leave structlog and logging to the next test as they were."""
    yield
    flush()
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, jqd_log._LibraryMessages)]:
        root.removeHandler(handler)


def lines_of(stream: io.StringIO) -> list[str]:
    assert flush(30)
    return stream.getvalue().split("\n")[:-1]


def logged(event: str = "thing_happened", /, **fields: object) -> dict[str, object]:
    """Log one event as JSON and return what a reader gets."""
    stream = io.StringIO()
    configure("info", "json", stream)
    get_logger().info(event, **fields)
    (line,) = lines_of(stream)
    assert not UNSAFE_LINE.search(line)
    assert "\\u00e4" not in line  # a letter stays one
    found = json.loads(line, parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


# --- form -------------------------------------------------------------------------------------


def test_event_is_one_json_object_with_time_level_and_name_first():
    found = logged("segment_sealed", segment=7, name="täglich", ratio=0.5, ok=True, none=None)
    assert list(found)[:3] == ["time", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", str(found.pop("time")))
    assert found == {
        "level": "info",
        "event": "segment_sealed",
        "segment": 7,
        "name": "täglich",
        "ratio": 0.5,
        "ok": True,
        "none": None,
    }


def test_console_line_is_for_a_person():
    stream = io.StringIO()
    configure("info", "console", stream)
    get_logger().warning("disk_slow", ms=1200, path="/a b")
    (line,) = lines_of(stream)
    assert re.search(r"\[warning +\] disk_slow +ms=1200 path='/a b'", line)


@pytest.mark.parametrize(
    ("format", "is_terminal", "is_console"),
    [("auto", True, True), ("auto", False, False), ("json", True, False), ("console", False, True)],
)
def test_auto_is_console_on_a_terminal(format, is_terminal, is_console):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    configure("info", format, stream)
    get_logger().info("thing_happened")
    (line,) = lines_of(stream)
    assert line.startswith("{") is not is_console
    assert ("\x1b" in line) is (is_console and is_terminal)


def test_level_is_a_threshold():
    stream = io.StringIO()
    configure("warning", "json", stream)
    log = get_logger()
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [json.loads(line)["event"] for line in lines_of(stream)] == ["c", "d"]


def test_logger_may_be_made_before_configure():
    log = get_logger()
    stream = io.StringIO()
    configure("info", "json", stream)
    log.info("thing_happened")
    assert len(lines_of(stream)) == 1


def test_second_configure_replaces_the_first():
    first, second = io.StringIO(), io.StringIO()
    log = get_logger()
    configure("info", "json", first)
    log.info("one")
    configure("info", "json", second)
    log.info("two")
    assert [json.loads(line)["event"] for line in lines_of(second)] == ["two"]
    assert [json.loads(line)["event"] for line in first.getvalue().splitlines()] == ["one"]


def test_libraries_speak_through_the_same_stream():
    stream = io.StringIO()
    configure("info", "json", stream)
    logging.getLogger("asyncio").warning("slow %s", "callback\n")
    wrong = logging.LogRecord("asyncio", logging.ERROR, "", 0, "%d", ("no number",), None)
    jqd_log._LibraryMessages().handle(wrong)
    logging.getLogger("asyncio").info("chatter")
    first, second = (json.loads(line) for line in lines_of(stream))
    assert (first["event"], first["level"], first["library"]) == ("library_message", "warning", "asyncio")
    assert (first["message"], second["message"]) == ("slow callback\n", "%d")


# --- what is in a field -----------------------------------------------------------------------


@pytest.mark.parametrize("unsafe", UNSAFE, ids=ascii)
@pytest.mark.parametrize(
    "wrap", [lambda text: text, lambda text: [text], lambda text: {text: text}], ids=["text", "list", "dict"]
)
def test_no_value_leaves_its_line(unsafe, wrap):
    value = wrap(f"a{unsafe}b")
    found = logged(name=value)["name"]
    assert found == (value if unsafe != "\udcff" else wrap("a\\udcffb"))

    stream = io.StringIO()
    configure("info", "console", stream)
    get_logger().info("thing_happened", name=value)
    (line,) = lines_of(stream)
    assert not UNSAFE_LINE.search(line)


def test_event_name_is_made_safe_too():
    assert logged("a\nb\u2028")["event"] == "a\nb\u2028"


class Colour(Enum):
    RED = "secret"


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"secret", "<6 bytes>"),
        (bytearray(b"secret"), "<6 bytes>"),
        (memoryview(b"secret"), "<6 bytes>"),
        ([b"secret", {"x": b"secret"}], ["<6 bytes>", {"x": "<6 bytes>"}]),
        (Lease(1, 2, 3, [], 0, "secret", b"secret"), "<Lease>"),
        (Hostile(), "<Hostile>"),
        (object, "<type>"),
        (Colour.RED, "RED"),
        (PurePosixPath("/a/b"), "/a/b"),
        (ValueError("no such disk"), "ValueError: no such disk"),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        ({1: 2}, {"1": 2}),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (2**64 - 1, 2**64 - 1),
        (2**64, "<integer of 65 bits>"),
        (10**6000, "<integer of 19932 bits>"),
        ([[[[1]]]], [[["<list of 1>"]]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_is_shown_by_its_type(value, shown):
    assert logged(x=value)["x"] == shown


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "api_key",
        "keys",
        "Key",
        "token",
        "lease_token",
        "tokens",
        "secret",
        "password",
        "authorization",
        "session",
        "payload",
        "payloads",
        "result",
        "metadata",
        "body",
        "args",
        "x-api-key",
        "set.cookie",
    ],
)
def test_field_with_a_secret_or_user_data_is_hidden(name):
    assert logged(**{name: "s3cret"})[name] == HIDDEN
    assert logged(x=[{name: {"a": "s3cret"}}])["x"] == [{name: HIDDEN}]


@pytest.mark.parametrize(
    "name", ["key_id", "payload_bytes", "token_count", "monkey", "session_count", "error", "worker"]
)
def test_field_about_them_is_shown(name):
    assert logged(**{name: "plain"})[name] == "plain"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key jqd_live_k7_" + "aB3" * 15 + " sent", f"key jqd_live_k7_{HIDDEN} sent"),
        ("jqd_live_k7_" + "a_-" * 15, f"jqd_live_k7_{HIDDEN}"),
        ("postgres://ann:s3cret@db/jqd", f"postgres://ann:{HIDDEN}@db/jqd"),
        ("jqd://127.0.0.1:7717 for ann@x", "jqd://127.0.0.1:7717 for ann@x"),
        ("queue jqd_jobs_eu_westernmost", "queue jqd_jobs_eu_westernmost"),
    ],
)
def test_secret_is_cut_out_of_any_text(text, shown):
    assert logged(x=text)["x"] == shown
    assert logged(x=ValueError(text))["x"] == f"ValueError: {shown}"


def test_long_text_keeps_both_ends():
    found = str(logged(x="a" * TEXT_CHARS_MAX + "middle" + "z" * TEXT_CHARS_MAX)["x"])
    assert found.startswith("aaa") and found.endswith("zzz") and "middle" not in found
    assert f" ... {TEXT_CHARS_MAX + 6} characters ... " in found
    assert len(found) < TEXT_CHARS_MAX + 50
    assert logged(x="a" * TEXT_CHARS_MAX)["x"] == "a" * TEXT_CHARS_MAX


def test_long_list_and_dict_are_cut():
    assert logged(x=list(range(ITEMS_MAX + 5)))["x"] == [*range(ITEMS_MAX), "... 5 more"]
    found = logged(x={str(i): i for i in range(ITEMS_MAX + 5)})["x"]
    assert isinstance(found, dict)
    assert len(found) == ITEMS_MAX + 1 and found["..."] == "5 more"


def test_line_that_is_too_long_keeps_its_name():
    found = logged(x=["\n" * TEXT_CHARS_MAX] * ITEMS_MAX)
    assert found.pop("time")
    assert re.fullmatch(r"a line of \d{6} characters", str(found.pop("problem")))
    assert found == {"level": "info", "event": "thing_happened"}
    assert LINE_CHARS_MAX < TEXT_CHARS_MAX * ITEMS_MAX


def test_value_that_cannot_be_shown_does_not_reach_the_caller():
    found = logged(x=HostileError())
    assert (found["event"], found["problem"]) == ("thing_happened", "a field raised RuntimeError")
    found = logged(x={Hostile(): 1})
    assert found["problem"] == "a field raised RuntimeError"


@pytest.mark.parametrize("format", ["json", "console"])
def test_exception_has_its_traceback_and_no_local_variables(format):
    stream = io.StringIO()
    configure("info", format, stream)

    def fail(job):
        raise ValueError("bad \x1b[2J disk")

    try:
        fail("s3cret")
    except ValueError:
        get_logger().exception("commit_failed")
    lines = lines_of(stream)
    text = json.loads(lines[0])["exception"] if format == "json" else "\n".join(lines)
    assert "Traceback (most recent call last):\n" in text
    assert "ValueError: bad" in text and "in fail" in text
    assert "job = " not in text and "job: " not in text
    assert not any(UNSAFE_LINE.search(line) for line in lines)
    assert len(lines) == 1 if format == "json" else len(lines) > 3


def test_long_traceback_keeps_what_went_wrong():
    stream = io.StringIO()
    configure("info", "json", stream)
    try:
        raise ValueError("x" * 2 * TRACEBACK_CHARS_MAX + " at last")
    except ValueError:
        get_logger().exception("commit_failed")
    text = json.loads(lines_of(stream)[0])["exception"]
    assert text.startswith("Traceback") and text.endswith(" at last") and len(text) < TRACEBACK_CHARS_MAX + 50


# --- a stream that is slow, broken or gone ----------------------------------------------------


class Slow(io.StringIO):
    """A stream whose writes wait until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        self.begun.set()
        assert self.go.wait(30)
        return super().write(text)


def test_slow_stream_does_not_hold_up_the_caller_and_loses_lines_by_count():
    stream = Slow()
    configure("info", "json", stream)
    log = get_logger()
    log.info("first")
    assert stream.begun.wait(30)
    text = "x" * TEXT_CHARS_MAX
    count = 2 * QUEUE_CHARS_MAX // TEXT_CHARS_MAX
    for number in range(count):
        log.info("more", number=number, text=text)
    assert not flush(0)
    stream.go.set()
    assert flush(30)
    log.info("last")
    found = [json.loads(line) for line in lines_of(stream)]
    lost = [each["count"] for each in found if each["event"] == "log_lines_lost"]
    assert sum(lost) > 0
    assert sum(lost) + sum(each["event"] == "more" for each in found) == count
    assert found[-1]["event"] == "last"
    assert found[1]["event"] == "log_lines_lost" and found[2]["number"] == 0


class Broken(io.StringIO):
    """A stream whose writes fail as long as `error` is set."""

    error: Exception | None = BrokenPipeError(32, "Broken pipe")

    def write(self, text: str) -> int:
        if self.error:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "x"), OSError(28, "x"), ValueError("closed file")], ids=repr
)
def test_failed_write_costs_its_line_only(error):
    stream = Broken()
    stream.error = error
    configure("info", "json", stream)
    log = get_logger()
    for _ in range(3):
        log.info("lost")
        assert flush(30)
    stream.error = None
    log.info("back")
    first, second = (json.loads(line) for line in lines_of(stream))
    assert (first["event"], first["level"], first["count"]) == ("log_lines_lost", "warning", 3)
    assert second["event"] == "back"


def test_closed_stderr_is_no_stream():
    configure("info", "json", None)
    get_logger().info("thing_happened")
    assert flush(30)


def test_closed_pipe_costs_its_line_only():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        configure("info", "json", stream)
        get_logger().info("lost")
        assert flush(30)


def test_non_blocking_pipe_gets_every_line_whole():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(reader) as source, os.fdopen(writer, "w") as stream:
        configure("info", "json", stream)
        for number in range(200):
            get_logger().info("thing_happened", number=number, text="x" * TEXT_CHARS_MAX)
        assert [json.loads(source.readline())["number"] for _ in range(200)] == list(range(200))
        assert flush(30)


def test_line_after_a_torn_one_begins_anew(monkeypatch):
    written = bytearray()
    answers: Iterator[int | OSError] = iter([5, OSError(28, "No space left on device")])

    def write(_descriptor: int, data: memoryview) -> int:
        answer = next(answers, len(data))
        if isinstance(answer, OSError):
            raise answer
        written.extend(data[:answer])
        return answer

    monkeypatch.setattr(os, "write", write)
    writer = jqd_log._DescriptorWriter(2)
    with contextlib.suppress(OSError):
        writer("first line\n")
    writer("second\n")
    writer("third\n")
    assert bytes(written) == b"first\nsecond\nthird\n"


PROGRAM = """
import sys
from jqd.server.log import configure, get_logger
configure("info", "json", sys.stderr)
for number in range(5):
    get_logger().info("thing_happened", number=number)
"""


def test_lines_before_the_exit_are_written():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0
    assert [json.loads(line)["number"] for line in done.stderr.splitlines()] == [0, 1, 2, 3, 4]


def test_closed_pipe_on_stderr_does_not_change_the_exit_code():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, stderr=writer, timeout=50)
    finally:
        os.close(writer)
    assert done.returncode == 0


# --- the callers ------------------------------------------------------------------------------

METHODS = {"debug", "info", "warning", "error", "critical", "exception"}
LOGGERS = {"log", "_log", "logger", "_logger"}


def unstable_names(source: str) -> list[int]:
    """Return the lines that log anything but one literal name in snake case.

    A method that only passes a name on calls it `event`, and `report` is what such a method is called.
    """
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        if not isinstance(call.func, ast.Attribute):
            continue
        owner = ast.unparse(call.func.value).rpartition(".")[2]
        is_report = call.func.attr == "report"
        if not is_report and (call.func.attr not in METHODS or owner not in LOGGERS):
            continue
        match call.args:
            case [ast.Constant(value=str(name)), *rest] if is_report or not rest:
                is_stable = re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) is not None
            case [ast.Name(id="event")]:
                is_stable = True
            case _:
                is_stable = False
        if not is_stable:
            found.append(call.lineno)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "log.info('Sealed a segment')",
        "log.info(f'x_{y}')",
        "self._log.error(name)",
        "log.info('a_b', x)",
        "log.info(event='a_b')",
        "house.report('No', e)",
        "house.report(name, e)",
    ],
)
def test_unstable_event_name_is_seen(line):
    assert unstable_names(f"\n{line}") == [2]


def test_stable_event_name_is_good():
    assert (
        unstable_names(
            "self.log.info('segment_sealed', segment=7)\nmath.log(5)\nlog.bind(x=1)\nlog.error(event)\nhouse.report('a_b', e)"
        )
        == []
    )


def test_every_event_of_the_daemon_has_a_stable_name():
    found = {
        str(path): unstable_names(path.read_text())
        for path in (ROOT / "jqd").rglob("*.py")
        if "client" not in path.parts
        and path.name != "worker.py"  # these speak to people, by the program's own logging
    }
    assert {path: lines for path, lines in found.items() if lines} == {}
