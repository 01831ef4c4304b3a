"""The bytes of the wire and of the facts in the log: they are what they were, and an independent codec agrees.

`msgpack` is that codec: it reads each stored vector, and writes the same bytes from what the vector says.
"""

import re
import struct
from typing import Any, get_args

import msgpack
import msgspec
import pytest

from jqd.core.changes import AnyChange, AnyImage, Batch, JobsSubmitted, decode_batch, encode_batch
from jqd.core.commands import COMMANDS
from jqd.core.model import Now
from jqd.errors import WIRE_ERRORS
from jqd.protocol import messages
from jqd.protocol.framing import FrameReader
from tests.golden import make_wire
from tests.golden.make_wire import FACTS, LSN, REPLIES, REQUEST_ID, REQUESTS, from_json, load, to_json

WIRE = {
    "wire_requests.json": make_wire.request_vectors,
    "wire_replies.json": make_wire.reply_vectors,
    "wire_errors.json": make_wire.error_vectors,
}
FACT_TYPES = get_args(AnyChange)


def stored_frames() -> list[Any]:
    return [
        pytest.param(one, id=f"{file.removeprefix('wire_').removesuffix('.json')}: {name}")
        for file in WIRE
        for name, one in load(file).items()
    ]


def stored_facts() -> list[Any]:
    return [
        pytest.param(one, id=f"{name} v{number}")
        for name, versions in load("wire_facts.json").items()
        for number, one in enumerate(versions, 1)
    ]


def body_of(vector: dict[str, Any]) -> bytes:
    """Return a frame's body, cut by the reader of frames itself."""
    data = bytes.fromhex(vector["hex"])
    reader = FrameReader(1 << 20)
    reader.feed(data)
    body = reader.next_frame()
    assert reader.next_frame() is None
    assert reader.buffered_bytes == 0
    assert struct.unpack(">I", data[:4]) == (len(body),)
    return bytes(body)


def unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True)


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True, strict_types=True)
    return packed


def with_short_map_headers(data: bytes) -> bytes:
    """Return what msgspec wrote with map 16 headers turned into fixmap ones where these would do.

    It chooses the header by the fields that a Struct has, before it leaves out those at their default.
    protocol.md allows it: a value may have any of its msgpack forms.
    """
    return re.sub(rb"\xde\x00([\x00-\x0f])", lambda found: bytes([0x80 | found[1][0]]), data)


# --- the wire -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", WIRE)
def test_what_is_said_today_has_the_stored_bytes(file):
    found, now = load(file), WIRE[file]()
    assert sorted(found) == sorted(now), "run `make golden` and read the diff"
    for name, vector in now.items():
        assert found[name]["hex"] == vector["hex"], f"{file}: {name} has other bytes than before"


@pytest.mark.parametrize("vector", stored_frames())
def test_independent_codec_reads_and_writes_each_frame(vector):
    body = body_of(vector)
    assert to_json(unpack(body)) == vector["says"]
    assert pack(from_json(vector["says"])) == with_short_map_headers(body)


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("which", [0, 1])
def test_stored_request_is_the_command(verb, which):
    vector = load("wire_requests.json")[f"{verb} {('defaults', 'full')[which]}"]
    request = messages.decode_request(body_of(vector))
    assert request.request_id == REQUEST_ID
    assert request.verb == verb
    assert messages.decode_command(request) == REQUESTS[verb][which]


@pytest.mark.parametrize("verb", COMMANDS)
def test_full_request_says_every_field_and_the_other_says_no_default(verb):
    little, full = (unpack(msgspec.msgpack.encode(one)) for one in REQUESTS[verb])
    every = {field.encode_name: field for field in msgspec.structs.fields(COMMANDS[verb])}
    assert set(full) == set(every)
    left_out = {name for name, field in every.items() if field.default is not msgspec.NODEFAULT}
    assert not left_out & set(little)
    assert {name for name, field in every.items() if field.required} <= set(little)


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("which", [0, 1])
def test_stored_reply_is_the_reply(verb, which):
    vector = load("wire_replies.json")[f"{verb} {('little', 'full')[which]}"]
    reply = messages.decode_reply(body_of(vector))
    assert (reply.request_id, reply.status, reply.lsn) == (REQUEST_ID, "ok", LSN)
    assert messages.decode_body(reply, COMMANDS[verb].reply) == REPLIES[verb][which]


@pytest.mark.parametrize("verb", COMMANDS)
def test_full_reply_says_every_field(verb):
    full = unpack(msgspec.msgpack.encode(REPLIES[verb][1]))
    assert set(full) == {field.encode_name for field in msgspec.structs.fields(COMMANDS[verb].reply)}


