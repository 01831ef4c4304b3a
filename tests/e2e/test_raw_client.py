"""A stranger's client, written from protocol.md alone, and the real daemon: every verb, and each way to be refused."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.support.daemon import Daemon
from tests.support.rawclient import RawClient, Refused, Reply

pytestmark = pytest.mark.e2e

STATES = ("delayed", "ready", "leased", "done", "dead", "cancelled", "expired")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "data", "--unix", "off") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def idle_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all tests whose requests change nothing."""
    with Daemon(tmp_path_factory.mktemp("idle") / "data", "--unix", "off") as daemon:
        yield daemon
        with RawClient(daemon.address) as client:
            assert client.call("queues") == {"queues": [], "cursor": None}


@pytest.fixture
def idle(idle_daemon: Daemon) -> Iterator[RawClient]:
    with RawClient(idle_daemon.address) as client:
        yield client


@pytest.fixture
def client(daemon: Daemon) -> Iterator[RawClient]:
    with RawClient(daemon.address, worker="w-1") as client:
        yield client


def refused(client: RawClient, verb: str, **args: object) -> str:
    """Return the code that refuses the request, on a connection that goes on."""
    with pytest.raises(Refused) as caught:
        client.call(verb, **args)
    body = caught.value.reply.body
    assert body["message"] and "\n" not in body["message"]
    assert body["retryable"] is False and body["retry_after_ms"] is None
    client.call("ping")
    return caught.value.code


def last_words(client: RawClient) -> Reply:
    """Return the one reply after which the stream ends."""
    reply = client.next_reply()
    assert reply is not None and reply.status != "ok"
    assert client.next_reply() is None
    return reply


def held(client: RawClient, *payloads: bytes, queue: str = "q", **group: object) -> tuple[int, int]:
    """Submit and lease jobs; return the token and the first id."""
    group = {"queue": queue, "payloads": payloads, **group}
    ((first, count, existing),) = client.call("submit_many", groups=[group])["jobs"]
    assert (count, existing) == (len(payloads), False)
    leased = client.call("lease", queues=[queue], count=count)
    assert [job["job_id"] for job in leased["jobs"]] == list(range(first, first + count))
    return leased["token"], first


def states(client: RawClient, first: int, count: int) -> list[str]:
    return [client.call("get", job_id=job_id)["state"] for job_id in range(first, first + count)]


# --- connections ------------------------------------------------------------------------------------


def test_the_first_conversation_of_the_page(daemon: Daemon):
    with RawClient(daemon.address, client="doc") as client:
        assert client.welcome["version"] == 1
        assert client.welcome["minor"] >= 0
        assert len(client.welcome["store_id"]) == 32
        assert client.welcome["limits"] == {
            "frame_bytes": 16_777_216,
            "payload_bytes": 1_048_576,
            "result_bytes": 65_536,
            "jobs_per_request": 10_000,
            "in_flight": 1024,
            "wait_ms": 30_000,
            "wait_jobs": 1000,
        }
        submitted = client.reply(client.send("submit", payload=b"resize 17.png", queue="images"))
        assert submitted[:2] == (2, "ok") and submitted.body == {"job_id": 1}
        lease = client.call("lease", queues=["images"], wait_ms=20_000)
        assert lease["token"] >> 32 == client.welcome["epoch"]
        assert lease["lease_ms_left"] == 30_000
        job = {"job_id": 1, "queue": "images", "attempt": 1, "payload": b"resize 17.png"}
        assert lease["jobs"] == [job]
        acked = client.reply(client.send("ack", items=[[lease["token"], [[1, 1]], None]]))
        assert acked.body == {"results": [[1, 1, "ok"]]}
        assert acked.lsn > submitted.lsn


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({}, "invalid_argument"),
        ({"version": "1"}, "invalid_argument"),
        ({"version": 2}, "version_mismatch"),
        ({"version": 1, "key": "jqd_x"}, "unauthenticated"),
        ({"version": 1, "on_disconnect": "release"}, "invalid_argument"),
        ({"version": 1, "session": b"fifteen bytes.."}, "invalid_argument"),
        ({"version": 1, "later": 1}, "invalid_argument"),
    ],
)
def test_any_error_in_hello_ends_the_connection(idle_daemon: Daemon, args: dict[str, Any], code: str):
    with RawClient(idle_daemon.address, greet=False, first_id=7) as client:
        client.send("hello", **args)
        reply = last_words(client)
        assert reply[:2] == (7, code)
        assert reply.body["details"] == ({"version": 1} if code == "version_mismatch" else {})


