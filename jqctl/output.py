"""What a terminal or a program reads: rows of job data as a table, as JSON lines, or as ids.

Knows:         which spelling each format has, and that job data may be hostile to a terminal.
Must not know: verbs, the server.

    table   for people; columns; control characters of job data are escaped
    json    for programs: one object a line, the wire's field names;
            ids and tokens are decimal strings; a date has an RFC 3339 twin: created_wall_ms, created_at;
            what is None is left out;
            payload and result by encoding: text as a string, json as its value, anything else (or what
            does not decode) as payload_base64, result_base64
    id      for the shell: the ids that the next command wants, one line a job
"""

import base64
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import click
import msgspec

Format = Literal["table", "json", "id"]

# JavaScript and many JSON readers keep only 53 bits of a number.
_STRINGS: Final = frozenset({"job_id", "token"})
# What a terminal may act on or show as nothing: C0, DEL, C1, line separators, marks that turn the
# direction of text, and lone surrogates.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_SHOWN_CHARS_MAX: Final = 200


class PipeClosed(Exception):
    """Nobody reads the output any more."""


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
            encoding = fields.get("encoding" if name == "payload" else f"{name}_encoding", "raw")
            record |= _said(name, value, encoding)
        else:
            record[name] = _plain(value)
        if twin := _twin(name):
            record[twin] = rfc3339(value)
    return record


def _twin(name: str) -> str:
    """Return the name under which a date is said in RFC 3339, "" for what is no date."""
    if name == "run_at_ms":
        return "run_at"
    return f"{name.removesuffix('wall_ms')}at" if name.endswith("wall_ms") else ""


def _plain(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return to_record(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _said(name: str, data: bytes, encoding: str) -> dict[str, Any]:
    try:
        if encoding == "text":
            return {name: data.decode()}
        if encoding == "json":
            return {name: msgspec.json.decode(data)}
    except (ValueError, RecursionError, msgspec.DecodeError):
        pass  # the producer said what it is not: the bytes are the truth
    return {f"{name}_base64": base64.b64encode(data).decode()}


def to_json(record: Mapping[str, Any]) -> bytes:
    """Write one line, with what a terminal might act on escaped in JSON's own way."""
    text = msgspec.json.encode(record).decode()
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode() + b"\n"


# --- tables -----------------------------------------------------------------------------------


def cell(name: str, value: object) -> str:
    """Show one field: dates as dates, bytes as text if they are, long ones cut."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() if _twin(name):
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
    """Print rows under their columns: fitted to a terminal, whole and aligned elsewhere."""
    lines = list(rows)
    if sys.stdout.isatty():
        _draw(columns, lines, header=header)
        return
    shown = [[_title(name) for name in columns], *lines] if header else lines
    widths = [max(len(line[index]) for line in shown) for index in range(len(columns))] if shown else []
    for line in shown:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _draw(columns: Sequence[str], lines: Sequence[Sequence[str]], *, header: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plain = "NO_COLOR" in os.environ
    drawn = Table(box=None, show_header=header, pad_edge=False, header_style="" if plain else "bold")
    for index, name in enumerate(columns):
        # What the next command needs is never cut: ids and tokens.
        whole = max(len(line[index]) for line in lines) if name in _STRINGS else None
        drawn.add_column(_title(name), no_wrap=True, overflow="ellipsis", min_width=whole)
    for line in lines:
        drawn.add_row(*map(Text, line))
    Console(no_color=plain, highlight=False).print(drawn)


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


def say(message: str) -> None:
    """Print a remark where it is in no program's way."""
    click.echo(clean(message), err=True)
