"""A fact of the log as the map that JSON shows.

Knows:         which fields are ids, payloads, dates or secrets, whatever fact they stand in.
Must not know: which facts there are, files.

A session's id lets its holder take over a client's leases, so only a fingerprint of it is shown: equal ids can be
told by it, and no more.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, structs

from jqctl import output

_IDS: Final = frozenset({"first_id", "id", "next_id"})
_FINGERPRINT_CHARS: Final = 16


def to_record(place: Mapping[str, Any], change: Struct) -> dict[str, Any]:
    """Return one line of a dump: where the fact stands, then its fields."""
    return output.to_record(place) | _fields(change)


def _fields(thing: Struct) -> dict[str, Any]:
    fields = structs.asdict(thing)
    options = fields.get("options")
    said = fields.get("encoding") or fields.get("result_encoding") or getattr(options, "encoding", "raw")
    encoding = str(said)
    record: dict[str, Any] = {}
    for name, value in fields.items():
        record |= _field(name, value, encoding)
    return record


def _field(name: str, value: Any, encoding: str) -> dict[str, Any]:  # noqa: ANN401 - any field of any fact
    match name, value:
        case _, None:
            return {}
        case "session", bytes():
            return {name: _fingerprint(value)}
        case "sessions", list():
            return {name: [_fingerprint(each) if isinstance(each, bytes) else _plain(each) for each in value]}
        case "payloads", list():
            return {name: [output.said("payload", payload, encoding) for payload in value]}
        case (("payload" | "result"), bytes()):
            return output.said(name, value, encoding)
        case _, bytes():
            return output.said(name, value, "raw")
        case "ranges", list():
            return {name: [[str(first), count] for first, count in value]}
        case "jobs", list() if value and isinstance(value[0], tuple):
            return {name: [{"job_id": str(job_id), "due_ms": due_ms} for job_id, due_ms in value]}
        case "answers", list():
            return {name: [_answer(request_id, answer) for request_id, answer in value]}
        case _, int() if name in _IDS:
            return {name: str(value)}
        case _, Struct():
            return {name: _fields(value)}
        case _:
            return output.to_record({name: _plain(value)})


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Struct):
        return _fields(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(each) for each in value]
    return value


def _answer(request_id: int, answer: bytes | int) -> dict[str, Any]:
    """Show what a retry of a request would get: a lease's token, or the body of the reply as it was encoded."""
    said = {"token": str(answer)} if isinstance(answer, int) else output.said("reply", answer, "raw")
    return {"request_id": request_id, **said}


def _fingerprint(session: bytes) -> str:
    return hashlib.sha256(session).hexdigest()[:_FINGERPRINT_CHARS]
