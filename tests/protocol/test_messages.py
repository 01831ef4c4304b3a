"""What is inside a frame: good messages come back as they were, bad ones get an error that names what is wrong."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from jqd.core import commands as c
from jqd.core import model
from jqd.errors import (
    WIRE_ERRORS,
    BadFrame,
    Busy,
    InvalidArgument,
    JqdError,
    LeaseLost,
    UnknownCommand,
    VersionMismatch,
)
from jqd.protocol.messages import (
    decode_body,
    decode_command,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
)

pack = msgspec.msgpack.encode

COMMANDS: list[c.Command[Any]] = [
    c.Hello(version=1, session=b"s" * 16, worker="box"),
    c.Ping(),
    c.Submit(payload=b"p", queue="q", priority=-3, metadata={"k": "v"}, run_at_ms=5),
    c.SubmitMany(groups=[c.SubmitGroup(payloads=[b"", b"a"], task="t")]),
    c.Lease(queues=["a", "b"], count=10_000, wait_ms=30_000),
    c.Extend(items=[((1 << 64) - 1, [(1, 2)])], lease_ms=1_000),
    c.Ack(items=[(1, [(1, 2), (5, 1)], b"r"), (2, [(9, 1)], None)], encoding="json"),
    c.Fail(items=[(1, [(1, 1)])], error="e", retry_in_ms=0),
    c.Release(items=[(1, [(1, 1)])], delay_ms=5),
    c.Cancel(ids=[(1, 1)]),
    c.Update(job_id=1, payload=b"p", delay_ms=5),
    c.Requeue(filter=c.JobFilter(queue="q", state="dead"), cursor=7, limit=1_000, dry_run=True),
    c.Purge(filter=c.JobFilter()),
    c.Get(job_id=model.JOB_ID_MAX),
    c.Wait(ids=[(1, 2), (7, 1)], wait_ms=30_000, all=True),
    c.ListJobs(filter=c.JobFilter(state="ready")),
    c.Queues(cursor="q"),
    c.GetQueue(queue="q"),
    c.SetQueue(queue="q", lease_ms=5_000, retry=model.RetryPolicy(kind="fixed"), length_max=0, reset=True),
    c.Pause(queue="q"),
    c.Resume(queue="q"),
    c.Register(queues=["q"], concurrency=4, state="quiet", host="box", pid=7, version="1"),
    c.ListWorkers(cursor="00ff"),
    c.TellWorkers(order="stop", workers=["00ff"]),
    c.Stats(),
    c.Snapshot(),
]


def request(verb: str, args: bytes, request_id: int = 1) -> bytes:
    return b"\x93" + pack(request_id) + pack(verb) + args


def refusal(verb: str, args: bytes) -> str:
    """Return the message with which the arguments are refused."""
    envelope = decode_request(request(verb, args))
    with pytest.raises(InvalidArgument) as error:
        decode_command(envelope)
    return str(error.value)


# --- requests -----------------------------------------------------------------------------------


def test_list_above_has_every_verb():
    assert {command.verb for command in COMMANDS} == set(c.COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.verb)
def test_request_comes_back_as_it_was(command):
    envelope = decode_request(encode_request(77, command))
    assert (envelope.request_id, envelope.verb) == (77, command.verb)
    assert decode_command(envelope) == command


def test_fields_at_their_default_are_not_sent():
    assert msgspec.msgpack.decode(encode_request(1, c.Submit())) == [1, "submit", {}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x90",
        b"\x92\x01\xa4ping",
        b"\x94\x01\xa4ping\x80\x80",
        b"\x93\x00\xa4ping\x80",
        b"\x93\xff\xa4ping\x80",
        b"\x93\xcf\x80\x00\x00\x00\x00\x00\x00\x00\xa4ping\x80",
        b"\x93\xcb?\xf8\x00\x00\x00\x00\x00\x00\xa4ping\x80",
        b"\x93\xc0\xa4ping\x80",
        b"\x93\x01\x05\x80",
        b"\x93\x01\xa2\xff\xff\x80",
        b"\x93\x01\xd9\x41" + b"v" * 65 + b"\x80",
        b"\x93\x01\xa4ping",
        b"\x93\x01\xa4ping\x80\x00",
        b"\x93\x01\xa4ping\xc1",
        b"\x93\x01\xa4ping\xdd\xff\xff\xff\xff",
        b"\x93\x01\xa4ping\xdf\xff\xff\xff\xff",
        b"\x93\x01\xa4ping\xc6\xff\xff\xff\xffx",
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\xff\xff\x01",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request_are_a_bad_frame(body):
    with pytest.raises(
        BadFrame, match=rf"frame of {len(body)} bytes is no request \[request_id, verb, args\]"
    ):
        decode_request(body)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.verb)
def test_request_cut_at_any_byte_is_a_bad_frame(command):
    body = encode_request(1, command)
    for cut in range(len(body)):
        with pytest.raises(BadFrame):
            decode_request(body[:cut])


@pytest.mark.parametrize("inner", [b"\x91", b"\x81\xa1k", b"\x81\xa7payload", b"\xdc\x00\x01"])
def test_a_million_nested_values_are_an_error_not_a_crash(inner):
    body = request("submit", inner * 1_000_000 + b"\xc0")
    with pytest.raises(BadFrame):
        decode_request(body)
    with pytest.raises(BadFrame):
        decode_request(inner * 1_000_000)


def test_unknown_verb_is_named_beside_the_known_ones():
    with pytest.raises(UnknownCommand) as error:
        decode_command(decode_request(request("sumbit", b"\x80")))
    assert str(error.value).startswith("verb = 'sumbit': known are hello ping submit ")
    assert not error.value.fatal


@pytest.mark.parametrize(
    ("verb", "args", "message"),
    [
        ("submit", {"queu": "q"}, "submit: object contains unknown field `queu`"),
        ("submit", {"priority": 32_768}, "submit: priority = 32768: expected `int` <= 32767"),
        ("submit", {"priority": -32_769}, "submit: priority = -32769: expected `int` >= -32768"),
        ("submit", {"priority": "1"}, "submit: priority = '1': expected `int`, got `str`"),
        ("submit", {"priority": 1.5}, "submit: priority = 1.5: expected `int`"),
        ("submit", {"priority": float("nan")}, "submit: priority = nan: expected `int`, got `float`"),
        ("submit", {"priority": True}, "submit: priority = True: expected `int`, got `bool`"),
        ("submit", {"priority": None}, "submit: priority = None: expected `int`"),
        ("submit", {"delay_ms": -1}, "submit: delay_ms = -1: expected `int` >= 0"),
        (
            "submit",
            {"delay_ms": 1 << 63},
            "submit: delay_ms = 9223372036854775808: expected `int` <= 31622400000",
        ),
        ("submit", {"lease_ms": 999}, "submit: lease_ms = 999: expected `int` >= 1000"),
        ("submit", {"max_retries": 1_001}, "submit: max_retries = 1001: expected `int` <= 1000"),
        ("submit", {"queue": ""}, "submit: queue = '': expected `str` of length >= 1"),
        ("submit", {"payload": "text"}, "submit: payload = 'text': expected `bin`, got `str`"),
        ("submit", {"delivery": "maybe"}, "submit: delivery = 'maybe': invalid enum value 'maybe'"),
        ("submit", {"metadata": {"k": 1}}, "submit: metadata"),
        ("submit", [], "submit: expected `map`, got `list`"),
        ("submit", 5, "submit: expected `map`, got `int`"),
        ("submit_many", {"groups": []}, "submit_many: groups = []: expected `list` of length >= 1"),
        (
            "submit_many",
            {"groups": [{"payloads": [b""]}, {"payloads": [b""], "priority": 70_000}]},
            "submit_many: groups[1].priority = 70000: expected `int` <= 32767",
        ),
        ("submit_many", {}, "submit_many: object missing required field `groups`"),
        ("lease", {"count": 0}, "lease: count = 0: expected `int` >= 1"),
        ("lease", {"count": 10_001}, "lease: count = 10001: expected `int` <= 10000"),
        ("lease", {"wait_ms": 30_001}, "lease: wait_ms = 30001: expected `int` <= 30000"),
        ("lease", {"queues": ["q"] * 65}, "lease: queues = "),
        ("ack", {"items": [[0, [[1, 1]], None]]}, "ack: items[0][0] = 0: expected `int` >= 1"),
        ("ack", {"items": [[1, [[0, 1]], None]]}, "ack: items[0][1][0][0] = 0: expected `int` >= 1"),
        (
            "ack",
            {"items": [[1, [[1, 1]]]]},
            "ack: items[0] = [1, [[1, 1]]]: expected `list` of length 3, got 2",
        ),
        (
            "get",
            {"job_id": 1 << 60},
            "get: job_id = 1152921504606846976: expected `int` <= 1152921504606846975",
        ),
        ("list", {"limit": 1_001}, "list: limit = 1001: expected `int` <= 1000"),
        ("list", {"filter": {"state": "lost"}}, "list: filter.state = 'lost': invalid enum value 'lost'"),
        (
            "list",
            {"filter": {"color": 1}},
            "list: filter = {'color': 1}: object contains unknown field `color`",
        ),
        ("ping", {"x": 1}, "ping: object contains unknown field `x`"),
        (
            "hello",
            {"version": 1, "session": b"short"},
            "hello: session = b'short': expected `bin` of length >= 16",
        ),
    ],
)
def test_bad_argument_is_named_with_its_value_and_its_limit(verb, args, message):
    assert refusal(verb, pack(args)).startswith(message)


def test_name_of_129_characters_is_refused_and_shown_short():
    message = refusal("submit", pack({"queue": "q" * 129}))
    assert message.endswith("(129 characters): expected `str` of length <= 128")
    assert len(message) < 200


def test_control_characters_of_a_value_are_escaped():
    assert "\n" not in refusal("submit", pack({"delivery": "a\nb"})).replace("invalid enum value 'a\nb'", "")


def test_extension_of_msgpack_is_named_by_its_code():
    assert (
        refusal("submit", b"\x81\xa8priority\xd4\x05\x00")
        == "submit: priority = ext 5: expected `int`, got `ext`"
    )


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"version": 2, "new": 1}, VersionMismatch),
        ({"version": 1, "new": 1}, InvalidArgument),
        ({"version": "2", "new": 1}, InvalidArgument),
        ({}, InvalidArgument),
    ],
)
def test_hello_of_another_version_is_told_so_before_its_fields_are_judged(args, error):
    with pytest.raises(error):
        decode_command(decode_request(request("hello", pack(args))))


def test_value_is_not_looked_up_in_large_arguments():
    big = pack({"payload": b"x" * 5_000, "priority": 70_000})
    assert refusal("submit", big) == "submit: priority: expected `int` <= 32767"


@pytest.mark.parametrize(
    "rest",
    [
        b"\xa1x\xa2\xff\xff",  # not UTF-8
        b"\xa2\xff\xff\x01",  # a key that is not
        b"\x80\x01",  # a key that is a map
        b"\x91\x80\x01",
        b"\xa1x\xd4\xff\x01",  # a timestamp that is none
        b"\xa1x" + b"\x91" * 500 + b"\x90",
    ],
)
def test_value_is_left_out_where_something_else_is_broken_too(rest):
    assert refusal("submit", b"\x82\xa8priority\xcd\xff\xff" + rest).startswith("submit: priority")


@pytest.mark.parametrize(
    "args", [b"\x81\xa5queue\xa2\xff\xff", b"\x81\xa2\xff\xff\x01", b"\x81\xa4task\xa2\xed\xa0"]
)
def test_text_that_is_not_utf8_is_refused(args):
    assert "'utf-8' codec can't decode" in refusal("submit", args)


def test_doubled_field_is_decoded_to_the_last():
    args = b"\x82\xa8priority\x01\xa8priority\x02"
    assert decode_command(decode_request(request("submit", args))) == c.Submit(priority=2)


def test_damaged_requests_raise_documented_errors_only():
    random_bytes = random.Random(20_240_501)
    seeds = [encode_request(number, command) for number, command in enumerate(COMMANDS, 1)]
    refused = 0
    for _ in range(20_000):
        body = bytearray(random_bytes.choice(seeds))
        for _ in range(random_bytes.randint(1, 3)):
            at = random_bytes.randrange(len(body))
            body[at] = random_bytes.choice([random_bytes.randrange(256), 0xC1, 0xD4, 0xFF, 0x91, 0xC7, 0xCB])
        try:
            decode_command(decode_request(bytes(body)))
        except (BadFrame, InvalidArgument, UnknownCommand, VersionMismatch) as error:
            refused += 1
            assert len(str(error)) < 2_000
    assert refused > 5_000


@given(st.binary(max_size=60))
def test_any_bytes_raise_documented_errors_only(body):
    for decode in (decode_request, decode_reply):
        try:
            decode(body)
        except BadFrame:
            continue


# --- replies ------------------------------------------------------------------------------------


def test_reply_comes_back_as_it_was():
    reply = decode_reply(encode_reply(7, 12, c.Submitted(job_id=3)))
    assert (reply.request_id, reply.status, reply.lsn) == (7, "ok", 12)
    assert decode_body(reply, c.Submitted) == c.Submitted(job_id=3)


def test_body_that_was_encoded_before_is_sent_as_it_is():
    raw = Raw(pack(c.Submitted(job_id=3)))
    assert encode_reply(7, 12, raw) == encode_reply(7, 12, c.Submitted(job_id=3))


def test_fields_of_a_newer_reply_are_ignored():
    reply = decode_reply(pack([7, "ok", 12, {"job_id": 3, "colour": "red"}, "more"]))
    assert decode_body(reply, c.Submitted) == c.Submitted(job_id=3)


@pytest.mark.parametrize("code", sorted(WIRE_ERRORS))
def test_error_comes_back_as_its_class(code):
    error = WIRE_ERRORS[code]("what and why", details={"limit": 5}, retry_after_ms=7)
    reply = decode_reply(encode_error(9, 4, error))
    assert (reply.request_id, reply.status, reply.lsn) == (9, code, 4)
    back = decode_body(reply, c.Submitted)
    assert type(back) is type(error)
    assert (str(back), back.details, back.retry_after_ms) == ("what and why", {"limit": 5}, 7)


def test_error_says_whether_a_retry_can_help():
    assert msgspec.msgpack.decode(encode_error(1, 1, Busy("full")))[3]["retryable"] is True
    assert msgspec.msgpack.decode(encode_error(1, 1, LeaseLost("late")))[3]["retryable"] is False


def test_code_of_a_newer_server_is_an_error_that_says_it():
    back = decode_body(decode_reply(pack([1, "on_fire", 0, {"message": "run"}])), c.Submitted)
    assert type(back) is JqdError
    assert str(back) == "on_fire: run"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x90",
        b"\x93\x01\xa2ok\x00",
        b"\x94\x01\xa2\xff\xff\x00\x80",
        b"\x94\x01\x02\x03\x80",
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_bytes_that_are_no_reply_are_a_bad_frame(body):
    with pytest.raises(BadFrame, match=r"is no reply \[request_id, status, lsn, body\]"):
        decode_reply(body)


@pytest.mark.parametrize(
    ("status", "body"),
    [("ok", {}), ("ok", {"job_id": "x"}), ("ok", 5), ("busy", {}), ("busy", {"message": 5})],
)
def test_body_that_does_not_fit_is_a_bad_frame(status, body):
    with pytest.raises(BadFrame, match="body of reply 3"):
        decode_body(decode_reply(pack([3, status, 0, body])), c.Submitted)


def test_body_with_text_that_is_not_utf8_is_a_bad_frame():
    with pytest.raises(BadFrame, match="body of reply 1"):
        decode_body(decode_reply(b"\x94\x01\xa4busy\x00\x81\xa7message\xa2\xff\xff"), c.Submitted)


def test_message_stays_one_short_line_whatever_a_client_calls_its_field():
    for name in ("x" * 1_000_000, "a\nb\x1b[31m", "\u2028"):
        with pytest.raises(InvalidArgument) as refused:
            decode_command(decode_request(msgspec.msgpack.encode([1, "submit", {name: 1}])))
        assert len(str(refused.value)) < 600
        assert str(refused.value).isprintable()
