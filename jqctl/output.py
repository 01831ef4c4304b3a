"""What a terminal or a program reads: rows of job data as a table, as JSON lines, or as ids.

Knows:         which spelling each format has, and that job data may be hostile to a terminal.
Must not know: verbs, the server.

    table   for people; columns; control characters of job data are escaped; ids, counts and names are
            never cut, however narrow the terminal
    json    for programs: one object a line, the wire's field names;
            ids and tokens are decimal strings; a date has an RFC 3339 twin: created_wall_ms, created_at;
            what is None is left out;
            payload and result by encoding: text as a string, json as its value, anything else (or what
            does not decode) as payload_base64, result_base64; msgpack, which typed tasks have, in both forms:
            base64 is exact, and the value beside it is for reading, as in a table
    id      for the shell: the ids that the next command wants, one line a job

What only some output needs is imported there: jqctl is started more often than anything else here.
"""

import contextlib
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TextIO

import click
import msgspec

Format = Literal["table", "json", "id"]

# JavaScript and many JSON readers keep only 53 bits of a number.
_STRINGS: Final = frozenset({"job_id", "token"})
# What a terminal may act on or show as nothing: C0, DEL, C1, line separators, marks that turn the
# direction of text, and lone surrogates.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_SHOWN_CHARS_MAX: Final = 200
# What RFC 3339 can write, up to year 9999: what else a server calls a date is shown as the number that it is.
_DATES_MS: Final = range(253_402_300_800_000)
# Columns that may be cut to fit a terminal: what somebody wrote, and no command needs. And how far.
_CUTTABLE: Final = frozenset({"payload", "result", "error", "metadata"})
_CUT_WIDTH_MIN: Final = 12
# Nested deeper than this a value in msgpack is shown as its bytes: nobody reads it, and each level takes stack.
_DEPTH_MAX: Final = 100
# What reading bytes raises that are not what was said of them.
_MISREAD: Final = (ValueError, RecursionError, msgspec.DecodeError)


class PipeClosed(Exception):
    """Nobody reads the output any more."""


class Unreadable(Exception):
    """The input cannot be read. Its message says which and why."""


def clean(text: str) -> str:
    r"""Show every character that a terminal might act on as an escape: \n, \x1b, \u202e."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


# --- JSON -------------------------------------------------------------------------------------


def rfc3339(wall_ms: int) -> str:
    """Write unix milliseconds as a date in UTC."""
    date = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=wall_ms)
    return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_record(thing: msgspec.Struct | Mapping[str, Any]) -> dict[str, Any]:
    """Return a reply's Struct, or a map like it, as the map that JSON shows."""
    fields = msgspec.structs.asdict(thing) if isinstance(thing, msgspec.Struct) else thing
    record: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        if name in _STRINGS:
            record[name] = str(value)
        elif isinstance(value, bytes):
            record |= said(name, value, _encoding(name, fields))
        else:
            record[name] = _plain(value)
        if (twin := _twin(name)) and value in _DATES_MS:
            record[twin] = rfc3339(value)
    return record


def _encoding(name: str, fields: Mapping[str, Any]) -> str:
    """Return what the bytes of a field are."""
    return str(fields.get("encoding" if name == "payload" else f"{name}_encoding", "raw"))


def _twin(name: str) -> str:
    """Return the name under which a date is said in RFC 3339, "" for what is no date."""
    if name in ("run_at_ms", "expires_at_ms"):
        return name.removesuffix("_ms")
    return f"{name.removesuffix('wall_ms')}at" if name.endswith("wall_ms") else ""


