"""What reaches a terminal or a program."""

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jqctl import output


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 漢 🙂", "plain ä 漢 🙂"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202etxt", "\\u202etxt"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_a_terminal_acts_on_is_escaped(text, shown):
    assert output.clean(text) == shown


@given(st.text())
def test_a_json_line_is_one_line_of_what_went_in(text):
    line = output.to_json({"payload": text}).decode()
    assert line.endswith("\n") and json.loads(line) == {"payload": text}
    assert output.clean(line[:-1]) == line[:-1]


@pytest.mark.parametrize(
    ("payload", "encoding", "shown"),
    [
        (b"hi", "text", {"payload": "hi"}),
        (b"[1,\n 2]", "json", {"payload": [1, 2]}),
        (b"hi", "raw", {"payload_base64": "aGk="}),
        (b"\x90", "msgpack", {"payload": [], "payload_base64": "kA=="}),
        (b"\xc1", "msgpack", {"payload_base64": "wQ=="}),
        (b"\xff", "text", {"payload_base64": "/w=="}),
        (b"{", "json", {"payload_base64": "ew=="}),
        (b"[" * 3_000, "json", {"payload_base64": "W1tb" * 1_000}),
    ],
)
def test_a_payload_is_shown_by_its_encoding(payload, encoding, shown):
    assert output.to_record({"payload": payload, "encoding": encoding}) == {**shown, "encoding": encoding}


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ("a", '"a"'),
        ({"to": "ada", "n": [1, -2.5, True, None]}, '{"to":"ada","n":[1,-2.5,true,null]}'),
        (b"caf\xc3\xa9", '"café"'),
        ({"photo": b"\x89PNG\n"}, r'{"photo":"\\x89PNG\n"}'),
        (datetime(2030, 1, 31, 8, 0, 0, 5, UTC), '"2030-01-31T08:00:00.000005Z"'),
        (UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        (Decimal("1.10"), '"1.10"'),
        (Colour.RED, '"red"'),
        ({1: "a", (2, "b"): "c", b"\xff": 3}, r'{"1":"a","[2,\"b\"]":"c","\\xff":3}'),
        ([float("nan"), float("-inf")], '["nan","-inf"]'),
        (msgspec.msgpack.Ext(5, b"\xffx"), r'"ext 5: \\xffx"'),
        (1 << 63, "9223372036854775808"),
        ("\x1b[31m\u202e", r'"\u001b[31m\u202e"'),
        (["x"] * 100, "[" + '"x",' * 49 + '"x"...'),
    ],
)
def test_what_a_typed_task_takes_and_returns_can_be_read(value, text):
    data = msgspec.msgpack.encode(value)
    job = {"payload": data, "encoding": "msgpack", "result": data, "result_encoding": "msgpack"}
    shown = output.readable(job)
    assert output.cell("payload", shown["payload"]) == output.cell("result", shown["result"]) == text
    record = output.to_record(job)
    assert record["payload"] == record["result"] == json.loads(shown["result"])
    assert base64.b64decode(record["payload_base64"]) == base64.b64decode(record["result_base64"]) == data


# Each of them says of itself that it is msgpack, and is not, or not what anybody could read.
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        b"hello",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xa2\xff\xff",
        b"\x81\x80\x01",
        b"\x81\xd4\x05\x01\x02",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\x91" * 101 + b"\x01",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\xdd\x00\xff\xff\xff" * 100_000,
    ],
    ids=lambda data: data[:8].hex(),
)
def test_what_only_claims_to_be_msgpack_is_shown_as_its_bytes(data):
    job = {"payload": data, "encoding": "msgpack"}
    assert output.readable(job) == job
    encoded = base64.b64encode(data).decode()
    assert output.to_record(job) == {"payload_base64": encoded, "encoding": "msgpack"}


def test_what_is_nested_as_deep_as_it_may_be_is_shown():
    data = b"\x91" * 100 + b"\x01"
    shown = output.readable({"payload": data, "encoding": "msgpack"})
    assert shown["payload"] == "[" * 100 + "1" + "]" * 100


@given(st.binary(max_size=100))
def test_no_bytes_that_claim_to_be_msgpack_are_too_much(data):
    job = {"result": data, "result_encoding": "msgpack"}
    text = output.cell("result", output.readable(job)["result"])
    assert output.clean(text) == text
    line = output.to_json(output.to_record(job)).decode()
    assert base64.b64decode(json.loads(line)["result_base64"]) == data
    assert output.clean(line[:-1]) == line[:-1]


def test_dates_have_a_twin_and_none_is_left_out():
    assert output.to_record({"wall_ms": 0, "created_wall_ms": 1, "run_at_ms": None, "lease_ms": 5}) == {
        "wall_ms": 0,
        "at": "1970-01-01T00:00:00.000Z",
        "created_wall_ms": 1,
        "created_at": "1970-01-01T00:00:00.001Z",
        "lease_ms": 5,
    }


