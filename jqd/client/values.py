"""What a user says, turned into what the wire says: durations, dates, payloads, addresses.

Knows:         the spellings that are accepted, and how to refuse the others.
Must not know: which command a value belongs to, connections. Ranges are the server's to check.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Struct, UnsetType

from jqd.core.model import Encoding, RetryPolicy, check_name, shorten
from jqd.errors import InvalidArgument, JqdError

Duration = float | timedelta | str
"""Seconds, a timedelta, or a text: `500ms`, `30s`, `5m`, `1h30m`, `2d`; a bare number means seconds."""

Date = datetime | str
"""A datetime with a time zone, or ISO 8601 with `Z` or an offset."""

Payload = bytes | bytearray | memoryview | str
"""bytes are sent as they are (encoding `raw`), a str as UTF-8 (encoding `text`)."""

DEFAULT_PORT: Final = 7717
DEFAULT_URL: Final = f"jqd://127.0.0.1:{DEFAULT_PORT}"

# --- durations and dates ----------------------------------------------------------------------

_UNIT_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_WHOLE: Final = re.compile(rf"(?:{_PART.pattern})+")
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
# Far beyond every limit of the server, and within what a float counts exactly.
_MS_MAX: Final = 1 << 53


def to_ms(field: str, value: Duration) -> int:
    """Turn a duration into whole milliseconds, rounded.

    Args:   field: what the caller calls it, for the message.
    Raises: InvalidArgument: not a duration, negative, not finite.
    """
    ms = _ms(value)
    if ms is None:
        # A text may have come from a command line or a file, where nobody can say timedelta.
        others = "" if isinstance(value, str) else "a timedelta, "
        raise InvalidArgument(
            f"{field} = {shorten(value)}: a duration is seconds, {others}or a text such as 500ms, 30s, 5m, 1h30m"
        )
    if not 0 <= ms <= _MS_MAX:  # NaN is not in any range either
        raise InvalidArgument(f"{field} = {shorten(value)}: a duration must be finite and not negative")
    return round(ms)


def _ms(value: Duration) -> float | None:
    match value:
        case bool():
            return None
        case int() | float():
            return value * 1_000 if abs(value) <= _MS_MAX else math.inf
        case timedelta():
            return value / timedelta(milliseconds=1)
        case str() if _NUMBER.fullmatch(value):
            return float(value) * 1_000
        case str() if _WHOLE.fullmatch(value):
            return math.fsum(float(number) * _UNIT_MS[unit] for number, unit in _PART.findall(value))
        case _:
            return None


def to_optional_ms(field: str, value: Duration | None) -> int | None:
    """Turn a duration into whole milliseconds; None stays None."""
    return None if value is None else to_ms(field, value)


# How the decoder of the server says that a time is out of its range: "lease: wait_ms = 40000: expected `int` <= 30000".
_RANGE: Final = re.compile(r"expected `int` (?P<sign>[<>]=) (?P<limit>-?[0-9]+)")
_OUT_OF_RANGE: Final = re.compile(rf"(?P<head>.*?)(?P<field>\w+)_ms = (?P<value>-?[0-9]+): {_RANGE.pattern}")


def in_own_words(error: JqdError) -> JqdError:
    """Return a refusal in the words of who said the duration: `wait = 40s: at most 30s`, not wait_ms and 40000."""
    found = _OUT_OF_RANGE.fullmatch(error.message) if isinstance(error, InvalidArgument) else None
    if found is None or found["field"] == "run_at":
        return error
    return InvalidArgument(
        f"{found['head']}{found['field']} = {from_ms(int(found['value']))}: {_bound(found)}",
        details=error.details,
        retry_after_ms=error.retry_after_ms,
    )


def _bound(found: re.Match[str]) -> str:
    """Say a limit that _RANGE has found as a duration."""
    return f"at {'most' if found['sign'] == '<=' else 'least'} {from_ms(int(found['limit']))}"


def from_ms(ms: int) -> str:
    """Return a duration as `to_ms` reads it, in the largest unit that says it exactly."""
    unit = next(unit for unit, size in reversed(_UNIT_MS.items()) if ms % size == 0)
    return f"{ms // _UNIT_MS[unit]}{unit}" if ms else "0s"


def to_wall_ms(field: str, value: Date) -> int:
    """Turn a date into unix milliseconds, rounded down.

    Raises: InvalidArgument: not a date, or one without a time zone: it would mean another moment on
            another machine.
    """
    date = value
    if isinstance(date, str):
        try:
            date = datetime.fromisoformat(date)
        except ValueError:
            date = ""
    if not isinstance(date, datetime):
        others = "" if isinstance(value, str) else "a datetime or "
        raise InvalidArgument(
            f"{field} = {shorten(value)}: a date is {others}ISO 8601, such as 2030-01-31T08:00:00Z"
        )
    if date.tzinfo is None or date.utcoffset() is None:
        text = "add Z or an offset such as +02:00"
        how = text if isinstance(value, str) else "datetime.now(UTC), not datetime.now()"
        raise InvalidArgument(f"{field} = {shorten(value)}: a date needs a time zone: {how}")
    return (date - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def to_name(field: str, value: str) -> str:
    """Return a name of a queue, a task or a key, as it is.

    Raises: InvalidArgument: no name is spelled so.
    """
    check_name(field, value)
    return value


# --- retry policies ---------------------------------------------------------------------------

Retry = RetryPolicy | Mapping[str, object] | str
"""How long a job waits after a failure: a RetryPolicy, its fields as a map, or a text: `exponential`,
`exponential,base=2s,factor=1.5,cap=10m,jitter=10%`, `linear,base=5s,cap=5m`, `fixed,30s`, `list,1s,10s,5m`."""


def to_retry(field: str, value: Retry) -> RetryPolicy:
    """Read a retry policy. A text is its kind and then, between commas, what it says; a bare duration is `base`, in
    a list the next delay.

    Raises: InvalidArgument: not one of these. Whether it makes sense is the server's to check.
    """
    if isinstance(value, RetryPolicy):
        return value
    try:
        fields = _retry_fields(field, value) if isinstance(value, str) else dict(value)
        return msgspec.convert(fields, RetryPolicy)
    except (TypeError, ValueError, OverflowError) as error:  # what msgspec raises is one of the first two
        what, _, path = str(error).partition(" - at `$.")
        if path.startswith("kind"):
            what = "it begins with one of exponential, linear, fixed, list"
        elif path:
            what = _in_own_words(path.rstrip("`"), f"{what[:1].lower()}{what[1:]}")
        raise InvalidArgument(f"{field} = {shorten(value)}: {what}") from None


def _in_own_words(path: str, what: str) -> str:
    """Say what is wrong with a part of a policy: a duration that is out of its range as `base: at most 366d`."""
    found = _RANGE.fullmatch(what)
    if found is None or "_ms" not in path:
        return f"{path}: {what}"
    return f"{path.replace('_ms', '')}: {_bound(found)}"


def _retry_fields(field: str, text: str) -> dict[str, object]:
    kind, *parts = (part.strip() for part in text.split(","))
    fields: dict[str, object] = {"kind": kind}
    delays: list[int] = []
    for part in parts:
        name, said, value = part.partition("=")
        match name if said else "":
            case "" if kind == "list":
                delays.append(to_ms(field, part))
                continue
            case "" | "base":
                name, found = "base_ms", to_ms(f"{field} base", value if said else part)
            case "cap":
                name, found = "cap_ms", to_ms(f"{field} cap", value)
            case "factor":
                name, found = "factor_percent", round(float(value) * 100)
            case "jitter":
                name, found = "jitter_percent", int(value.removesuffix("%"))
            case _:
                raise ValueError(f"{part!r} is none of base=, factor=, cap=, jitter=")
        if name in fields:
            raise ValueError(f"{part!r} is said twice")
        fields[name] = found
    if delays:
        fields["delays_ms"] = delays
    return fields


# --- payloads ---------------------------------------------------------------------------------


def to_bytes(
    field: str, value: Payload | None, json: object | UnsetType = UNSET, encoding: Encoding | None = None
) -> tuple[bytes, Encoding]:
    """Turn a payload, or a value to be sent as JSON, into bytes and their encoding.

    Args:
        value: see Payload. None: nothing was given.
        json: anything that msgspec.json can encode, None included; instead of `value`.
        encoding: says what the bytes are, where it is not `raw` or `text` by their type.
    Raises: InvalidArgument: both were given, or it cannot be encoded.
    """
    if json is not UNSET:
        if value is not None:
            raise InvalidArgument(f"{field} and json: give one of them")
        try:
            return msgspec.json.encode(json), "json"
        except (TypeError, ValueError, RecursionError, msgspec.EncodeError) as error:
            raise InvalidArgument(f"json = {shorten(json)}: {error}") from None
    if encoding is not None and encoding not in get_args(Encoding):
        raise InvalidArgument(f"encoding = {shorten(encoding)}: known are {' '.join(get_args(Encoding))}")
    match value:
        case None:
            return b"", encoding or "raw"
        case str():
            try:
                return value.encode(), encoding or "text"
            except UnicodeEncodeError as error:
                raise InvalidArgument(f"{field} = {shorten(value)}: no UTF-8: {error.reason}") from None
        case bytes() | bytearray() | memoryview():
            return bytes(value), encoding or "raw"
        case _:
            raise InvalidArgument(
                f"{field} = {shorten(value)}: give bytes or str, or anything else as json=..."
            )


def from_bytes(data: bytes, encoding: Encoding) -> object:
    """Turn bytes into what their encoding says: bytes, str, or the value in JSON or msgpack.

    Raises: InvalidArgument: they are something else.
    """
    try:
        match encoding:
            case "text":
                return data.decode()
            case "json":
                return msgspec.json.decode(data)
            case "msgpack":
                import msgpack

                return msgpack.unpackb(data)
            case _:
                return data
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        raise InvalidArgument(f"{len(data)} bytes are not {encoding}: {error}") from None


# --- addresses --------------------------------------------------------------------------------


class TcpAddress(Struct, frozen=True):
    host: str
    port: int


class UnixAddress(Struct, frozen=True):
    path: str


Address = TcpAddress | UnixAddress


def to_address(url: str, field: str = "url") -> Address:
    """Read `jqd://HOST[:PORT]` or `unix:///PATH`.

    Args:   field: what the caller calls it, for the message.
    Raises: InvalidArgument.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _no_address(field, url) from None
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise _no_address(field, url)
    match parts.scheme:
        case "unix" if not parts.netloc and len(parts.path) > 1:
            return UnixAddress(parts.path)
        case "jqd" if host and parts.path in ("", "/") and port != 0:
            return TcpAddress(host, port or DEFAULT_PORT)
        case _:
            raise _no_address(field, url)


def _no_address(field: str, url: str) -> InvalidArgument:
    return InvalidArgument(f"{field} = {shorten(url)}: a server is jqd://HOST:PORT or unix:///PATH")