def test_the_first_request_must_be_hello(idle_daemon: Daemon):
    with RawClient(idle_daemon.address, greet=False) as client:
        client.send("ping")
        assert last_words(client).status == "bad_frame"


def test_a_second_hello_changes_nothing(idle: RawClient):
    assert refused(idle, "hello", version=1) == "invalid_argument"


def test_requests_may_follow_hello_at_once_even_in_large_frames(daemon: Daemon):
    with RawClient(daemon.address, greet=False) as client:
        hello = client.send("hello", version=1)
        submit = client.send("submit", payload=bytes(100_000))
        assert client.answer(submit) == {"job_id": 1}
        assert client.answer(hello)["version"] == 1


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(msgpack.packb([9, "ping", {}])[:-1], id="cut short"),
        pytest.param(msgpack.packb([9, "ping", {}]) + b"\xc0", id="two values"),
        pytest.param(msgpack.packb({}), id="no array"),
        pytest.param(msgpack.packb([9, "ping"]), id="too few elements"),
        pytest.param(msgpack.packb([9, "ping", {}, 1]), id="too many elements"),
        pytest.param(msgpack.packb([0, "ping", {}]), id="id 0"),
        pytest.param(msgpack.packb([2**63, "ping", {}]), id="id too large"),
        pytest.param(msgpack.packb([9, b"ping", {}]), id="verb is bin"),
    ],
)
def test_what_is_no_request_ends_the_connection(idle: RawClient, body: bytes):
    idle.send_body(body)
    assert last_words(idle)[:2] == (0, "bad_frame")


@pytest.mark.parametrize(
    ("head", "greet", "code"),
    [
        (bytes(4), True, "bad_frame"),
        (b"\x01\x00\x00\x01", True, "payload_too_large"),
        (b"\x00\x00\x10\x01", False, "payload_too_large"),
        (b"GET / HTTP/1.1\r\n\r\n", False, "payload_too_large"),
    ],
)
def test_a_length_out_of_range_is_refused_before_the_body_comes(
    idle_daemon: Daemon, head: bytes, greet: bool, code: str
):
    with RawClient(idle_daemon.address, greet=greet) as client:
        client.socket.sendall(head)
        assert last_words(client)[:2] == (0, code)


def test_the_requests_before_a_bad_frame_are_answered_and_other_connections_go_on(
    daemon: Daemon, client: RawClient
):
    with RawClient(daemon.address) as bad:
        number = bad.send("submit")
        bad.send_body(b"\xc1")
        assert bad.answer(number) == {"job_id": 1}
        assert last_words(bad).id == 0
    assert client.call("get", job_id=1)["state"] == "ready"


def test_a_refused_request_spoils_nothing_else(idle: RawClient):
    assert refused(idle, "pong") == "unknown_command"
    assert refused(idle, "ping", surprise=1) == "invalid_argument"
    idle.send_body(msgpack.packb([99, "ping", None]))
    assert idle.reply(99).status == "invalid_argument"


@pytest.mark.parametrize("value", [1.0, "1", True, None, msgpack.Timestamp(1)])
def test_nothing_is_converted(idle: RawClient, value: object):
    assert refused(idle, "submit", priority=value) == "invalid_argument"


def test_the_longest_forms_of_msgpack_are_understood(idle: RawClient):
    body = b"\xdd\0\0\0\x03" + b"\xd3" + (300).to_bytes(8, "big") + b"\xdb\0\0\0\x04ping" + b"\xdf\0\0\0\0"
    idle.send_body(body)
    assert idle.answer(300)["engine_ms"] >= 0


def test_replies_to_pipelined_requests_come_in_order(client: RawClient):
    numbers = [client.send("submit", payload=b"%d" % n, queue="q") for n in range(1000)]
    numbers += [client.send("queues"), client.send("pong"), client.send("get", job_id=1)]
    replies = [client.next_reply() for _ in numbers]
    assert [reply.id for reply in replies] == numbers
    assert [reply.body["job_id"] for reply in replies[:1000]] == list(range(1, 1001))
    assert replies[1000].body["queues"][0]["ready"] == 1000
    assert [reply.status for reply in replies[1001:]] == ["unknown_command", "ok"]
    lsns = [reply.lsn for reply in replies]
    assert lsns == sorted(lsns)


def test_a_stopped_server_answers_the_parked_lease_and_keeps_what_it_said(daemon: Daemon, client: RawClient):
    client.call("submit", payload=b"x", queue="kept")
    number = client.send("lease", queues=["none"], wait_ms=30_000)
    client.call("ping")
    assert daemon.stop() == 0
    assert client.answer(number)["jobs"] == []
    assert client.next_reply() is None
    daemon.start()
    with RawClient(daemon.address) as again:
        assert again.welcome["store_id"] == client.welcome["store_id"]
        assert again.welcome["epoch"] > client.welcome["epoch"]
        assert again.call("lease", queues=["kept"])["jobs"][0]["payload"] == b"x"


