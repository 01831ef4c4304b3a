"""All that must not be sent, sent to a real daemon: each has its code and its line, and nobody else notices."""

import struct
from typing import Any, NamedTuple

import msgpack
import pytest

from tests.support.daemon import Daemon
from tests.support.wire import Wire, frame, framed, hello, request

pytestmark = pytest.mark.e2e

MIB = 1 << 20
TOKEN_OF_NOBODY = 1 << 40


class Bystander(NamedTuple):
    """Another client of the same daemon, in the middle of its work."""

    wire: Wire
    token: int


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with Daemon(tmp_path_factory.mktemp("bad-input") / "data") as started:
        yield started
        assert started.stop() == 0
        assert not [line for line in started.lines if line["level"] in ("error", "critical")]


@pytest.fixture(scope="module")
def bystander(daemon):
    with daemon.client() as wire:
        wire.ask("submit_many", groups=[{"queue": "bystander", "payloads": [b"mine"] * 3}])
        token = wire.ask("lease", queues=["bystander"], lease_ms=3_600_000)["token"]
        yield Bystander(wire, token)


@pytest.fixture(autouse=True)
def undisturbed(bystander):
    """Hold the bystander's jobs and requests, and all that could have changed, against what they were."""

    def shown() -> list[Any]:
        stats = bystander.wire.ask("stats")
        queues = bystander.wire.ask("queues")["queues"]
        for queue in queues:
            queue["ready_age_ms"] = queue["ready_age_ms"] is not None  # it grows by itself
        return [
            queues,
            stats["jobs"],
            stats["lease_count"],
            stats["parked_count"],
        ]

    bystander.wire.send(1_000_000, "lease", {"queues": ["nothing-here"], "wait_ms": 30_000})
    before = shown()
    yield
    assert shown() == before
    (verdict,) = bystander.wire.ask("extend", items=[[bystander.token, [[1, 1]]]], lease_ms=3_600_000)[
        "results"
    ]
    assert verdict == [1, 1, "ok"]
    bystander.wire.ask("submit", queue="nothing-here")
    answer = bystander.wire.receive()
    assert (answer.request_id, answer.status) == (1_000_000, "ok")
    (job,) = answer.body["jobs"]
    bystander.wire.ask("ack", items=[[answer.body["token"], [[job["job_id"], 1]], None]])


# --- requests: refused, and the connection goes on ------------------------------------------------