def test_full_jobs_in_replies_say_every_field():
    leased = msgspec.structs.asdict(REPLIES["lease"][1])["jobs"][-1]
    assert set(unpack(msgspec.msgpack.encode(leased))) == set(type(leased).__struct_fields__)


@pytest.mark.parametrize("name", make_wire.errors())
def test_stored_error_is_the_error(name):
    error = make_wire.errors()[name]
    reply = messages.decode_reply(body_of(load("wire_errors.json")[name]))
    found = messages.decode_body(reply, COMMANDS["ping"].reply)
    assert type(found) is type(error) is WIRE_ERRORS[reply.status]
    assert (found.message, found.details, found.retry_after_ms, found.retryable) == (
        error.message,
        error.details,
        error.retry_after_ms,
        unpack(reply.body)["retryable"],
    )


# --- the log ------------------------------------------------------------------------------------


def test_every_fact_has_vectors():
    assert [type(little) for little, _ in FACTS] == list(FACT_TYPES), "one pair for each fact, in order"
    assert all(type(little) is type(full) for little, full in FACTS)


def test_numbers_of_facts_rise_and_belong_to_one_alone():
    tags = [unpack(msgspec.msgpack.encode(little))[0] for little, _ in FACTS]
    assert tags == sorted(tags)
    numbers = [kind.__struct_config__.tag for kind in (*FACT_TYPES, *get_args(AnyImage))]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("pair", FACTS, ids=lambda pair: type(pair[0]).__name__)
def test_full_fact_says_nothing_that_is_a_default(pair):
    little, full = pair
    for field in msgspec.structs.fields(type(full)):
        if not field.required:
            assert getattr(little, field.name) == field.default, field.name
            assert getattr(full, field.name) != field.default, field.name


def test_full_options_say_every_field():
    (full,) = (fact.options for _, fact in FACTS if isinstance(fact, JobsSubmitted))
    assert set(unpack(msgspec.msgpack.encode(full))) == set(type(full).__struct_fields__)


def test_facts_of_today_have_the_stored_bytes():
    found, now = load("wire_facts.json"), make_wire.fact_vectors()
    assert set(now) <= set(found), "run `make golden` and read the diff"
    for name, vector in now.items():
        assert found[name][-1]["hex"] == vector["hex"], f"{name} has other bytes on disk than before"


@pytest.mark.parametrize("vector", stored_facts())
def test_independent_codec_reads_and_writes_each_fact(vector):
    data = bytes.fromhex(vector["hex"])
    assert to_json(unpack(data)) == vector["says"]
    assert pack(from_json(vector["says"])) == with_short_map_headers(data)


@pytest.mark.parametrize("vector", stored_facts())
def test_fact_of_every_version_still_decodes_inside_a_record(vector):
    record = pack([5_000, 6_000, [from_json(vector["says"])]])
    (fact,) = decode_batch(record).changes
    assert unpack(msgspec.msgpack.encode(fact))[: len(vector["says"])] == from_json(vector["says"])


@pytest.mark.parametrize("pair", FACTS, ids=lambda pair: type(pair[0]).__name__)
def test_fact_from_before_a_field_existed_decodes_to_its_default(pair):
    little, _ = pair
    required = sum(field.required for field in msgspec.structs.fields(type(little)))
    said = unpack(msgspec.msgpack.encode(little))
    for length in range(1 + required, len(said) + 1):
        assert decode_batch(pack([0, 0, [said[:length]]])).changes == [little]


def test_every_stored_log_still_leaves_the_same_behind():
    for log in load("wire_logs.json"):
        records = [(first_lsn, count, bytes.fromhex(payload)) for first_lsn, count, payload in log["records"]]
        state = make_wire.replay(records)
        state.check()
        assert make_wire.summary(state) == log["leaves"]


def test_records_of_today_have_the_stored_bytes():
    assert load("wire_logs.json")[-1] == make_wire.log_vector(), "run `make golden` and read the diff"


def test_log_has_every_fact():
    assert {type(fact) for _, facts in make_wire.LOG for fact in facts} == set(FACT_TYPES)


@pytest.mark.parametrize("number", range(len(make_wire.LOG)))
def test_independent_codec_reads_and_writes_each_record(number):
    _, count, payload = make_wire.log_records()[number]
    said = unpack(payload)
    assert pack(said) == with_short_map_headers(payload)
    engine_ms, wall_ms, facts = said
    assert len(facts) == count
    now, changes = make_wire.LOG[number]
    assert (engine_ms, wall_ms) == (now.engine_ms, now.wall_ms)
    assert decode_batch(payload) == Batch(engine_ms, wall_ms, changes)
    assert encode_batch(Now(engine_ms, wall_ms), changes) == payload