# --- sessions ---------------------------------------------------------------------------------------


def test_a_retried_request_on_a_second_connection_is_carried_out_once(daemon: Daemon):
    session = secrets.token_bytes(16)
    with RawClient(daemon.address, session=session) as first:
        number = first.send("submit", payload=b"charge order 9")
        answer = first.answer(number)
    with RawClient(daemon.address, session=session, first_id=number + 1) as second:
        assert second.answer(second.send("submit", number=number, payload=b"charge order 9")) == answer
        assert second.call("stats")["jobs"]["ready"] == 1
    daemon.kill()
    daemon.start()
    with RawClient(daemon.address, session=session, first_id=number + 10) as third:
        assert third.answer(third.send("submit", number=number, payload=b"charge order 9")) == answer
        assert third.call("stats")["jobs"]["ready"] == 1


def test_without_a_session_a_repeated_request_is_carried_out_again(client: RawClient):
    assert client.answer(client.send("submit", number=50)) == {"job_id": 1}
    assert client.answer(client.send("submit", number=50)) == {"job_id": 2}


def test_a_retried_lease_and_ack_are_answered_alike(daemon: Daemon):
    session = secrets.token_bytes(16)
    with (
        RawClient(daemon.address, session=session) as first,
        RawClient(daemon.address, session=session, first_id=100) as second,
    ):
        first.call("submit_many", groups=[{"payloads": [b"a", b"b"]}])
        number = first.send("lease", count=2)
        lease = first.answer(number)
        again = second.answer(second.send("lease", number=number, count=2))
        assert (again["token"], again["jobs"]) == (lease["token"], lease["jobs"])
        items = [[lease["token"], [[1, 1]], b"done"]]
        ack = first.send("ack", items=items)
        assert first.answer(ack) == {"results": [[1, 1, "ok"]]}
        assert second.answer(second.send("ack", number=ack, items=items)) == {"results": [[1, 1, "ok"]]}
        left = second.answer(second.send("lease", number=number, count=2))
        assert [job["job_id"] for job in left["jobs"]] == [2]


def test_a_lease_asked_again_elsewhere_takes_the_place_of_the_parked_one(daemon: Daemon, client: RawClient):
    session = secrets.token_bytes(16)
    wanted: dict[str, Any] = {"number": 50, "queues": ["q"], "wait_ms": 30_000}
    with (
        RawClient(daemon.address, session=session) as first,
        RawClient(daemon.address, session=session, first_id=100) as second,
    ):
        first.send("lease", **wanted)
        first.call("ping")
        second.send("lease", **wanted)
        assert first.answer(50)["jobs"] == []
        client.call("submit", payload=b"x", queue="q")
        assert second.answer(50)["jobs"][0]["payload"] == b"x"


def test_an_answer_too_far_back_is_position_lost(daemon: Daemon):
    with RawClient(daemon.address, session=secrets.token_bytes(16)) as client:
        for n in range(1025):
            client.send("submit", number=10 + n)
        assert [client.answer(10 + n)["job_id"] for n in range(1025)] == list(range(1, 1026))
        assert client.reply(client.send("submit", number=10)).status == "position_lost"
        assert client.answer(client.send("submit", number=11)) == {"job_id": 2}
        assert client.reply(client.send("ping", number=10)).status == "ok"


# --- jobs in and out ----------------------------------------------------------------------------------


