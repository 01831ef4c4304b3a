"""What the daemon says about itself: one line an event on stderr, JSON or text, harmless whatever is in it.

Knows:         structlog; how a value is made safe to show; that stderr may be slow, full or gone.
Must not know: which events exist, jobs, sockets.

An event is a stable name (`segment_sealed`) and fields; never a sentence, so that logs can be searched for
years. tests/server/test_log.py reads the source and refuses names that are not literals of that form.

What must not get out is kept in by type and by name, not by the care of the caller:

    bytes                                   their number; so no payload and no frame is ever logged
    objects (Structs, handles, sockets)     the name of their type; their repr could hold anything
    fields named ... key, token, secret     hidden, also in dicts; `key_id`, `token_count` are not such fields
    fields named ... payload, result, ...   hidden: user data
    API keys, passwords in URLs             cut out of every text
    control and format characters           escaped: no value makes a line, moves a cursor or hides a character

A text is cut in its middle, a list at its end, a line at LINE_CHARS_MAX.

Logging neither blocks nor ends the daemon. A line goes into a queue in memory; one thread writes it. If stderr
is slow, the queue fills and further lines are dropped; if a write fails (a closed pipe, a full disk), its line
is dropped. Both are counted, and `log_lines_lost` says how many as soon as a line gets through again. Lost lines
are the lesser evil: a daemon that waits for its log reader is down, and the log of jobs is not this one.
Lines are written with write(2): what stays in a buffer of sys.stderr would turn exit code 0 into 120.

What other libraries say through `logging` (asyncio, warnings) comes out as the event `library_message`.

Source: reliability.md, "Logs"; structlog's documentation, "Performance" and "Logging best practices".
"""

import atexit
import json
import logging
import math
import os
import re
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from itertools import islice
from pathlib import PurePath
from typing import Final, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

TEXT_CHARS_MAX: Final = 4 << 10  # as long as the error text of a job may be
TRACEBACK_CHARS_MAX: Final = 16 << 10
ITEMS_MAX: Final = 32
DEPTH_MAX: Final = 3
LINE_CHARS_MAX: Final = 64 << 10
QUEUE_CHARS_MAX: Final = 4 << 20  # some 20,000 usual lines: seconds of a stalled terminal
FLUSH_S_MAX: Final = 0.5  # what a stalled stderr may cost at the exit, which has 10 s in all

HIDDEN: Final = "<hidden>"
# By the last word of a field's name, so that `key_id` and `payload_bytes` can be logged.
_SECRET = "authorization|cookie|credential|key|passwd|password|secret|session|token"  # noqa: S105  names, not secrets
_CONTENT = "args|body|metadata|payload|result"
_HIDDEN_NAME: Final = re.compile(rf"(?:.*[_.-])?(?:{_SECRET}|{_CONTENT})s?", re.IGNORECASE)
# jqd_<type>_<id>_<secret><crc32>: type and id say which key it was, and are no secret.
_API_KEY: Final = re.compile(r"(jqd_[A-Za-z0-9]+_[A-Za-z0-9]+_)[A-Za-z0-9_-]{20,}")
_URL_PASSWORD: Final = re.compile(r"(://[^\s:/@]*):[^\s@]+@")
# Control characters (C0, DEL, C1), format characters that hide or reorder text, line separators, surrogates.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)

_SURROGATE: Final = re.compile("[\ud800-\udfff]")

Renderer = Callable[[WrappedLogger, str, EventDict], str]
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


# --- for the daemon ---------------------------------------------------------------------------


def configure(level: str, format: str, stream: TextIO | None) -> None:
    """Send events of at least `level` to `stream`, from any thread. A second call replaces the first.

    Args:
        level:  debug, info, warning or error.
        format: json, console, or auto: console if `stream` is a terminal.
        stream: usually sys.stderr; None (as sys.stderr is when it was closed) drops every line.
    """
    global _sink
    is_terminal = stream is not None and stream.isatty()
    is_console = format == "console" or (format == "auto" and is_terminal)
    line = (
        _Line(_console(colors=is_terminal), _escape_text) if is_console else _Line(_json, _escape_surrogates)
    )
    if _sink is not None:
        _sink.close(FLUSH_S_MAX)
    _sink = sink = _Sink(stream, announce=partial(_announce_lost, line))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _LibraryMessages) for handler in root.handlers):
        root.addHandler(_LibraryMessages(logging.WARNING))