REFUSED: list[tuple[str, bytes, str, list[str]]] = [
    ("unknown verb", request(7, "destroy"), "unknown_command", ["destroy", "submit"]),
    ("unknown field", request(7, "submit", prio=3), "invalid_argument", ["prio"]),
    (
        "unknown field in a group",
        request(7, "submit_many", groups=[{"payloads": [b""], "x": 1}]),
        "invalid_argument",
        ["x"],
    ),
    ("args are no map", frame([7, "submit", [1]]), "invalid_argument", ["map", "list"]),
    ("key is no string", frame([7, "submit", {1: 2}]), "invalid_argument", ["str"]),
    ("missing field", request(7, "get"), "invalid_argument", ["job_id"]),
    ("wrong type", request(7, "submit", priority="high"), "invalid_argument", ["priority", "'high'", "int"]),
    ("text for bytes", request(7, "submit", payload=7), "invalid_argument", ["payload", "7", "bin"]),
    ("too high", request(7, "submit", priority=32_768), "invalid_argument", ["priority", "32768", "32767"]),
    ("negative count", request(7, "lease", count=-1), "invalid_argument", ["count", "-1", "1"]),
    ("zero count", request(7, "lease", count=0), "invalid_argument", ["count", "0", "1"]),
    ("count over the limit", request(7, "lease", count=10_001), "invalid_argument", ["10001", "10000"]),
    ("negative delay", request(7, "submit", delay_ms=-5), "invalid_argument", ["delay_ms", "-5", "0"]),
    ("lease too short", request(7, "lease", lease_ms=999), "invalid_argument", ["lease_ms", "999", "1000"]),
    ("wait too long", request(7, "lease", wait_ms=30_001), "invalid_argument", ["wait_ms", "30001", "30000"]),
    (
        "not a number",
        request(7, "submit", delay_ms=float("nan")),
        "invalid_argument",
        ["delay_ms", "nan", "int"],
    ),
    ("infinity", request(7, "submit", priority=float("inf")), "invalid_argument", ["priority", "inf", "int"]),
    ("fraction", request(7, "submit", priority=1.5), "invalid_argument", ["priority", "1.5", "int"]),
    (
        "number of 64 bits",
        request(7, "get", job_id=(1 << 64) - 1),
        "invalid_argument",
        ["job_id", str((1 << 64) - 1)],
    ),
    ("empty name", request(7, "submit", queue=""), "invalid_argument", ["queue", "''", "1"]),
    ("over-long name", request(7, "submit", queue="q" * 129), "invalid_argument", ["queue", "128"]),
    (
        "name with a slash",
        request(7, "submit", queue="../etc"),
        "invalid_argument",
        ["queue", "'../etc'", "[A-Za-z0-9_]"],
    ),
    ("name with a newline", request(7, "submit", queue="a\nb"), "invalid_argument", ["queue", "'a\\nb'"]),
    (
        "name in a list",
        request(7, "lease", queues=["ok", "no good"]),
        "invalid_argument",
        ["queues", "'no good'"],
    ),
    (
        "unknown word",
        request(7, "submit", delivery="exactly_once"),
        "invalid_argument",
        ["delivery", "'exactly_once'"],
    ),
    (
        "payload too large",
        request(7, "submit", payload=bytes(MIB + 1)),
        "payload_too_large",
        ["payload", "1048577", "1048576"],
    ),
    (
        "payload too large in a group",
        request(7, "submit_many", groups=[{"payloads": [b"", bytes(MIB + 1)]}]),
        "payload_too_large",
        ["groups[0].payloads[1]", "1048577", "1048576"],
    ),
    (
        "too many jobs",
        request(7, "submit_many", groups=[{"payloads": [b""] * 6_000}] * 2),
        "invalid_argument",
        ["12000", "10000"],
    ),
    (
        "metadata too large",
        request(7, "submit", metadata={"k": "v" * 4_096}),
        "invalid_argument",
        ["metadata", "4097", "4096"],
    ),
    ("metadata of numbers", request(7, "submit", metadata={"k": 1}), "invalid_argument", ["metadata", "str"]),
    (
        "result too large",
        request(7, "ack", items=[[1, [[1, 1]], bytes(65_537)]]),
        "payload_too_large",
        ["65537", "65536"],
    ),
    (
        "two times",
        request(7, "submit", delay_ms=1, run_at_ms=1),
        "invalid_argument",
        ["delay_ms", "run_at_ms"],
    ),
    (
        "job named twice",
        request(7, "ack", items=[[1, [[1, 2], [2, 1]], None]]),
        "invalid_argument",
        ["2", "twice"],
    ),
    ("unknown job", request(7, "get", job_id=999_999), "job_not_found", ["999999"]),
    ("unknown queue", request(7, "list", filter={"queue": "nowhere"}), "queue_not_found", ["nowhere"]),
    (
        "wrong state",
        request(7, "requeue", filter={"queue": "bystander", "state": "done"}),
        "wrong_state",
        ["done"],
    ),
    ("second hello", hello(7), "invalid_argument", ["hello"]),
]