def test_submit(client: RawClient):
    job_id = client.call(
        "submit",
        payload=b"{}",
        queue="mail",
        priority=-5,
        run_at_ms=0,
        max_retries=7,
        max_crashes=8,
        lease_ms=60_000,
        encoding="json",
        task="send",
        metadata={"trace": "a1"},
    )["job_id"]
    (job,) = client.call("lease", queues=["mail"])["jobs"]
    assert job == {
        "job_id": job_id,
        "queue": "mail",
        "attempt": 1,
        "payload": b"{}",
        "encoding": "json",
        "priority": -5,
        "task": "send",
        "metadata": {"trace": "a1"},
    }
    shown = client.call("get", job_id=job_id)
    assert (shown["max_retries"], shown["max_crashes"], shown["lease_ms"]) == (7, 8, 60_000)
    assert (shown["state"], shown["worker"]) == ("leased", "w-1")
    assert 0 < shown["lease_ms_left"] <= 60_000


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"queue": "no spaces"}, "invalid_argument"),
        ({"queue": ""}, "invalid_argument"),
        ({"payload": "str"}, "invalid_argument"),
        ({"payload": bytes(1_048_577)}, "payload_too_large"),
        ({"priority": 32_768}, "invalid_argument"),
        ({"delay_ms": 0, "run_at_ms": 0}, "invalid_argument"),
        ({"lease_ms": 999}, "invalid_argument"),
        ({"delivery": "at_most_once", "max_retries": 1}, "invalid_argument"),
        ({"encoding": "yaml"}, "invalid_argument"),
        ({"metadata": {"n": 1}}, "invalid_argument"),
        ({"metadata": {"k": "x" * 4096}}, "invalid_argument"),
        ({"tenant": "a/c"}, "invalid_argument"),
        ({"group": ""}, "invalid_argument"),
        ({"dedupe_key": "no spaces"}, "invalid_argument"),
        ({"dedupe_ttl_ms": 1_000}, "invalid_argument"),
        ({"idempotency_key": "k" * 129}, "invalid_argument"),
        ({"expires_ms": -1}, "invalid_argument"),
        ({"retry": {"kind": "fixed", "factor_percent": 200}}, "invalid_argument"),
        ({"result_ttl_ms": 3_600_001}, "invalid_argument"),
    ],
)
def test_submit_refuses(idle: RawClient, args: dict[str, object], code: str):
    assert refused(idle, "submit", **args) == code


def test_submit_many_adds_groups_of_consecutive_jobs(client: RawClient):
    groups = [{"queue": "mail", "payloads": [b"a", b"b", b"c"]}, {"priority": 5, "payloads": [b"x"]}]
    assert client.call("submit_many", groups=groups) == {"jobs": [[1, 3, False], [4, 1, False]]}


def test_submit_many_adds_all_or_none(client: RawClient):
    good = {"payloads": [b"a"]}
    with pytest.raises(Refused, match=r"groups\[1\]"):
        client.call("submit_many", groups=[good, {"payloads": [b"b"], "queue": "no spaces"}])
    too_many = [{"payloads": [b""] * 9_999}, {"payloads": [b""] * 2}]
    assert refused(client, "submit_many", groups=too_many) == "invalid_argument"
    assert refused(client, "submit_many", groups=[]) == "invalid_argument"
    large = {"payloads": [bytes(1_048_577)]}
    assert refused(client, "submit_many", groups=[good, large]) == "payload_too_large"
    assert client.call("list")["jobs"] == []


def test_jobs_by_the_thousand_are_submitted_leased_and_acked_by_ranges(client: RawClient):
    payloads = [os.urandom(8) for _ in range(10_000)]
    assert client.call("submit_many", groups=[{"payloads": payloads}])["jobs"] == [[1, 10_000, False]]
    lease = client.call("lease", count=10_000)
    assert [job["payload"] for job in lease["jobs"]] == payloads
    token = lease["token"]
    items = [[token, [[1, 4000], [4001, 1000]], b"r"], [token, [[5001, 5000]], None]]
    assert client.call("ack", items=items) == {"results": [[1, 10_000, "ok"]]}
    assert client.call("get", job_id=5000)["result"] == b"r"
    assert "result" not in client.call("get", job_id=5001)
    assert refused(client, "ack", items=[[token, [[1, 10_000], [10_001, 1]], None]]) == "invalid_argument"


def test_lease_takes_by_queue_then_priority_then_id(client: RawClient):
    groups: list[dict[str, Any]] = [
        {"queue": "slow", "payloads": [b"4"]},
        {"queue": "fast", "payloads": [b"2", b"3"]},
        {"queue": "fast", "payloads": [b"1"], "priority": 1},
    ]
    client.call("submit_many", groups=groups)
    lease = client.call("lease", queues=["none", "fast", "slow"], count=4, lease_ms=5000)
    assert [job["payload"] for job in lease["jobs"]] == [b"1", b"2", b"3", b"4"]
    assert lease["lease_ms_left"] == 5000
    empty = client.call("lease", queues=["fast"], wait_ms=1)
    assert (empty["token"], empty["lease_ms_left"], empty["jobs"]) == (0, 0, [])


def test_a_job_with_another_lease_time_ends_the_reply(client: RawClient):
    groups = [{"payloads": [b"a"], "lease_ms": 60_000}, {"payloads": [b"b"]}]
    client.call("submit_many", groups=groups)
    first = client.call("lease", count=2)
    second = client.call("lease", count=2)
    assert [first["lease_ms_left"], second["lease_ms_left"]] == [60_000, 30_000]
    assert [len(first["jobs"]), len(second["jobs"])] == [1, 1]