def get_logger() -> FilteringBoundLogger:
    """Return a logger: `log.info("segment_sealed", segment=7)`. May be made before `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger())


def flush(timeout_s: float = FLUSH_S_MAX) -> bool:
    """Wait until every line is written or dropped. Returns False if the time was over first."""
    return _sink is None or _sink.flush(timeout_s)


# --- making values safe -----------------------------------------------------------------------


def clean(name: str, value: object, escape: Callable[[str], str], depth: int = 0) -> Json:
    """Turn the value of a field into what may be shown: the table at the top of this file."""
    if _HIDDEN_NAME.fullmatch(name) is not None:
        return HIDDEN
    match value:
        case None | bool():
            return value
        case Enum():
            return value.name
        case int():
            # A number beyond 64 bits is a trap for readers of JSON, a very long one for str() itself.
            return int(value) if value.bit_length() <= 64 else f"<integer of {value.bit_length()} bits>"
        case float():
            return float(value) if math.isfinite(value) else str(float(value))
        case str():
            return escape(_cut(value, TEXT_CHARS_MAX))
        case bytes() | bytearray() | memoryview():
            return f"<{memoryview(value).nbytes} bytes>"
        case PurePath():
            return escape(_cut(str(value), TEXT_CHARS_MAX))
        case BaseException():
            return escape(_cut(f"{type(value).__name__}: {value}", TEXT_CHARS_MAX))
        case Mapping() | list() | tuple() | set() | frozenset() if depth >= DEPTH_MAX:
            return f"<{type(value).__name__} of {len(value)}>"
        case Mapping():
            pairs = [(str(key), item) for key, item in islice(value.items(), ITEMS_MAX)]
            shown = {
                escape(_cut(key, TEXT_CHARS_MAX)): clean(key, item, escape, depth + 1) for key, item in pairs
            }
            return shown | ({"...": f"{len(value) - ITEMS_MAX} more"} if len(value) > ITEMS_MAX else {})
        case list() | tuple() | set() | frozenset():
            items = [clean("", item, escape, depth + 1) for item in islice(value, ITEMS_MAX)]
            return items + ([f"... {len(value) - ITEMS_MAX} more"] if len(value) > ITEMS_MAX else [])
        case _:
            return f"<{type(value).__name__}>"


def _cut(text: str, limit: int) -> str:
    """Take out secrets, then the middle: the ends tell what it was about and what went wrong at last."""
    text = _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", _API_KEY.sub(rf"\1{HIDDEN}", text))
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} ... {len(text) - limit} characters ... {text[-limit // 2 :]}"


def _escape_text(text: str) -> str:
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _escape_lines(text: str) -> str:
    """As _escape_text, but line feeds stay: for a traceback that a person reads."""
    return "\n".join(map(_escape_text, text.split("\n")))


def _escape_surrogates(text: str) -> str:
    """Show what stands for bytes that were not UTF-8: half a pair is no character in JSON."""
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# --- making lines -----------------------------------------------------------------------------


class _Line:
    """The last processor: fields made safe, then rendered; never an exception for the caller."""

    def __init__(self, render: Renderer, escape: Callable[[str], str]) -> None:
        self._render = render
        self._escape = escape

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        try:
            fields: EventDict = {name: self._field(name, value) for name, value in event.items()}
        except Exception as error:  # noqa: BLE001  a value's own str() may do anything; the daemon goes on
            fields = self._head(event, problem=f"a field raised {type(error).__name__}")
        line = self._render(logger, method, fields)
        if len(line) <= LINE_CHARS_MAX:
            return line
        return self._render(logger, method, self._head(event, problem=f"a line of {len(line)} characters"))

    def _field(self, name: str, value: object) -> Json:
        if name == "exception" and isinstance(value, str):
            escape = _escape_lines if self._escape is _escape_text else self._escape
            return escape(_cut(value, TRACEBACK_CHARS_MAX))
        return clean(name, value, self._escape)

    def _head(self, event: EventDict, *, problem: str) -> EventDict:
        head = {name: str(event[name]) for name in ("time", "level", "event") if name in event}
        return {name: clean(name, value, self._escape) for name, value in head.items()} | {"problem": problem}


def _json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    head = {name: event.pop(name) for name in ("time", "level", "event")}
    line = json.dumps({**head, **event}, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], line)  # they stand in strings only


def _console(*, colors: bool) -> Renderer:
    # The plain formatter: the default one would show local variables, and with them payloads.
    return structlog.dev.ConsoleRenderer(
        colors=colors, timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
    )


def _announce_lost(line: _Line, count: int) -> str:
    time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return line(
        None, "warning", {"time": time, "level": "warning", "event": "log_lines_lost", "count": count}
    )


class _LibraryMessages(logging.Handler):
    """What comes through `logging`, as an event."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  a wrong format string of a library is not ours to die of
            message = str(record.msg)
        log = get_logger()
        write = log.error if record.levelno >= logging.ERROR else log.warning
        write("library_message", library=record.name, message=message, exc_info=record.exc_info)