@pytest.mark.parametrize("ms", [253_402_300_799_999 + 1, 1 << 62, -1])
def test_what_is_no_date_is_shown_as_the_number_that_it_is(ms):
    assert output.to_record({"wall_ms": ms}) == {"wall_ms": ms}
    assert output.cell("wall_ms", ms) == str(ms)


def test_the_last_date_is_one():
    last = 253_402_300_799_999
    assert output.to_record({"run_at_ms": last})["run_at"] == "9999-12-31T23:59:59.999Z"
    assert output.cell("run_at_ms", last) == "9999-12-31T23:59:59.999Z"


def test_a_long_cell_is_cut_and_an_empty_one_is_seen():
    assert output.cell("payload", b"x" * 1_000) == "x" * 200 + "..."
    assert output.cell("error", "") == output.cell("task", None) == "-"
    assert output.cell("existing", False) == "no"


def test_a_table_is_aligned_and_whole_where_no_terminal_is(capsys):
    output.table(("job_id", "created_wall_ms"), [("1", "x"), ("1000", "y")])
    assert capsys.readouterr().out == "JOB_ID  CREATED_AT\n1       x\n1000    y\n"


@pytest.fixture
def terminal(capsys, monkeypatch):
    """Draws a table on a terminal of that width; returns its lines."""
    monkeypatch.setenv("NO_COLOR", "1")

    def draw(width: int, columns: Sequence[str], *rows: Sequence[str]) -> list[str]:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))
        output.table(columns, rows)
        lines: list[str] = capsys.readouterr().out.splitlines()
        return lines

    return draw


WIDTHS = pytest.mark.parametrize("width", [1, 40, 50, 80])
JOB_ID, TOKEN = str((1 << 60) - 1), str((1 << 64) - 1)


@WIDTHS
def test_a_terminal_gets_ids_tokens_and_names_whole(terminal, width):
    row = (JOB_ID, TOKEN, "12", "[red]" * 20, "a-queue-with-a-long-name", "resize-photo")
    head, line = terminal(width, ("job_id", "token", "attempt", "payload", "queue", "task"), row)
    assert head.split() == ["JOB_ID", "TOKEN", "ATTEMPT", "PAYLOAD", "QUEUE", "TASK"]
    assert line.split() == [JOB_ID, TOKEN, "12", "[red][red][…", "a-queue-with-a-long-name", "resize-photo"]


@WIDTHS
def test_a_terminal_gets_counts_whole(terminal, width):
    columns = ("queue", "delayed", "ready", "leased", "done", "dead", "cancelled", "expired")
    row = ("emails", *(str(25_000_000 + n) for n in range(7)))
    head, line = terminal(width, columns, row)
    assert head.split() == [name.upper() for name in columns] and line.split() == list(row)


@WIDTHS
def test_a_terminal_gets_states_and_dates_whole(terminal, width):
    columns = ("job_id", "queue", "state", "attempt", "priority", "created_wall_ms", "error")
    row = (
        "17",
        "emails",
        "cancelled",
        "1",
        "-32768",
        "2030-01-31T08:00:00.000Z",
        "connection-refused-by-peer",
    )
    _, line = terminal(width, columns, row)
    assert line.split() == [*row[:-1], "connection-…"]


def test_what_may_be_cut_has_the_room_that_is_left(terminal):
    (_, line) = terminal(40, ("job_id", "payload"), ("1", "x" * 100))
    assert line == "1       " + "x" * 31 + "…" and len(line) == 40
    assert terminal(40, ("job_id", "payload"), ("1", "x" * 32))[1] == "1       " + "x" * 32


def test_wide_characters_keep_the_columns_in_line(terminal):
    lines = terminal(30, ("payload", "queue"), ("漢" * 20, "q"), ("ab", "q"))
    assert lines == ["PAYLOAD                  QUEUE", "漢漢漢漢漢漢漢漢漢漢漢…  q", "ab" + " " * 23 + "q"]


@pytest.mark.parametrize(
    ("is_terminal", "environ", "coloured"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),  # no-color.org: "when present and not an empty string"
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (True, {"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        (True, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_whom_they_are_wanted(capsys, monkeypatch, is_terminal, environ, coloured):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environ}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    output.table(("queue",), [("q",)])
    assert capsys.readouterr().out == ("\x1b[1mQUEUE\x1b[0m\nq\n" if coloured else "QUEUE\nq\n")


def test_details_spread_maps_and_lists(capsys):
    output.details({"job_id": 1, "jobs": {"ready": 2}, "attempts": [{"error": "a\n"}]})
    assert capsys.readouterr().out.splitlines() == [
        "job_id       1",
        "jobs.ready   2",
        'attempts[0]  {"error":"a\\n"}',
    ]
