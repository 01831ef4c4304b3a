"""What reaches a terminal or a program."""

import json

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
        (b"\x90", "msgpack", {"payload_base64": "kA=="}),
        (b"\xff", "text", {"payload_base64": "/w=="}),
        (b"{", "json", {"payload_base64": "ew=="}),
        (b"[" * 3_000, "json", {"payload_base64": "W1tb" * 1_000}),
    ],
)
def test_a_payload_is_shown_by_its_encoding(payload, encoding, shown):
    assert output.to_record({"payload": payload, "encoding": encoding}) == {**shown, "encoding": encoding}


def test_dates_have_a_twin_and_none_is_left_out():
    assert output.to_record({"wall_ms": 0, "created_wall_ms": 1, "run_at_ms": None, "lease_ms": 5}) == {
        "wall_ms": 0,
        "at": "1970-01-01T00:00:00.000Z",
        "created_wall_ms": 1,
        "created_at": "1970-01-01T00:00:00.001Z",
        "lease_ms": 5,
    }


def test_a_long_cell_is_cut_and_an_empty_one_is_seen():
    assert output.cell("payload", b"x" * 1_000) == "x" * 200 + "..."
    assert output.cell("error", "") == output.cell("task", None) == "-"
    assert output.cell("existing", False) == "no"


def test_a_table_is_aligned_and_whole_where_no_terminal_is(capsys):
    output.table(("job_id", "created_wall_ms"), [("1", "x"), ("1000", "y")])
    assert capsys.readouterr().out == "JOB_ID  CREATED_AT\n1       x\n1000    y\n"


def test_a_terminal_gets_ids_whole(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    output.table(("job_id", "token", "payload"), [("1", "7710767980648333313", "[red]" * 20)])
    out = capsys.readouterr().out
    assert "7710767980648333313" in out and "[red]" in out and "\x1b" not in out


def test_details_spread_maps_and_lists(capsys):
    output.details({"job_id": 1, "jobs": {"ready": 2}, "attempts": [{"error": "a\n"}]})
    assert capsys.readouterr().out.splitlines() == [
        "job_id       1",
        "jobs.ready   2",
        'attempts[0]  {"error":"a\\n"}',
    ]
