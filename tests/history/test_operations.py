"""What clients wrote down is read as far as it goes: they are killed too."""

import msgpack
import pytest

from tests.history.operations import NEVER, read_facts, read_operations

RECORDS = [
    ["hello", "5e55", "c1"],
    ["asked", 1, "c1.0", 10, "submit", {"payload": b"x"}],
    ["sent", 1, 2],
    ["asked", 2, "c1.1", 20, "lease", {}],
    ["told", 1, 30, 2, 1, "ok", 7, msgpack.packb({"job_id": 4})],
    ["knew", 1, 40, "ok"],
    ["sent", 2, 3],
    ["sent", 2, 9],
    ["knew", 2, 50, "request_timeout?"],
    ["asked", 3, "", 60, "release", {"items": []}],
]


def read(tmp_path, data: bytes):
    file = tmp_path / "c1"
    file.write_bytes(data)
    return read_operations(file)


def test_each_request_has_its_reply_its_ids_and_what_its_caller_knew(tmp_path):
    submit, lease, release = read(tmp_path, b"".join(map(msgpack.packb, RECORDS)))
    assert (submit.session, submit.worker, submit.actor, submit.args) == (
        "5e55",
        "c1",
        "c1.0",
        {"payload": b"x"},
    )
    assert (submit.invoked, submit.returned, submit.status, submit.lsn) == (10, 30, "ok", 7)
    assert (submit.body, submit.said, submit.ids, submit.sends) == ({"job_id": 4}, "ok", [2], 1)
    assert submit.is_answered and not submit.is_unknown
    assert (lease.ids, lease.returned, lease.said) == ([3, 9], NEVER, "request_timeout?")
    assert lease.is_unknown and not lease.is_answered
    assert release.actor == "" and not release.is_unknown, "it never left"


def test_file_that_ends_anywhere_is_read_up_to_there(tmp_path):
    data = b"".join(map(msgpack.packb, RECORDS))
    counts = [len(read(tmp_path, data[:size])) for size in range(len(data) + 1)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 3)


@pytest.mark.parametrize(
    ("status", "said", "is_unknown"),
    [
        ("", "connection_lost?", True),
        ("", "connection_lost", False),  # it was never sent, or only a read
        ("", "", True),  # its client was killed
        ("position_lost", "position_lost", True),
        ("busy", "busy", False),
        ("ok", "request_timeout?", False),  # the reply came after all
    ],
)
def test_outcome_is_unknown_where_nobody_can_tell(tmp_path, status, said, is_unknown):
    records = [*RECORDS[:3]]
    if status:
        records.append(["told", 1, 30, 2, 1, status, 7, msgpack.packb({})])
    if said:
        records.append(["knew", 1, 40, said])
    (one,) = read(tmp_path, b"".join(map(msgpack.packb, records)))
    assert one.is_unknown is is_unknown


def test_facts_have_numbers_and_know_their_record():
    lines = [
        b'{"lsn":1,"segment":1,"offset":64,"engine_ms":5,"wall_ms":9,"kind":"DaemonStarted","epoch":3}',
        b'{"lsn":2,"segment":1,"offset":99,"engine_ms":6,"kind":"JobsLeased","token":"12884901889","ranges":[["7",2]]}',
        b'{"lsn":3,"segment":1,"offset":99,"engine_ms":6,"kind":"JobsRetried","jobs":[{"job_id":"7","due_ms":0}]}',
    ]
    started, leased, retried = read_facts(lines)
    assert (started.lsn, started.engine_ms, started.kind, started.fields["epoch"]) == (
        1,
        5,
        "DaemonStarted",
        3,
    )
    assert (leased.fields["token"], leased.fields["ranges"]) == (3 << 32 | 1, [(7, 2)])
    assert retried.fields["jobs"] == [(7, 0)]
    assert started.record != leased.record == retried.record