def test_a_parked_lease_is_overtaken_and_served_when_a_job_comes(client: RawClient):
    parked = client.send("lease", queues=["q"], wait_ms=30_000)
    assert client.call("stats")["parked_count"] == 1
    assert refused(client, "lease", queues=["q"], wait_ms=1) == "invalid_argument"
    assert client.call("lease", queues=["q"])["jobs"] == []
    job_id = client.call("submit", payload=b"x", queue="q")["job_id"]
    assert [job["job_id"] for job in client.answer(parked)["jobs"]] == [job_id]


def test_a_parked_lease_waits_for_delays_and_for_leases_that_run_out(client: RawClient):
    client.call("submit", queue="q", delay_ms=20, lease_ms=1000)
    first = client.call("lease", queues=["q"], wait_ms=30_000)
    second = client.call("lease", queues=["q"], wait_ms=30_000)
    assert second["token"] > first["token"]
    (job,) = second["jobs"]
    assert (job["attempt"], job["crashes"]) == (2, 1)
    late = client.call("ack", items=[[first["token"], [[1, 1]], None]])
    assert late == {"results": [[1, 1, "lease_lost"]]}
    (attempt,) = client.call("get", job_id=1)["attempts"]
    assert (attempt["attempt"], attempt["cause"], attempt["worker"]) == (1, "crash", "w-1")


@pytest.mark.parametrize(
    "args",
    [
        {"queues": []},
        {"queues": ["no spaces"]},
        {"queues": ["q"] * 65},
        {"count": 0},
        {"count": 10_001},
        {"wait_ms": 30_001},
        {"lease_ms": 999},
    ],
)
def test_lease_refuses(idle: RawClient, args: dict[str, object]):
    assert refused(idle, "lease", **args) == "invalid_argument"


def test_extend(client: RawClient):
    token, first = held(client, b"a", b"b", lease_ms=5000)
    longer = client.call("extend", items=[[token, [[first, 1], [99, 1]]]], lease_ms=60_000)
    assert longer == {"results": [[first, 1, "ok"], [99, 1, "job_not_found"]], "lease_ms_left": 60_000}
    # nil: the lease time that each has. The shortest is told.
    assert client.call("extend", items=[[token, [[first, 2]]]])["lease_ms_left"] == 5000
    assert client.call("extend", items=[[token, [[99, 1]]]])["lease_ms_left"] == 0


def test_ack(client: RawClient):
    token, first = held(client, b"a", b"b", b"c")
    items = [[token, [[first, 1]], b"17 ms"], [token, [[first + 1, 1], [98, 2]], None]]
    results = [[first, 2, "ok"], [98, 2, "job_not_found"]]
    assert client.call("ack", items=items, encoding="text") == {"results": results}
    done = client.call("get", job_id=first)
    assert (done["state"], done["result"], done["result_encoding"]) == ("done", b"17 ms", "text")
    assert (done["payload_bytes"], done.get("payload")) == (0, None)
    again = client.call("ack", items=[[token, [[first, 1]], None]])
    assert again == {"results": [[first, 1, "lease_lost"]]}
    bad: list[object] = [[token, [[first + 2, 1]], None]]
    assert client.call("ack", items=bad, result_error="é" * 5000)["results"] == [[first + 2, 1, "ok"]]
    dead = client.call("get", job_id=first + 2)
    assert (dead["state"], dead["reason"], dead["error"]) == ("dead", "refused", "é" * 2048)


def test_ack_refuses(client: RawClient):
    token, first = held(client, b"a")
    ranges = [[first, 1]]
    assert refused(client, "ack", items=[[token, ranges, bytes(65_537)]]) == "payload_too_large"
    assert refused(client, "ack", items=[[token, ranges, b"r"]], result_error="e") == "invalid_argument"
    assert refused(client, "ack", items=[[token, ranges]]) == "invalid_argument"
    assert refused(client, "ack", items=[[token, [], None]]) == "invalid_argument"
    assert refused(client, "ack", items=[[0, ranges, None]]) == "invalid_argument"
    assert states(client, first, 1) == ["leased"]


