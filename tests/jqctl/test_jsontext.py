"""Where a text stops being JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jqctl import jsontext


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"{bad", "expecting property name enclosed in double quotes at column 2"),
        (b'{"a": 1', "it ends too early, at column 8"),
        (b'{"a":\n 1,\n x}', "expecting property name enclosed in double quotes at line 3 column 2"),
        (b"[1, 2", "it ends too early, at column 6"),
        (b'["a', "unterminated string starting at column 2"),
        (b"{} x", "extra data at column 4"),
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'"\xff"', "no UTF-8 at byte 2"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    ],
)
def test_a_fault_has_a_place(data, fault):
    assert jsontext.fault(data) == fault


def test_what_only_some_take_for_json_is_refused():
    assert "(byte 1)" in jsontext.fault(b"[NaN]")


@pytest.mark.parametrize(
    "data", [b"1e999", b"0.10000000000000000000001", b' {"a": [null]}\n', '"ä"'.encode()]
)
def test_good_json_is_good(data):
    assert jsontext.fault(data) == ""


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_what_is_written_as_json_is_good(value):
    assert jsontext.fault(json.dumps(value, ensure_ascii=False).encode()) == ""


@given(st.binary())
def test_any_bytes_are_judged_as_the_standard_library_does(data):
    try:
        json.loads(data.decode())
        is_json = True
    except ValueError:
        is_json = False
    assert is_json == (jsontext.fault(data) == "")


@pytest.mark.parametrize(
    ("data", "kind"), [("{}", "an object"), ("[]", "an array"), ('""', "a string"), ("5", "a number"),
                       ("1.5", "a number"), ("true", "a boolean"), ("null", "null")]
)  # fmt: skip
def test_types_have_names(data, kind):
    assert jsontext.kind(data.encode()) == kind
