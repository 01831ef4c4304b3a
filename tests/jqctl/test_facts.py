"""What the facts of a log look like."""

import base64

import pytest

from jqctl import facts
from jqd.core.changes import JobsDone
from jqd.core.model import Outcome


@pytest.mark.parametrize(
    ("result", "encoding", "shown"),
    [
        (b"sent", "text", {"result": "sent"}),
        (b"[1]", "json", {"result": [1]}),
        (b"sent", "raw", {"result_base64": base64.b64encode(b"sent").decode()}),
        (b"\x91\x01", "msgpack", {"result": [1], "result_base64": "kQE="}),
    ],
)
def test_a_result_is_shown_by_its_encoding_when_it_is_said_and_when_it_is_kept(result, encoding, shown):
    said = JobsDone(ranges=[(1, 1)], result=result, encoding=encoding)
    kept = Outcome(result=result, result_encoding=encoding)
    for fact in (said, kept):
        record = facts.to_record({}, fact)
        assert {name: record[name] for name in record if name in ("result", "result_base64")} == shown