def test_fail(client: RawClient):
    token, first = held(client, b"a", b"b", b"c", b"d", max_retries=1)
    assert client.call("fail", items=[[token, [[first, 1]]]], error="SMTP 451", retry_in_ms=0) == {
        "results": [[first, 1, "ok"]]
    }
    client.call("fail", items=[[token, [[first + 1, 1]]]], retry_in_ms=60_000)
    client.call("fail", items=[[token, [[first + 2, 1]]]])
    client.call("fail", items=[[token, [[first + 3, 1]]]], dead=True)
    assert states(client, first, 4) == ["ready", "delayed", "delayed", "dead"]
    assert 59_000 < client.call("get", job_id=first + 1)["due_ms_left"] <= 60_000
    assert 0 < client.call("get", job_id=first + 2)["due_ms_left"] <= 1200
    assert client.call("get", job_id=first + 3)["reason"] == "killed"
    again = client.call("lease", queues=["q"])
    assert (again["jobs"][0]["attempt"], again["jobs"][0]["errors"]) == (2, 1)
    client.call("fail", items=[[again["token"], [[first, 1]]]], retry_in_ms=0, error="SMTP 452")
    dead = client.call("get", job_id=first)
    assert (dead["state"], dead["reason"], dead["errors"], dead["error"]) == (
        "dead",
        "retries",
        2,
        "SMTP 452",
    )
    assert [(entry["attempt"], entry["cause"], entry["error"]) for entry in dead["attempts"]] == [
        (1, "error", "SMTP 451"),
        (2, "error", "SMTP 452"),
    ]


def test_release_gives_the_attempt_back_and_makes_the_token_stale(client: RawClient):
    token, first = held(client, b"a", b"b")
    assert client.call("release", items=[[token, [[first, 1]]]]) == {"results": [[first, 1, "ok"]]}
    client.call("release", items=[[token, [[first + 1, 1]]]], delay_ms=60_000)
    assert states(client, first, 2) == ["ready", "delayed"]
    second = client.call("lease", queues=["q"])
    assert second["token"] > token
    assert second["jobs"][0]["attempt"] == 1
    stale = [[token, [[first, 1]]]]
    for verb, items in (("ack", [[*stale[0], None]]), ("extend", stale), ("fail", stale), ("release", stale)):
        assert client.call(verb, items=items)["results"] == [[first, 1, "lease_lost"]]
    assert states(client, first, 1) == ["leased"]


@pytest.mark.parametrize("verb", ["extend", "ack", "fail", "release"])
def test_what_names_jobs_refuses_as_a_whole(client: RawClient, verb: str):
    token, first = held(client, b"a", b"b")
    rest: list[object] = [None] if verb == "ack" else []
    twice = [[token, [[first, 2]], *rest], [token, [[first + 1, 1]], *rest]]
    too_many = [[token, [[first, 10_000], [20_000, 1]], *rest]]
    for items in (twice, too_many, [], [[token, [[first, 0]], *rest]], [[token, [[first, 10_001]], *rest]]):
        assert refused(client, verb, items=items) == "invalid_argument"
    assert refused(client, verb) == "invalid_argument"
    assert states(client, first, 2) == ["leased", "leased"]


def test_fail_refuses_a_delay_for_the_dead(client: RawClient):
    token, first = held(client, b"a")
    items = [[token, [[first, 1]]]]
    assert refused(client, "fail", items=items, dead=True, retry_in_ms=0) == "invalid_argument"


def test_a_token_is_good_on_any_connection_and_after_a_kill(daemon: Daemon, client: RawClient):
    token, first = held(client, b"a", b"b")
    with RawClient(daemon.address) as other:
        assert other.call("ack", items=[[token, [[first, 1]], None]])["results"] == [[first, 1, "ok"]]
    daemon.kill()
    daemon.start()
    with RawClient(daemon.address) as after:
        assert after.call("ack", items=[[token, [[first + 1, 1]], None]])["results"] == [[first + 1, 1, "ok"]]


def test_at_most_once_dies_of_its_first_failure_and_comes_back_by_requeue(client: RawClient):
    token, first = held(client, b"a", delivery="at_most_once")
    client.call("fail", items=[[token, [[first, 1]]]], retry_in_ms=0)
    assert states(client, first, 1) == ["dead"]
    assert client.call("requeue", ids=[[first, 1]])["count"] == 1
    assert client.call("lease", queues=["q"])["jobs"][0]["attempt"] == 2


# --- bulk actions ---------------------------------------------------------------------------------------


def test_cancel(client: RawClient):
    _, first = held(client, b"a")
    client.call(
        "submit_many", groups=[{"queue": "q", "payloads": [b"b"]}, {"payloads": [b"c"], "delay_ms": 60_000}]
    )
    verdicts = [[first, 1, "wrong_state"], [first + 1, 2, "ok"], [first + 3, 1, "job_not_found"]]
    wanted = {"count": 2, "cursor": None, "results": verdicts}
    assert client.call("cancel", ids=[[first, 4]], dry_run=True) == wanted
    assert states(client, first, 3) == ["leased", "ready", "delayed"]
    assert client.call("cancel", ids=[[first, 4]]) == wanted
    assert states(client, first, 3) == ["leased", "cancelled", "cancelled"]