@pytest.mark.parametrize(
    ("said", "code", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_bad_request_is_refused_and_the_connection_goes_on(daemon, said, code, words):
    with daemon.client() as wire:
        wire.write(said + request(8, "ping"))
        answer = wire.receive()
        assert (answer.request_id, answer.status) == (7, code)
        message = answer.body["message"]
        assert "\n" not in message and len(message) < 500
        assert [word for word in words if word not in message] == [], message
        assert answer.body["retryable"] is False
        assert wire.receive().status == "ok"


@pytest.mark.parametrize("verb", ["ack", "fail", "release", "extend"])
@pytest.mark.parametrize(
    ("job_id", "code"),
    [(2, "lease_lost"), (1, "lease_lost"), (999_999, "job_not_found")],
    ids=["not leased", "another's", "unknown"],
)
def test_token_that_is_not_the_jobs_is_refused(daemon, verb, job_id, code):
    held: list[Any] = [TOKEN_OF_NOBODY, [[job_id, 1]]]
    with daemon.client() as wire:
        results = wire.ask(verb, items=[[*held, None] if verb == "ack" else held])["results"]
    assert results == [[job_id, 1, code]]


@pytest.mark.parametrize("verb", ["cancel", "requeue", "purge"])
def test_leased_job_is_in_the_wrong_state_for_bulk_actions(daemon, verb):
    with daemon.client() as wire:
        assert wire.ask(verb, ids=[[1, 1], [999_999, 1]])["results"] == [
            [1, 1, "wrong_state"],
            [999_999, 1, "job_not_found"],
        ]


# --- bytes: answered once, and the connection ends ------------------------------------------------

GARBAGE = [
    ("2 GiB", b"\x7f\xff\xff\xff", "payload_too_large", ["2147483647"]),
    ("4 GiB", b"\xff\xff\xff\xff", "payload_too_large", ["4294967295"]),
    ("empty frame", b"\x00\x00\x00\x00", "bad_frame", ["0"]),
    ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "payload_too_large", ["1195725856"]),
    ("no msgpack", framed(b"\xc1\xc1"), "bad_frame", []),
    ("half a value", framed(b"\x93\x01\xa4pi"), "bad_frame", []),
    ("a map", frame({"verb": "ping"}), "bad_frame", []),
    ("too short", frame([1, "ping"]), "bad_frame", []),
    ("too long", frame([1, "ping", {}, {}]), "bad_frame", []),
    ("request id 0", frame([0, "ping", {}]), "bad_frame", ["1"]),
    ("negative request id", frame([-1, "ping", {}]), "bad_frame", ["1"]),
    ("verb is a number", frame([1, 2, {}]), "bad_frame", []),
    ("bytes behind the request", framed(msgpack.packb([1, "ping", {}]) + b"\x00"), "bad_frame", []),
    ("deep", framed(b"\x91" * 4_000), "bad_frame", []),
    ("array of 2^32", framed(b"\xdd\xff\xff\xff\xff"), "bad_frame", []),
]
BEFORE_HELLO = [
    ("hello too long", framed(bytes(4_097)), "payload_too_large", ["4097", "4096"]),
    ("not hello", request(1, "ping"), "bad_frame", ["hello"]),
    ("unknown version", hello(1, version=2), "version_mismatch", ["2", "1"]),
    ("key", hello(1, key="jqd_x"), "unauthenticated", ["key"]),
    ("unknown field", hello(1, colour="red"), "invalid_argument", ["colour"]),
]
AFTER_HELLO = [
    ("deep args", framed(b"\x93\x07\xa6submit\x81\xa5queue" + b"\x91" * 100_000), "bad_frame", []),
    ("frame too long", struct.pack(">I", (16 << 20) + 1), "payload_too_large", ["16777217", "16777216"]),
    ("very deep", framed(b"\x93\x01\xa4ping" + b"\x91" * 1_000_000), "bad_frame", []),
]


def check_ends(wire: Wire, said: bytes, code: str, words: list[str]) -> None:
    wire.write(said)
    (answer,) = wire.rest()
    assert answer.status == code
    message = answer.body["message"]
    assert "\n" not in message and len(message) < 500
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [case[1:] for case in GARBAGE + BEFORE_HELLO],
    ids=[case[0] for case in GARBAGE + BEFORE_HELLO],
)
def test_garbage_before_hello_ends_the_connection(daemon, said, code, words):
    with Wire.open(daemon.address) as wire:
        check_ends(wire, said, code, words)


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [case[1:] for case in GARBAGE + AFTER_HELLO],
    ids=[case[0] for case in GARBAGE + AFTER_HELLO],
)
def test_garbage_after_hello_ends_the_connection(daemon, said, code, words):
    with daemon.client() as wire:
        check_ends(wire, said, code, words)


def test_frame_cut_at_any_byte_changes_nothing(daemon):
    said = request(7, "submit", payload=b"never", queue="cut")
    for at in range(len(said)):
        with daemon.client() as wire:
            wire.write(said[:at])
            if at % 2:
                wire.cut()


def test_announced_frames_cost_no_memory(daemon, bystander):
    before = bystander.wire.ask("stats")["process"]["rss_bytes"]
    wires = [Wire.connect(daemon.address) for _ in range(100)]
    for wire in wires:
        wire.write(struct.pack(">I", 16 << 20) + b"\x93\x01\xa6submit")
    assert bystander.wire.ask("stats")["process"]["rss_bytes"] - before < 32 * MIB
    for wire in wires:
        wire.close()
