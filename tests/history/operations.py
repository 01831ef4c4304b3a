"""A history: what clients asked and were told, with the times, and what the log of the daemon says happened.

    Operation   one request of one client, from the moment when it was asked to the moment when its caller knew
    Fact        one line of `jqctl wal dump`
    History     all of a run

Knows:         the two forms on disk: a client's file of records, and the dump's lines.
Must not know: what a verb means, what is right.

A client's file is a row of msgpack arrays, in the order in which things happened. Times are CLOCK_MONOTONIC in ns,
which all processes of a machine share. The end may be missing: clients are killed too.

    ["hello", session's fingerprint, worker]            what the requests after it were asked under
    ["asked", number, actor, time, verb, args]          args as on the wire; written before it can leave
    ["sent", number, request id]                        once for each id that it had
    ["told", number, time, request id, sends, status, lsn, body]    a reply came, body as it was encoded
    ["knew", number, time, said]                        its caller went on: "ok", or the code of an exception,
                                                        `?` behind it if the outcome is unknown
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack
import msgspec

# What an operation without an end ends in: later than everything.
NEVER: Final = 1 << 63
# Of a body in a client's file: a list of 1,000 jobs stays far below.
_RECORD_BYTES_MAX: Final = 32 << 20
_STRINGS_OF_NUMBERS: Final = ("first_id", "token")

Body = dict[str, Any]
Range = tuple[int, int]


@dataclass(slots=True, kw_only=True)
class Operation:
    """One request.

    Attributes:
        actor: who asked: one thread or task, which asks one thing after the other; "" for what the client sent of
            itself (it gives jobs back that nobody waits for).
        returned: when the reply came, also if nobody waited for it any more; NEVER: there was none.
        status: "ok" or an error code, as the reply said; "" without a reply.
        lsn: the reply's.
        said: what the client told its caller; "" if it never did.
        ids: request ids that it was sent under; replies came to the last one.
        sends: how often it was sent.
    """

    actor: str
    session: str
    worker: str
    verb: str
    args: Body
    invoked: int
    returned: int = NEVER
    status: str = ""
    lsn: int = 0
    body: Body = field(default_factory=dict)
    said: str = ""
    ids: list[int] = field(default_factory=list)
    sends: int = 0

    @property
    def is_answered(self) -> bool:
        return self.status == "ok"

    @property
    def is_unknown(self) -> bool:
        """Whether it may or may not have been carried out, as far as its client could tell."""
        if self.status:
            return self.status == "position_lost"  # the daemon itself does not know any more
        return bool(self.ids) and (not self.said or self.said.endswith("?"))

    def __str__(self) -> str:
        end = f"{self.status or self.said or 'no end'}"
        who = self.actor or f"client {self.session}"
        return f"{who}: {self.verb} {_shortened(self.args)} -> {end} lsn {self.lsn} {_shortened(self.body)}"


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 300 else f"{text[:297]}..."


@dataclass(slots=True)
class Fact:
    """One fact of the log. Facts of one record, which is one turn of the daemon, have the same `record`."""

    lsn: int
    record: int
    engine_ms: int
    kind: str
    fields: Body


@dataclass(slots=True, kw_only=True)
class History:
    """All of a run.

    starts: when the daemon was started, the first start included; a time before it can have done anything.
    """

    operations: list[Operation]
    facts: list[Fact]
    starts: list[int]


class Violation(Exception):
    """The history cannot be what a correct daemon did.

    reason: one of a few phrases; text: what contradicts what.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason


# --- clients' files -----------------------------------------------------------------------------


def read_operations(file: Path) -> list[Operation]:
    """Return what one client process asked, in that order."""
    operations: dict[int, Operation] = {}
    session = worker = ""
    for record in _records(file):
        match record:
            case ["hello", str(session), str(worker)]:
                pass
            case ["asked", int(number), str(actor), int(time), str(verb), args]:
                operations[number] = Operation(
                    actor=actor, session=session, worker=worker, verb=verb, args=args, invoked=time
                )
            case ["sent", int(number), int(request_id)]:
                operations[number].ids.append(request_id)
            case ["told", int(number), int(time), _, int(sends), str(status), int(lsn), bytes(body)]:
                one = operations[number]
                one.returned, one.sends, one.status, one.lsn = time, sends, status, lsn
                one.body = msgpack.unpackb(body)
            case ["knew", int(number), int(_), str(said)]:
                if number in operations:  # else the client itself refused: nothing was asked
                    operations[number].said = said
            case _:
                raise AssertionError(f"{file}: {record!r}")
    return list(operations.values())


def _records(file: Path) -> Iterator[list[Any]]:
    unpacker = msgpack.Unpacker(max_buffer_size=_RECORD_BYTES_MAX)
    data = file.read_bytes()
    for start in range(0, len(data), _RECORD_BYTES_MAX // 2):
        unpacker.feed(data[start : start + _RECORD_BYTES_MAX // 2])
        yield from unpacker


# --- the dump -----------------------------------------------------------------------------------


def read_facts(lines: Iterable[bytes]) -> list[Fact]:
    """Return the facts of a dump, numbers as numbers."""
    facts: list[Fact] = []
    place: object = None
    record = 0
    for line in lines:
        fields = msgspec.json.decode(line)
        here = (fields.pop("segment", None), fields.pop("offset", None))
        if here != place:
            place, record = here, record + 1
        facts.append(
            Fact(
                fields.pop("lsn"),
                record,
                fields.pop("engine_ms", 0),
                fields.pop("kind"),
                _with_numbers(fields),
            )
        )
    return facts


def _with_numbers(fields: Body) -> Body:
    for name in _STRINGS_OF_NUMBERS:
        if name in fields:
            fields[name] = int(fields[name])
    if "ranges" in fields:
        fields["ranges"] = [(int(first), count) for first, count in fields["ranges"]]
    if "jobs" in fields:
        fields["jobs"] = [(int(job["job_id"]), job["due_ms"]) for job in fields["jobs"]]
    return fields


def ids_in(ranges: Iterable[Iterable[int]]) -> Iterator[int]:
    """Yield the ids that ranges mean, in their order."""
    for first, count in ranges:
        yield from range(first, first + count)