def test_requeue(client: RawClient):
    token, first = held(client, b"a", b"b", b"c")
    client.call("ack", items=[[token, [[first, 1]], None]])
    client.call("fail", items=[[token, [[first + 1, 2]]]], dead=True)
    assert client.call("requeue", ids=[[first, 2]])["results"] == [
        [first, 1, "wrong_state"],
        [first + 1, 1, "ok"],
    ]
    assert client.call("requeue", filter={"queue": "q"}) == {"count": 1, "cursor": None, "results": []}
    job = client.call("get", job_id=first + 1)
    assert (job["state"], job["attempt"], job.get("errors", 0), len(job["attempts"])) == ("ready", 1, 0, 1)


def test_purge_spares_the_dead_unless_they_are_named(client: RawClient):
    token, first = held(client, b"a")
    client.call("fail", items=[[token, [[first, 1]]]], dead=True)
    client.call("submit", queue="q")
    assert client.call("purge", filter={"queue": "q"}) == {"count": 1, "cursor": None, "results": []}
    assert states(client, first, 1) == ["dead"]
    assert client.call("purge", filter={"state": "dead"})["count"] == 1
    assert refused(client, "get", job_id=first) == "job_not_found"
    assert client.call("purge", ids=[[first, 1]])["results"] == [[first, 1, "job_not_found"]]


def test_a_bulk_action_goes_on_from_its_cursor(client: RawClient):
    client.call("submit_many", groups=[{"queue": "q", "payloads": [b""] * 25}, {"payloads": [b""] * 5}])
    counts, cursor = [], 0
    while cursor is not None:
        page = client.call("cancel", filter={"queue": "q"}, limit=10, cursor=cursor)
        counts.append(page["count"])
        cursor = page["cursor"]
    assert sum(counts) == 25 and max(counts) == 10
    assert client.call("stats")["jobs"]["ready"] == 5


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        ("cancel", "dead"),
        ("cancel", "leased"),
        ("requeue", "done"),
        ("purge", "leased"),
        ("purge", "cancelled"),
    ],
)
def test_a_bulk_action_refuses_a_state_that_it_does_not_take(idle: RawClient, verb: str, state: str):
    assert refused(idle, verb, filter={"state": state}) == "wrong_state"


@pytest.mark.parametrize("verb", ["cancel", "requeue", "purge"])
def test_a_bulk_action_refuses(client: RawClient, verb: str):
    client.call("submit")
    assert refused(client, verb) == "invalid_argument"
    assert refused(client, verb, ids=[[1, 1]], filter={}) == "invalid_argument"
    assert refused(client, verb, ids=[[1, 1], [1, 1]]) == "invalid_argument"
    assert refused(client, verb, ids=[[1, 10_000], [20_000, 1]]) == "invalid_argument"
    assert refused(client, verb, filter={"state": "asleep"}) == "invalid_argument"
    assert refused(client, verb, filter={"tenant": "acme"}) == "invalid_argument"
    assert refused(client, verb, filter={}, limit=1001) == "invalid_argument"
    assert refused(client, verb, filter={"queue": "none"}) == "queue_not_found"
    assert states(client, 1, 1) == ["ready"]


# --- reads ------------------------------------------------------------------------------------------------


def test_ping(idle: RawClient):
    first, second = idle.call("ping"), idle.call("ping")
    assert idle.welcome["engine_ms"] <= first["engine_ms"] <= second["engine_ms"]
    assert first["wall_ms"] > 1_700_000_000_000


def test_get(client: RawClient):
    job_id = client.call("submit", payload=b"xyz", run_at_ms=4_000_000_000_000)["job_id"]
    job = client.call("get", job_id=job_id)
    created = job["created_wall_ms"]
    assert job == {
        "job_id": job_id,
        "queue": "default",
        "state": "delayed",
        "attempt": 0,
        "created_wall_ms": created,
        "changed_wall_ms": created,
        "payload_bytes": 3,
        "payload": b"xyz",
        "run_at_ms": 4_000_000_000_000,
    }
    assert refused(client, "get", job_id=job_id + 1) == "job_not_found"
    assert refused(client, "get", job_id=0) == "invalid_argument"
    assert refused(client, "get", job_id=1 << 60) == "invalid_argument"


