"""What a benchmark takes for an answer: split anywhere, and nothing but what was asked for."""

import re

import pytest

from tests.bench import wire
from tests.bench.dialects import Beanstalkd, Counts, Dialect, Jqd, Redis

TAG = wire.FIRST_ID


def reply(status: str, body: object) -> bytes:
    """Return the frame of jqd's answer."""
    packed = wire._encode(body)
    rest = b"\x94\xce" + TAG.to_bytes(4, "big") + wire._encode(status) + b"\x01" + packed
    return len(rest).to_bytes(4, "big") + rest


def grant(*payloads: bytes) -> bytes:
    jobs = [{"job_id": number, "payload": payload} for number, payload in enumerate(payloads, 7)]
    return reply("ok", {"token": 3, "jobs": jobs})


def acks(code: str) -> bytes:
    return reply("ok", {"results": [(7, 2, code)]})


# dialect, method, what the server sends, what the calls add up to
ANSWERS = [
    (Jqd, "greeted", reply("ok", {}), 1),
    (Jqd, "submitted", reply("ok", {"job_id": 7}) * 3, 3),
    (Jqd, "leased", grant(b"a", b"\r\n"), (1, [b"a", b"\r\n"])),
    (Jqd, "leased", grant(), (1, [])),
    (Jqd, "acked", acks("ok") * 2, 4),
    (Beanstalkd, "submitted", b"INSERTED 1\r\nINSERTED 22\r\n", 2),
    (
        Beanstalkd,
        "leased",
        b"RESERVED 1 1\r\na\r\nTIMED_OUT\r\nRESERVED 2 2\r\n\r\n\r\n",
        (3, [b"a", b"\r\n"]),
    ),
    (Beanstalkd, "acked", b"DELETED\r\n" * 3, 3),
    (Redis, "submitted", b":1\r\n:22\r\n", 2),
    (Redis, "leased", b"$1\r\na\r\n$-1\r\n$2\r\n\r\n\r\n", (3, [b"a", b"\r\n"])),
    (Redis, "acked", b":1\r\n" * 3, 3),
]


def hear(dialect: Dialect, method: str, chunks: list[bytes]) -> object:
    """Feed chunks as a connection does, and add up what they say."""
    total, payloads, rest = 0, [], b""
    for chunk in chunks:
        count, *jobs, rest = getattr(dialect, method)(rest + chunk)
        total += count
        payloads += [dialect.payload(job) for found in jobs for job in found]
    assert rest == b""
    return (total, payloads) if method == "leased" else total


@pytest.mark.parametrize(("dialect", "method", "data", "said"), ANSWERS)
def test_replies_are_counted_wherever_they_are_split(dialect, method, data, said):
    assert hear(dialect(), method, [data]) == said
    assert hear(dialect(), method, [data[index : index + 1] for index in range(len(data))]) == said
    for index in range(len(data)):
        assert hear(dialect(), method, [data[:index], data[index:]]) == said


# What a server says when it has not done what it was asked for, in the middle of replies that are as they should be.
REFUSALS = [
    (Jqd, "greeted", reply("version_mismatch", {})),
    (Jqd, "submitted", reply("ok", {}) + reply("queue_full", {})),
    (Jqd, "leased", reply("draining", {})),
    (Beanstalkd, "submitted", b"INSERTED 1\r\nBURIED 2\r\n"),
    (Beanstalkd, "submitted", b"OUT_OF_MEMORY\r\n"),
    (Beanstalkd, "leased", b"DEADLINE_SOON\r\n"),
    (Beanstalkd, "acked", b"DELETED\r\nNOT_FOUND\r\n"),
    (Redis, "submitted", b":1\r\n-MISCONF no disk: nothing is written\r\n"),
    (Redis, "submitted", b"-MISCONF no disk: nothing is written\r\n"),
    (Redis, "leased", b"-OOM command not allowed\r\n"),
    (Redis, "acked", b":1\r\n:0\r\n"),
]


@pytest.mark.parametrize(("dialect", "method", "data"), REFUSALS)
def test_refusal_is_no_answer(dialect, method, data):
    with pytest.raises(wire.Refused):
        hear(dialect(), method, [data])


def test_ack_that_finished_nothing_does_not_count():
    assert hear(Jqd(), "acked", [acks("lease_lost")]) == 0


@pytest.mark.parametrize("dialect", [Beanstalkd, Redis])
def test_batch_is_one_request_for_each_job_and_waits_for_the_first_alone(dialect):
    one, waiting = dialect().lease(1, wait=False), dialect().lease(1, wait=True)
    assert dialect().lease(3, wait=False) == one * 3
    assert dialect().lease(3, wait=True) == waiting + one * 2
    assert dialect().replies(3) == 3


def test_redis_removes_the_job_that_it_was_given():
    (job,) = Redis().leased(b"$3\r\na\r\n\r\n")[1]
    assert Redis().ack([job]) == Redis.command(b"LREM", b"p", b"-1", b"a\r\n")


STATS = reply("ok", {"jobs": {"ready": 2, "delayed": 1, "leased": 4, "done": 9}})
YAML = (
    b"---\ncurrent-jobs-ready: 2\ncurrent-jobs-reserved: 4\ncurrent-jobs-delayed: 1\ncurrent-jobs-buried: 0\n"
)
CENSUSES = [
    (Jqd, reply("ok", {}) + STATS),
    (Beanstalkd, b"OK %d\r\n%b\r\n" % (len(YAML), YAML)),
    (Redis, b":3\r\n:4\r\n"),
]


@pytest.mark.parametrize(("dialect", "data"), CENSUSES)
def test_census_is_read_when_it_is_all_there(dialect, data):
    assert [dialect().counts(data[:end]) for end in range(len(data))] == [None] * len(data)
    assert dialect().counts(data) == Counts(waiting=3, leased=4)


def test_requests_of_the_peers_say_how_long_their_payload_is():
    payload = b"x" * 10
    for request in (Beanstalkd().submit(payload), Redis().submit(payload)):
        assert re.search(rb"\b10\r\nx{10}\r\n\Z", request)