# --- writing them -----------------------------------------------------------------------------


class _Sink:
    """A bounded queue of lines, and the one thread that writes them.

    The lock is held for moments only, never during a write: `msg` does not wait for the stream. It is reentrant,
    so that a signal handler or finalizer may log in the middle of another line.
    """

    def __init__(self, stream: TextIO | None, *, announce: Callable[[int], str]) -> None:
        self._write = _writer(stream)
        self._announce = announce
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()  # oldest first, in all at most QUEUE_CHARS_MAX
        self._queued_chars = 0
        self._lost_count = 0
        self._is_writing = False
        self._is_closed = False
        threading.Thread(target=self._run, name="jqd-log", daemon=True).start()

    def msg(self, line: str) -> None:
        with self._changed:
            if self._is_closed or self._queued_chars + len(line) > QUEUE_CHARS_MAX:
                self._lost_count += 1
                return
            self._lines.append(line)
            self._queued_chars += len(line)
            self._changed.notify_all()

    debug = info = warning = error = critical = msg

    def flush(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._is_writing, timeout_s)

    def close(self, timeout_s: float) -> None:
        self.flush(timeout_s)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._is_closed)
                if not self._lines:
                    return
                line = self._lines.popleft()
                self._queued_chars -= len(line)
                lost_count, self._lost_count = self._lost_count, 0
                self._is_writing = True
            try:
                if lost_count:
                    self._write(self._announce(lost_count) + "\n")
                    lost_count = 0
                self._write(line + "\n")
            except (OSError, ValueError):  # ValueError: the stream was closed
                with self._changed:
                    self._lost_count += lost_count + 1


def _writer(stream: TextIO | None) -> Callable[[str], None]:
    """Return what writes text to the stream: by its descriptor, if it has one."""
    if stream is None:
        return lambda _text: None
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):

        def write_text(text: str) -> None:
            stream.write(text)
            stream.flush()

        return write_text
    return _DescriptorWriter(descriptor)


class _DescriptorWriter:
    """Writes all of a text, or raises OSError; then the next text begins on a line of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_mid_line = False

    def __call__(self, text: str) -> None:
        rest = memoryview(("\n" + text if self._is_mid_line else text).encode(errors="backslashreplace"))
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except BlockingIOError:  # whoever shares the descriptor made it non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
                continue
            rest = rest[written:]
            self._is_mid_line = len(rest) > 0


_sink: _Sink | None = None
atexit.register(flush)
