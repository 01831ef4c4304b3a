"""What a user may say, and what is refused."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jqd.client.values import (
    TcpAddress,
    UnixAddress,
    from_bytes,
    from_ms,
    in_own_words,
    to_address,
    to_bytes,
    to_ms,
    to_optional_ms,
    to_retry,
    to_wall_ms,
)
from jqd.core.model import RetryPolicy
from jqd.errors import Busy, InvalidArgument


@pytest.mark.parametrize(
    ("said", "ms"),
    [
        (0, 0),
        (30, 30_000),
        (0.0015, 2),
        (1.5, 1_500),
        (timedelta(minutes=2), 120_000),
        ("90", 90_000),
        ("0.5", 500),
        ("500ms", 500),
        ("30s", 30_000),
        ("5m", 300_000),
        ("1h30m", 5_400_000),
        ("1.5h", 5_400_000),
        ("2d", 172_800_000),
    ],
)
def test_a_duration_in_any_spelling(said, ms):
    assert to_ms("delay", said) == ms


@pytest.mark.parametrize(
    "said",
    [
        -1,
        float("nan"),
        float("inf"),
        10**30,
        timedelta(seconds=-1),
        "",
        "5 m",
        "m",
        "5w",
        "-5s",
        "1e3",
        "٣s",
        True,
        None,
        b"5",
    ],
)
def test_what_is_no_duration_is_refused_by_name(said):
    with pytest.raises(InvalidArgument, match=r"^delay = .*duration"):
        to_ms("delay", said)


@pytest.mark.parametrize(("said", "named"), [("soon", False), (b"5", True)])
def test_advice_is_for_who_said_it(said, named):
    """A text may come from a command line, where nobody can say timedelta."""
    with pytest.raises(InvalidArgument) as caught:
        to_ms("delay", said)
    assert ("timedelta" in str(caught.value)) is named
    with pytest.raises(InvalidArgument) as caught:
        to_wall_ms("run_at", said)
    assert ("datetime" in str(caught.value)) is named


def test_missing_zone_has_advice_for_who_said_it():
    with pytest.raises(InvalidArgument, match=r"add Z or an offset such as \+02:00$"):
        to_wall_ms("run_at", "2030-01-31T08:00:00")
    with pytest.raises(InvalidArgument, match=r"datetime.now\(UTC\), not datetime.now\(\)$"):
        to_wall_ms("run_at", datetime(2030, 1, 31))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("lease: wait_ms = 40000: expected `int` <= 30000", "lease: wait = 40s: at most 30s"),
        ("submit: lease_ms = 999: expected `int` >= 1000", "submit: lease = 999ms: at least 1s"),
        ("submit: delay_ms = -1: expected `int` >= 0", "submit: delay = -1ms: at least 0s"),
        (
            "submit_many: groups[0].delay_ms = 31622460000: expected `int` <= 31622400000",
            "submit_many: groups[0].delay = 527041m: at most 366d",
        ),
        ("submit: run_at_ms = -1: expected `int` >= 0", None),
        ("submit: priority = 32768: expected `int` <= 32767", None),
        ("lease: wait_ms: expected `int`, got `str`", None),
    ],
)
def test_range_of_a_duration_is_said_as_the_duration_was(theirs, ours):
    error = InvalidArgument(theirs, details={"a": 1}, retry_after_ms=5)
    said = in_own_words(error)
    assert str(said) == (ours or theirs) and (said is error) is (ours is None)
    assert type(said) is InvalidArgument and (said.details, said.retry_after_ms) == ({"a": 1}, 5)


def test_other_refusals_are_left_as_they_are():
    error = Busy("wait_ms = 40000: expected `int` <= 30000")
    assert in_own_words(error) is error


@given(st.integers(0, 10**13))
def test_duration_that_is_shown_can_be_said(ms):
    assert to_ms("x", from_ms(ms)) == ms


def test_no_duration_stays_none():
    assert to_optional_ms("lease", None) is None and to_optional_ms("lease", 1) == 1_000


@given(st.integers(0, 10**9))
def test_whole_milliseconds_come_through_exactly(ms):
    assert to_ms("x", ms / 1_000) == to_ms("x", timedelta(milliseconds=ms)) == to_ms("x", f"{ms}ms") == ms


@pytest.mark.parametrize(
    "said",
    [
        datetime(2030, 1, 31, 8, tzinfo=UTC),
        datetime(2030, 1, 31, 10, tzinfo=timezone(timedelta(hours=2))),
        "2030-01-31T08:00:00Z",
        "2030-01-31T10:00:00.000999+02:00",
    ],
)
def test_a_date_in_any_zone(said):
    assert to_wall_ms("run_at", said) == 1_896_076_800_000


@pytest.mark.parametrize("said", [datetime(2030, 1, 31), "2030-01-31T08:00:00", "2030-01-31"])  # noqa: DTZ001
def test_a_date_without_a_zone_is_refused(said):
    with pytest.raises(InvalidArgument, match=r"run_at = .*needs a time zone"):
        to_wall_ms("run_at", said)


@pytest.mark.parametrize("said", ["", "tomorrow", 1_896_076_800, None])
def test_what_is_no_date_is_refused(said):
    with pytest.raises(InvalidArgument, match=r"run_at = .*a date is"):
        to_wall_ms("run_at", said)


@pytest.mark.parametrize(
    ("value", "more", "result"),
    [
        (None, {}, (b"", "raw")),
        (b"\0", {}, (b"\0", "raw")),
        (bytearray(b"x"), {}, (b"x", "raw")),
        ("ä", {}, ("ä".encode(), "text")),
        ("{}", {"encoding": "json"}, (b"{}", "json")),
        (b"\x80", {"encoding": "msgpack"}, (b"\x80", "msgpack")),
        (None, {"json": None}, (b"null", "json")),
        (None, {"json": {"a": [1, 2.5]}}, (b'{"a":[1,2.5]}', "json")),
    ],
)
def test_a_payload_and_its_encoding(value, more, result):
    assert to_bytes("payload", value, **more) == result


@pytest.mark.parametrize(
    ("value", "more", "message"),
    [
        (b"x", {"json": 1}, "payload and json: give one"),
        (None, {"json": object()}, "json = <object"),
        (b"x", {"encoding": "xml"}, "encoding = 'xml': known are raw text json msgpack"),
        ("\ud800", {}, "no UTF-8"),
        ({"a": 1}, {}, "give bytes or str"),
    ],
)
def test_what_is_no_payload_is_refused(value, more, message):
    with pytest.raises(InvalidArgument, match=message):
        to_bytes("payload", value, **more)


VALUE = {"a": [1, None, "ä"]}


@pytest.mark.parametrize(
    ("data", "encoding", "value"),
    [
        (b"\0", "raw", b"\0"),
        ("ä".encode(), "text", "ä"),
        (b'{"a":[1,null,"\xc3\xa4"]}', "json", VALUE),
        (msgpack.packb(VALUE), "msgpack", VALUE),
    ],
)
def test_a_payload_comes_back_as_what_it_was(data: bytes, encoding: Any, value):
    assert from_bytes(data, encoding) == value


@pytest.mark.parametrize(
    ("data", "encoding"),
    [(b"\xff", "text"), (b"{", "json"), (b"[" * 100_000, "json"), (b"\xc1", "msgpack"), (b"", "msgpack")],
)
def test_bytes_that_are_not_their_encoding_are_refused(data, encoding):
    with pytest.raises(InvalidArgument, match=f"are not {encoding}"):
        from_bytes(data, encoding)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("jqd://127.0.0.1:7717", TcpAddress("127.0.0.1", 7717)),
        ("jqd://queue.example", TcpAddress("queue.example", 7717)),
        ("jqd://[::1]:1/", TcpAddress("::1", 1)),
        ("unix:///run/jqd/jqd.sock", UnixAddress("/run/jqd/jqd.sock")),
    ],
)
def test_an_address(url, address):
    assert to_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://x",
        "jqd://",
        "jqd://h:0",
        "jqd://h:99999",
        "jqd://h:x",
        "jqd://h/path",
        "jqd://u@h",
        "jqd://h?x=1",
        "unix://",
        "unix:///",
        "unix://host/path",
        "jqd://[::1",
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InvalidArgument, match=r"url = .*jqd://HOST:PORT or unix:///PATH"):
        to_address(url)


@pytest.mark.parametrize(
    ("said", "policy"),
    [
        ("exponential", RetryPolicy()),
        (
            "exponential, base=2s, factor=1.5, cap=10m, jitter=10%",
            RetryPolicy(base_ms=2_000, factor_percent=150, cap_ms=600_000, jitter_percent=10),
        ),
        ("linear,5s,cap=5m", RetryPolicy(kind="linear", base_ms=5_000, cap_ms=300_000)),
        ("fixed,30,jitter=0", RetryPolicy(kind="fixed", base_ms=30_000, jitter_percent=0)),
        ("list,0,1s,2h", RetryPolicy(kind="list", delays_ms=(0, 1_000, 7_200_000))),
        ({"kind": "fixed", "base_ms": 5}, RetryPolicy(kind="fixed", base_ms=5)),
        (RetryPolicy(kind="linear"), RetryPolicy(kind="linear")),
    ],
)
def test_a_retry_policy(said, policy):
    assert to_retry("retry", said) == policy


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("", "it begins with one of exponential, linear, fixed, list"),
        ("often", "it begins with one of exponential, linear, fixed, list"),
        ("fixed,5s,base=6s", "'base=6s' is said twice"),
        ("fixed,soon", "retry base = 'soon': a duration is"),
        ("list,1s,soon", "retry = 'soon': a duration is"),
        ("exponential,factor=x", "retry = .*: could not convert"),
        ("exponential,factor=1e999", "retry = .*: cannot convert"),
        ("fixed,400d", "= 'fixed,400d': base: at most 366d"),
        ("exponential,cap=0", "= 'exponential,cap=0': cap: at least 1ms"),
        ("list,1s,400d", r"= 'list,1s,400d': delays\[1\]: at most 366d"),
        ("exponential,factor=0.5", "factor_percent: expected `int` >= 100"),
        ("exponential,jitter=101%", "jitter_percent: expected `int` <= 100"),
        ("linear,speed=5", "'speed=5' is none of base="),
        ("list," + ",".join(["1s"] * 33), "length <= 32"),
        ({"kind": "fixed", "base": 5}, "unknown field `base`"),
        (["fixed"], "retry = "),
        (5, "retry = 5"),
    ],
)
def test_what_is_no_retry_policy_is_refused(said, fault):
    with pytest.raises(InvalidArgument, match=fault):
        to_retry("retry", said)
