"""How the measured servers are spoken to: one class each for jqd, beanstalkd, and a Redis list used as a queue.

Knows:         requests as bytes, where a reply ends, which replies mean that it went well.
Must not know: sockets, who sends what when (load.py).

All three do the same: a job is submitted, leased by one worker, acked, and gone. What a dialect does not get as an
answer to a request that it made is Refused, so that no benchmark counts errors as work.

    dialect       submit            lease up to n jobs                          ack
    Jqd           submit            lease, count n                              ack, all jobs of the grant
    Beanstalkd    put               n times reserve-with-timeout 0              delete, each job
    Redis         LPUSH             n times LMOVE from list q to list p         LREM from p, each job
    (waiting)                       the first of the n is reserve, or BLMOVE

Where one request takes one job, a batch is n requests in one write. Sources: jqd's protocol.md; doc/protocol.txt of
beanstalkd; "Pattern: Reliable queue" in the documentation of LMOVE.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tests.bench import wire
from tests.bench.wire import Refused

# As long as the workers ever wait; jqd then answers with nothing, and is asked again.
WAIT_MS: Final = 30_000
# Longer than any run, so that no lease runs out in one. The others' default is jqd's own, or there is none.
BEANSTALKD_TTR_S: Final = 60

_CRLF: Final = b"\r\n"


class Counts(NamedTuple):
    """The jobs that a server has."""

    waiting: int
    leased: int


class Dialect:
    """What load.py needs to know of a protocol. One object for each connection.

    The methods named in the past tense take the bytes that came and return what they say, and last the bytes that
    are not yet a whole reply.
    """

    # What a connection says first; empty: nothing.
    hello: bytes = b""
    # Asks for Counts.
    census: bytes

    def greeted(self, data: bytes) -> tuple[bool, bytes]:
        """Tell whether hello was answered."""
        raise NotImplementedError

    def submit(self, payload: bytes) -> bytes:
        raise NotImplementedError

    def submit_many(self, payloads: Sequence[bytes]) -> bytes:
        """Return one request for all of them."""
        raise NotImplementedError

    def submitted(self, data: bytes) -> tuple[int, bytes]:
        """Count the requests that were answered."""
        raise NotImplementedError

    def lease(self, count: int, *, wait: bool) -> bytes:
        """Return what asks for up to so many jobs; with wait, it is answered as soon as there is one."""
        raise NotImplementedError

    def replies(self, count: int) -> int:
        """Return how many replies lease(count) gets."""
        return count

    def leased(self, data: bytes) -> tuple[int, list[Any], bytes]:
        """Count the replies, and return the jobs in them."""
        raise NotImplementedError

    def payload(self, job: Any) -> bytes:
        raise NotImplementedError

    def ack(self, jobs: list[Any]) -> bytes:
        """Return what finishes these jobs, which one lease() has brought."""
        raise NotImplementedError

    def acked(self, data: bytes) -> tuple[int, bytes]:
        """Count the jobs that are finished."""
        raise NotImplementedError

    def counts(self, data: bytes) -> Counts | None:
        """Return what the reply to hello and census says; None: it is not all there yet."""
        raise NotImplementedError


class Jqd(Dialect):
    """Without a session, as peers know no retries that are answered once; see wire.py for the ids."""

    hello = wire.hello(None)
    census = wire.request("stats", {})

    def __init__(self) -> None:
        self._token = 0

    def greeted(self, data: bytes) -> tuple[bool, bytes]:
        bodies, rest = wire.cut(data)
        wire.check_all(bodies)
        return bool(bodies), rest

    def submit(self, payload: bytes) -> bytes:
        return wire.request("submit", {"payload": payload})

    def submit_many(self, payloads: Sequence[bytes]) -> bytes:
        return wire.request("submit_many", {"groups": [{"payloads": payloads}]})

    def submitted(self, data: bytes) -> tuple[int, bytes]:
        bodies, rest = wire.cut(data)
        wire.check_all(bodies)
        return len(bodies), rest

    def lease(self, count: int, *, wait: bool) -> bytes:
        return wire.request("lease", {"count": count, "wait_ms": WAIT_MS} if wait else {"count": count})

    def replies(self, count: int) -> int:
        return 1

    def leased(self, data: bytes) -> tuple[int, list[Any], bytes]:
        bodies, rest = wire.cut(data)
        jobs: list[Any] = []
        for body in bodies:
            grant = wire.leased(body)
            self._token = grant.token
            jobs += grant.jobs
        return len(bodies), jobs, rest

    def payload(self, job: wire.Job) -> bytes:
        return job.payload

    def ack(self, jobs: list[wire.Job]) -> bytes:
        return wire.ack(self._token, [job.job_id for job in jobs])

    def acked(self, data: bytes) -> tuple[int, bytes]:
        bodies, rest = wire.cut(data)
        return sum(map(wire.acked_count, bodies)), rest

    def counts(self, data: bytes) -> Counts | None:
        bodies, _ = wire.cut(data)
        if len(bodies) < 2:
            return None
        wire.check_all(bodies)
        jobs = msgspec.msgpack.decode(bodies[1])[3]["jobs"]
        return Counts(jobs["ready"] + jobs["delayed"], jobs["leased"])


class Beanstalkd(Dialect):
    """A job is (id, payload)."""

    census = b"stats\r\n"

    def submit(self, payload: bytes) -> bytes:
        return b"put 0 0 %d %d\r\n%b\r\n" % (BEANSTALKD_TTR_S, len(payload), payload)

    def submitted(self, data: bytes) -> tuple[int, bytes]:
        whole, rest = _lines(data)
        return _count(whole, b"INSERTED "), rest

    def lease(self, count: int, *, wait: bool) -> bytes:
        if wait:
            return b"reserve\r\n" + b"reserve-with-timeout 0\r\n" * (count - 1)
        return b"reserve-with-timeout 0\r\n" * count

    def leased(self, data: bytes) -> tuple[int, list[Any], bytes]:
        replies, jobs, start = 0, [], 0
        while (end := data.find(_CRLF, start)) >= 0:
            line = data[start:end]
            stop = end + 2
            if line.startswith(b"RESERVED "):
                _, job_id, size = line.split()
                stop += int(size) + 2
                if len(data) < stop:
                    break
                jobs.append((job_id, data[end + 2 : stop - 2]))
            elif line != b"TIMED_OUT":
                raise Refused(repr(line))
            replies += 1
            start = stop
        return replies, jobs, data[start:]

    def payload(self, job: tuple[bytes, bytes]) -> bytes:
        return job[1]

    def ack(self, jobs: list[tuple[bytes, bytes]]) -> bytes:
        return b"".join([b"delete %b\r\n" % job_id for job_id, _ in jobs])

    def acked(self, data: bytes) -> tuple[int, bytes]:
        return _repeated(data, b"DELETED\r\n")

    def counts(self, data: bytes) -> Counts | None:
        head, ended, body = data.partition(_CRLF)
        if ended and not head.startswith(b"OK "):
            raise Refused(repr(head))
        if not ended or len(body) < int(head[3:]) + 2:
            return None
        fields = dict(line.split(b": ", 1) for line in body.splitlines() if b": " in line)
        ready, leased, delayed, buried = (
            int(fields[b"current-jobs-" + state]) for state in (b"ready", b"reserved", b"delayed", b"buried")
        )
        return Counts(ready + delayed + buried, leased)


class Redis(Dialect):
    """A job is its payload, and payloads have to differ: LREM finds the one to remove by its value.

    The list p holds what was leased and not acked. It is searched from its old end, where acks find their jobs.
    """

    @staticmethod
    def command(*words: bytes) -> bytes:
        return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])

    census = command(b"LLEN", b"q") + command(b"LLEN", b"p")
    _move: Final = command(b"LMOVE", b"q", b"p", b"RIGHT", b"LEFT")
    _wait: Final = command(b"BLMOVE", b"q", b"p", b"RIGHT", b"LEFT", b"0")
    # The same as command() makes, but for the last word: it is needed for every job.
    _remove: Final = b"*4\r\n$4\r\nLREM\r\n$1\r\np\r\n$2\r\n-1\r\n$%d\r\n%b\r\n"

    def submit(self, payload: bytes) -> bytes:
        return self.command(b"LPUSH", b"q", payload)

    def submit_many(self, payloads: Sequence[bytes]) -> bytes:
        return self.command(b"LPUSH", b"q", *payloads)

    def submitted(self, data: bytes) -> tuple[int, bytes]:
        whole, rest = _lines(data)
        return _count(whole, b":"), rest

    def lease(self, count: int, *, wait: bool) -> bytes:
        return self._wait + self._move * (count - 1) if wait else self._move * count

    def leased(self, data: bytes) -> tuple[int, list[Any], bytes]:
        replies, jobs, start = 0, [], 0
        while (end := data.find(_CRLF, start)) >= 0:
            if not data.startswith(b"$", start):
                raise Refused(repr(data[start:end]))
            size = int(data[start + 1 : end])
            stop = end + 2
            if size >= 0:  # -1: there is none
                stop += size + 2
                if len(data) < stop:
                    break
                jobs.append(data[end + 2 : stop - 2])
            replies += 1
            start = stop
        return replies, jobs, data[start:]

    def payload(self, job: bytes) -> bytes:
        return job

    def ack(self, jobs: list[bytes]) -> bytes:
        return b"".join([self._remove % (len(job), job) for job in jobs])

    def acked(self, data: bytes) -> tuple[int, bytes]:
        return _repeated(data, b":1\r\n")

    def counts(self, data: bytes) -> Counts | None:
        whole, _ = _lines(data)
        if _count(whole, b":") < 2:
            return None
        waiting, leased = (int(line[1:]) for line in whole.splitlines())
        return Counts(waiting, leased)


# --- replies that are lines: looked at all at once, so that the generator stays cheap -----------------------


def _lines(data: bytes) -> tuple[bytes, bytes]:
    """Split data after its last line."""
    end = data.rfind(_CRLF) + 2
    return (data[:end], data[end:]) if end > 1 else (b"", data)


def _count(whole: bytes, word: bytes) -> int:
    """Count the lines, each of which has to hold the word once."""
    count = whole.count(_CRLF)
    if whole.count(word) != count or b"-" in whole:  # a Redis error begins with it
        raise Refused(repr(whole[:200]))
    return count


def _repeated(data: bytes, reply: bytes) -> tuple[int, bytes]:
    """Count replies that all have to be this one."""
    count = len(data) // len(reply)
    end = count * len(reply)
    if data[:end] != reply * count or not reply.startswith(data[end:]):
        raise Refused(repr(data[:200]))
    return count, data[end:]
