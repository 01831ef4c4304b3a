"""Jobs from a file: JSON lines in, requests of a size that the server takes out.

Knows:         what a line may say, how many jobs and bytes go into one request.
Must not know: how a request is sent, what is printed.

A line is an object: `payload` (a string is a text, any other JSON value is JSON) or `payload_base64`,
`queue`, and the options of submit in their own spelling (`delay`: "5m", `max-retries` or
`max_retries`, `meta`) or the wire's (`delay_ms`, `run_at_ms`). What a line does not say, the command
line does. Blank lines are skipped.
"""

import base64
import binascii
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final, NamedTuple, cast

import msgspec
from msgspec import Raw

from jqctl import jsontext
from jqd.client import requests
from jqd.client.requests import JobOptions, SubmitGroup
from jqd.errors import InvalidArgument, JqdError

# Half of a frame: groups and their options come on top.
_REQUEST_BYTES_MAX: Final = 8 << 20
# A payload of 1 MiB with every byte escaped as \\u00xx, and its options.
_LINE_BYTES_MAX: Final = 8 << 20
# Sets of options that are remembered as checked.
_KNOWN_MAX: Final = 1_000

_ALIASES: Final = {"meta": "metadata"}
_MS: Final = frozenset(
    {"delay_ms", "lease_ms", "expires_ms", "result_ttl_ms", "dedupe_ttl_ms", "idempotency_ttl_ms"}
)
_TIMES: Final = frozenset({"delay", "delay_ms", "run_at", "run-at", "run_at_ms"})
_EXPIRIES: Final = frozenset({"expires", "expires_ms", "expires_at", "expires-at", "expires_at_ms"})
_OPTIONS: Final = frozenset(JobOptions.__annotations__)
_line_decoder: Final = msgspec.json.Decoder(dict[str, Raw])


class BadLine(Exception):
    """A line is not a job. Its message begins with the line's number."""


class Part(NamedTuple):
    """Jobs of one request, and the lines that they came from."""

    first_line: int
    last_line: int
    groups: list[SubmitGroup]


def parts(stream: BinaryIO, queue: str, options: JobOptions) -> Iterator[Part]:
    """Yield the jobs of a file in order. A part is yielded when all its lines are checked.

    Raises: BadLine.
    """
    reader = _Reader(queue, options)
    groups: list[SubmitGroup] = []
    first_line = last_line = count = size = number = 0
    while line := stream.readline(_LINE_BYTES_MAX + 1):
        number += 1
        if not line.strip():
            continue
        try:
            template, payload = reader.read(line)
        except (JqdError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise BadLine(f"line {number}: {error}") from None
        if count == requests.JOBS_PER_REQUEST_MAX or (count and size + len(payload) > _REQUEST_BYTES_MAX):
            yield Part(first_line, last_line, groups)
            groups, count, size = [], 0, 0
        if not count:
            first_line = number
        last_line = number
        if not groups or not _same(groups[-1], template):
            groups.append(msgspec.structs.replace(template, payloads=[]))
            size += len(str(template.metadata or ""))
        groups[-1].payloads.append(payload)
        count += 1
        size += len(payload)
    if count:
        yield Part(first_line, last_line, groups)


def _same(group: SubmitGroup, template: SubmitGroup) -> bool:
    return msgspec.structs.replace(group, payloads=template.payloads) == template


class _Reader:
    """Reads lines; remembers which options it has checked, since most lines say the same."""

    def __init__(self, queue: str, options: JobOptions) -> None:
        self._queue = queue
        self._options = options
        self._known: dict[tuple[bytes, str], SubmitGroup] = {}

    def read(self, line: bytes) -> tuple[SubmitGroup, bytes]:
        """Return what the line says, with the checked options in a group whose payload is empty."""
        if len(line) > _LINE_BYTES_MAX:
            raise InvalidArgument(f"more than {_LINE_BYTES_MAX} bytes: the limit of a line")
        try:
            line.decode()  # the decoder does not look into what it leaves raw
            fields = _line_decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            reason = jsontext.fault(line) or f"it is {jsontext.kind(line)}"
            raise InvalidArgument(f"not a JSON object: {reason}") from None
        payload, encoding = _payload(fields)
        if len(payload) > requests.PAYLOAD_BYTES_MAX:
            raise InvalidArgument(
                f"payload = {len(payload)} bytes: the limit is {requests.PAYLOAD_BYTES_MAX}"
            )
        key = (msgspec.json.encode(fields), encoding)
        template = self._known.get(key)
        if template is None:
            template = self._checked(fields, encoding)
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[key] = template
        return template, payload

    def _checked(self, fields: dict[str, Raw], encoding: str) -> SubmitGroup:
        options: dict[str, Any] = dict(self._options)
        if not _TIMES.isdisjoint(fields):  # a line's own time replaces the command line's
            options.pop("delay", None)
            options.pop("run_at", None)
        if not _EXPIRIES.isdisjoint(fields):
            options.pop("expires", None)
            options.pop("expires_at", None)
        queue = self._queue
        for said, raw in fields.items():
            value = msgspec.json.decode(raw)
            name = said.replace("-", "_")
            name = _ALIASES.get(name, name)
            if name == "queue":
                queue = value
            elif name in _MS:
                options[name.removesuffix("_ms")] = timedelta(milliseconds=value)
            elif name in ("run_at_ms", "expires_at_ms"):
                options[name.removesuffix("_ms")] = datetime.fromtimestamp(0, UTC) + timedelta(
                    milliseconds=value
                )
            elif name in _OPTIONS:
                options[name] = value
            else:
                raise InvalidArgument(f"{said!a}: no such option of a job")
        options["encoding"] = encoding
        (group,) = requests.group(queue, [b""], cast("JobOptions", options))
        return requests.validate(group)


def _payload(fields: dict[str, Raw]) -> tuple[bytes, str]:
    """Take the payload out of a line's fields. Returns bytes and their encoding."""
    raw = fields.pop("payload", None)
    coded = fields.pop("payload_base64", None)
    said = fields.pop("encoding", None)
    encoding = None if said is None else msgspec.json.decode(said, type=requests.Encoding)
    if coded is not None:
        if raw is not None:
            raise InvalidArgument("payload and payload_base64: give one of them")
        try:
            data = base64.b64decode(msgspec.json.decode(coded, type=str), validate=True)
        except (binascii.Error, msgspec.DecodeError) as error:
            raise InvalidArgument(f"payload_base64: {error}") from None
        if encoding == "json" and (wrong := jsontext.fault(data)):
            raise InvalidArgument(f"payload_base64 is not JSON: {wrong}")
        return data, encoding or "raw"
    if raw is None:
        return b"", encoding or "raw"
    text = bytes(raw)
    if encoding == "json" or (encoding is None and not text.startswith(b'"')):
        return text, "json"  # as it stands in the line: every digit is kept
    return msgspec.json.decode(raw, type=str).encode(), encoding or "text"
