"""Jobs from JSON lines."""

import io
import json
from typing import Any, cast

import pytest

from jqctl import bulk
from jqctl.bulk import BadLine
from jqd.client.requests import JobOptions
from jqd.core.commands import SubmitGroup


def read(*lines: object, **options: Any) -> list[bulk.Part]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return list(bulk.parts(io.BytesIO(text.encode()), "q", cast("JobOptions", options)))


def one(line: object, **options: Any) -> SubmitGroup:
    ((_, _, (group,)),) = read(line, **options)
    return group


@pytest.mark.parametrize(
    ("line", "payload", "encoding"),
    [
        ({"payload": "hi"}, b"hi", "text"),
        ({"payload": {"a": 1}}, b'{"a": 1}', "json"),
        ('{"payload": 1.00000000000000000001}', b"1.00000000000000000001", "json"),
        ({"payload": None}, b"null", "json"),
        ({"payload": "hi", "encoding": "json"}, b'"hi"', "json"),
        ({"payload": "hi", "encoding": "raw"}, b"hi", "raw"),
        ({"payload_base64": "AP8="}, b"\0\xff", "raw"),
        ({}, b"", "raw"),
    ],
)
def test_a_payload_and_its_encoding(line, payload, encoding):
    group = one(line)
    assert (group.payloads, group.encoding) == ([payload], encoding)


def test_options_in_either_spelling():
    line = {"queue": "r", "priority": 2, "max-retries": 1, "max_crashes": 2, "lease_ms": 5_000, "meta": {"k": "v"},
            "run_at_ms": 1_000, "task": "t"}  # fmt: skip
    expected = SubmitGroup(
        queue="r", payloads=[b""], priority=2, max_retries=1, max_crashes=2, lease_ms=5_000, metadata={"k": "v"},
        run_at_ms=1_000, task="t",
    )  # fmt: skip
    assert one(line) == expected


def test_a_line_says_more_than_the_command_line():
    assert one({"priority": 2}, priority=1, lease="5s") == SubmitGroup(
        queue="q", payloads=[b""], priority=2, lease_ms=5_000
    )
    group = one({"delay": "1m"}, run_at="2030-01-01T00:00:00Z")
    assert group.delay_ms == 60_000 and group.run_at_ms is None


def test_lines_with_the_same_options_share_a_group():
    ((first, last, groups),) = read(
        {"payload": "a"}, "", {"payload": "b"}, {"payload": "c", "priority": 1}, {"payload": "d"}
    )
    assert (first, last) == (1, 5)
    assert [(group.payloads, group.priority) for group in groups] == [
        ([b"a", b"b"], 0),
        ([b"c"], 1),
        ([b"d"], 0),
    ]


def test_a_request_has_10000_jobs_or_8_mib():
    assert [(first, last) for first, last, _ in read(*[{}] * 20_001)] == [
        (1, 10_000),
        (10_001, 20_000),
        (20_001, 20_001),
    ]
    large = {"payload": "x" * (1 << 20)}
    assert [last for _, last, _ in read(*[large] * 9)] == [8, 9]
    assert read() == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not a JSON object: it ends too early, at column 2$"),
        ('{"payload": 1', "line 2: not a JSON object: it ends too early, at column 14$"),
        ('{"payload": "a}', "line 2: not a JSON object: unterminated string starting at column 13$"),
        ('{"payload": {bad}}', "line 2: not a JSON object: expecting property name .* at column 14$"),
        ('{"payload": 1} {}', "line 2: not a JSON object: extra data at column 16$"),
        ("hello", "line 2: not a JSON object: expecting value at column 1$"),
        ("[]", "line 2: not a JSON object: it is an array$"),
        ("5", "line 2: not a JSON object: it is a number$"),
        ("[" * 100_000, "line 2: not a JSON object: "),
        ('{"payload": ' + "[" * 100_000, "line 2: not a JSON object: nested too deeply$"),
        ({"prio": 1}, "line 2: 'prio': no such option"),
        ({"priority": "high"}, "line 2: .*priority"),
        ({"delay": "soon"}, "line 2: delay = 'soon'"),
        ({"delay_ms": "x"}, "line 2: "),
        ({"queue": "a b"}, "line 2: queue = 'a b'"),
        ({"queue": 5}, "line 2: "),
        ({"meta": "x"}, "line 2: "),
        ({"meta": {"a": 1}}, "line 2: .*metadata"),
        ({"encoding": "xml"}, "line 2: "),
        ({"payload": 5, "encoding": "text"}, "line 2: "),
        ({"payload": "a", "payload_base64": "AA=="}, "line 2: payload and payload_base64"),
        ({"payload_base64": "?"}, "line 2: payload_base64"),
        ({"payload_base64": 5}, "line 2: payload_base64: "),
        (
            {"payload_base64": "e2Jh", "encoding": "json"},
            "line 2: payload_base64 is not JSON: .* at column 2$",
        ),
        ({"payload": "x" * ((1 << 20) + 1)}, "line 2: payload = 1048577 bytes"),
        ({"payload": "x" * (8 << 20)}, "line 2: more than 8388608 bytes"),
    ],
)
def test_a_bad_line_is_named(line, message):
    with pytest.raises(BadLine, match=message):
        read({}, line)


@pytest.mark.parametrize(
    ("line", "byte"), [(b'{"\xff": 1}', 3), (b'{"payload": ["\xff"]}', 15), (b"\xff", 1)]
)
def test_a_line_that_is_no_utf_8_is_named(line, byte):
    with pytest.raises(BadLine, match=f"line 1: not a JSON object: no UTF-8 at byte {byte}$"):
        list(bulk.parts(io.BytesIO(line), "q", {}))


def test_time_beyond_every_calendar_is_a_bad_line():
    for option in ('"delay_ms":1000000000000000000000', '"run_at_ms":1e30'):
        with pytest.raises(BadLine, match="line 1: "):
            list(bulk.parts(io.BytesIO(b'{"payload":"x",' + option.encode() + b"}\n"), "q", {}))