def test_list_turns_pages(client: RawClient):
    client.call("submit_many", groups=[{"queue": "q", "payloads": [b"x"] * 7}, {"payloads": [b"y"] * 2}])
    seen, cursor = [], 0
    while cursor is not None:
        page = client.call("list", filter={"queue": "q", "state": "ready"}, limit=3, cursor=cursor)
        assert len(page["jobs"]) <= 3
        seen += page["jobs"]
        cursor = page["cursor"]
    assert [job["job_id"] for job in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert all("payload" not in job and job["payload_bytes"] == 1 for job in seen)
    assert len(client.call("list")["jobs"]) == 9
    assert refused(client, "list", filter={"queue": "none"}) == "queue_not_found"
    assert refused(client, "list", limit=0) == "invalid_argument"
    assert refused(client, "list", cursor=-1) == "invalid_argument"


def test_queues_turns_pages(client: RawClient):
    names = [f"q{n}" for n in range(7)]
    client.call("submit_many", groups=[{"queue": name, "payloads": [b""]} for name in reversed(names)])
    seen, cursor = [], ""
    while cursor is not None:
        page = client.call("queues", limit=3, cursor=cursor)
        seen += page["queues"]
        cursor = page["cursor"]
    ages = [shown.pop("ready_age_ms") for shown in seen]
    assert all(0 <= age < 60_000 for age in ages)
    assert all(shown.pop("memory_bytes") > 0 for shown in seen)
    counts = {**dict.fromkeys(STATES, 0), "ready": 1}
    assert seen == [{"queue": name, **counts, "paused": False} for name in names]
    assert refused(client, "queues", limit=1001) == "invalid_argument"
    assert refused(client, "queues", cursor=0) == "invalid_argument"


def test_stats(client: RawClient):
    token, first = held(client, b"a", b"b")
    client.call("ack", items=[[token, [[first, 1]], b"12345"]])
    reply = client.reply(client.send("stats"))
    stats = reply.body
    assert stats["jobs"] == {**dict.fromkeys(STATES, 0), "leased": 1, "done": 1}
    counted = ("queue_count", "lease_count", "parked_count", "session_count", "result_bytes")
    assert [stats[name] for name in counted] == [1, 1, 0, 0, 5]
    assert stats["lsn"] == reply.lsn
    for name in ("server", "store_id", "epoch"):
        assert stats[name] == client.welcome[name]
    assert all(isinstance(value, int) for value in stats["process"].values())
    assert stats["process"]["connections"] == 1
    assert refused(client, "stats", verbose=True) == "invalid_argument"


# --- workers ------------------------------------------------------------------------------------


def test_a_worker_says_what_it_is_is_shown_and_told(daemon: Daemon, client: RawClient):
    session = secrets.token_bytes(16)
    client.call("submit", payload=b"x")
    with RawClient(daemon.address, worker="w-2", session=session) as worker:
        said = {"queues": ["default"], "concurrency": 4, "host": "box", "pid": 42, "version": "7"}
        registered = worker.call("register", **said)
        assert (registered["order"], registered["beat_ms"]) == (None, 5_000)
        worker.call("lease")
        (shown,) = client.call("workers")["workers"]
        assert {name: shown[name] for name in said} == said
        assert [shown[name] for name in ("worker_id", "worker", "state", "leased", "jobs")] == [
            *(registered["worker_id"], "w-2", "running", 1, [[1, 1]])
        ]
        told = client.call("tell_workers", order="quiet", workers=["w-2"])
        assert told == {"told": [[registered["worker_id"], "w-2"]]}
        event = worker.next_reply()
        assert (event.id, event.status, event.body) == (0, "order", {"order": "quiet"})
        assert worker.call("register", **said)["order"] == "quiet"
        assert worker.call("register", **said, state="quiet")["order"] is None


@pytest.mark.parametrize(
    "args",
    [
        {"queues": ["a b"]},
        {"queues": ["q"] * 65},
        {"concurrency": 0},
        {"state": "asleep"},
        {"pid": -1},
        {"host": "h" * 129},
        {"jobs": 1},
    ],
)
def test_register_refuses(idle_daemon: Daemon, args: dict[str, object]):
    with RawClient(idle_daemon.address, session=secrets.token_bytes(16)) as client:
        assert refused(client, "register", **args) == "invalid_argument"
        assert client.call("workers") == {"workers": [], "cursor": None}


def test_what_is_about_workers_refuses(idle: RawClient):
    assert refused(idle, "register") == "invalid_argument", "without a session nobody is a worker"
    assert refused(idle, "workers", limit=0) == "invalid_argument"
    for args in ({}, {"order": "stop"}, {"order": "run", "all": True}, {"order": "stop", "workers": []}):
        assert refused(idle, "tell_workers", **args) == "invalid_argument"
    assert refused(idle, "tell_workers", order="stop", workers=["nobody"]) == "worker_not_found"
    assert idle.call("tell_workers", order="stop", all=True) == {"told": []}