def _plain(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return to_record(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def said(name: str, data: bytes, encoding: str) -> dict[str, Any]:
    """Return bytes as the field or fields that JSON shows, by their encoding."""
    try:
        if encoding == "text":
            return {name: data.decode()}
        if encoding == "json":
            return {name: msgspec.json.decode(data)}
    except _MISREAD:
        pass  # the producer said what it is not: the bytes are the truth
    import base64

    shown = {f"{name}_base64": base64.b64encode(data).decode()}
    if encoding == "msgpack":
        with contextlib.suppress(*_MISREAD):
            return {name: _read(data), **shown}
    return shown


def readable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a job with what is in msgpack as text in JSON, where it is msgpack."""
    shown = dict(fields)
    for name, value in fields.items():
        if isinstance(value, bytes) and _encoding(name, fields) == "msgpack":
            with contextlib.suppress(*_MISREAD):  # then cell() shows the bytes
                shown[name] = msgspec.json.encode(_read(value)).decode()
    return shown


def _read(data: bytes) -> object:
    r"""Decode msgpack into what JSON can say, so that a person can read it.

    Dates become RFC 3339; bytes the text that they are, with \xff for what is none; keys texts; nan, inf and
    extensions words.

    Raises: DecodeError: it is no msgpack. ValueError, RecursionError: it is nested too deeply.
    """
    return _sayable(msgspec.msgpack.decode(data), 0)


def _sayable(value: object, depth: int) -> object:
    if depth > _DEPTH_MAX:
        raise ValueError(f"nested deeper than {_DEPTH_MAX}")
    match value:
        case bytes():
            return value.decode(errors="backslashreplace")
        case float() if not math.isfinite(value):
            return str(value)
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case list() | tuple():
            return [_sayable(item, depth + 1) for item in value]
        case dict():
            return {_key(key, depth + 1): _sayable(item, depth + 1) for key, item in value.items()}
        case msgspec.msgpack.Ext():
            return f"ext {value.code}: {bytes(value.data).decode(errors='backslashreplace')}"
        case _:
            return value


def _key(key: object, depth: int) -> str:
    said = _sayable(key, depth)
    return said if isinstance(said, str) else msgspec.json.encode(said).decode()


def _json_escape(match: re.Match[str]) -> str:
    import json

    return json.dumps(match[0])[1:-1]


def to_json(record: Mapping[str, Any]) -> bytes:
    """Write one line, with what a terminal might act on escaped in JSON's own way."""
    text = msgspec.json.encode(record).decode()
    return _UNSAFE.sub(_json_escape, text).encode() + b"\n"


# --- tables -----------------------------------------------------------------------------------


def cell(name: str, value: object) -> str:
    """Show one field: dates as dates, bytes as text if they are, long ones cut."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() if _twin(name) and value in _DATES_MS:
            return rfc3339(value)
        case bytes():
            text = value.decode(errors="backslashreplace")
        case str() | int() | float():
            text = str(value)
        case _:
            text = msgspec.json.encode(_plain(value)).decode()
    text = clean(text[: _SHOWN_CHARS_MAX + 1])
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}..."


def _title(name: str) -> str:
    return (_twin(name) or name).upper()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, header: bool = True) -> None:
    """Print rows under their columns. On a terminal what is long and free in its wording is cut to fit;
    all else is whole everywhere: lines run long rather than lose a digit.
    """
    lines = list(rows)
    shown = [[_title(name) for name in columns], *lines] if header else lines
    widths = [max(_width(line[index]) for line in shown) for index in range(len(columns))] if shown else []
    is_terminal = sys.stdout.isatty()
    if is_terminal:
        import shutil

        widths = _fitted(columns, widths, shutil.get_terminal_size().columns)
    bold = header and has_colours()
    for number, line in enumerate(shown):
        cells = [
            text + " " * (width - size) if (size := _width(text)) <= width else _cut(text, width - 1) + "…"
            for text, width in zip(line, widths, strict=True)
        ]
        text = "  ".join(cells).rstrip()
        click.echo(click.style(text, bold=True) if bold and not number else text, color=bold)


def _width(text: str) -> int:
    """Count the columns that a text takes: what is not ASCII may take two, or none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _cut(text: str, width: int) -> str:
    if text.isascii():
        return text[:width]
    from rich.cells import set_cell_size

    return set_cell_size(text, width)


def _fitted(columns: Sequence[str], widths: Sequence[int], room: int) -> list[int]:
    """Cut the columns that may be cut, the widest first, as far as the room demands."""
    fitted = list(widths)
    over = sum(fitted) + 2 * (len(fitted) - 1) - room
    for index in sorted(range(len(fitted)), key=lambda index: -fitted[index]):
        if columns[index] in _CUTTABLE and over > 0:
            cut = min(over, max(fitted[index] - _CUT_WIDTH_MIN, 0))
            fitted[index] -= cut
            over -= cut
    return fitted


def details(fields: Mapping[str, object]) -> None:
    """Print the fields of one thing, one a line; those of a map or a list in it below each other."""
    rows: list[tuple[str, str]] = []
    for name, value in fields.items():
        match value:
            case dict():
                rows += [(clean(f"{name}.{key}"), cell(str(key), item)) for key, item in value.items()]
            case list():
                rows += [(f"{name}[{index}]", cell(name, item)) for index, item in enumerate(value)]
            case _:
                rows.append((_twin(name) or name, cell(name, value)))
    table(("", ""), rows, header=False)


def is_screen(stream: TextIO) -> bool:
    """Tell whether it is a terminal that can draw over what it has drawn."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colours() -> bool:
    """Tell whether stdout gets colours. What the user says stands above what the terminal can; no is stronger."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_screen(sys.stdout)


def say(message: str) -> None:
    """Print a remark where it is in no program's way."""
    click.echo(clean(message), err=True)
