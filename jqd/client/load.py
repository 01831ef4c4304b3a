"""Load for a daemon that is to be measured: connections as state machines in one loop, no thread and no future.

Knows:         how many requests are in flight, what follows on a reply, which jobs are its own, how long it all took.
Must not know: options, what is printed, what the daemon's process costs.

    load = Load(url, plan, timeout_s=30)
    load.prepare()          connects; puts the jobs in that a lease is to find
    span = load.measure()   from the first request to the last reply
    load.own_ids()          what of it may still be there, for a purge
    load.close()

    Producer   keeps `pipeline` requests in flight, each of one job, or `batch` jobs in a submit_many
    Taker      keeps `pipeline` pairs in flight: lease `batch` jobs that are there, ack them
    Worker     waits for up to `batch` jobs, acks them, and so on

Each connection is a session of its own, as the connections of as many programs would be. In a mixed load as many
jobs are on their way (submitted, not yet acked) as the producers may have in flight: a job that is acked lets the
next one in. Otherwise the queue would grow all along, and how long a job waits would tell only how long it grew.

The generator shares one core for all its connections, so a request costs it two structs and an entry in a dict.

No job of another program is ended: who leases checks that each job is its own, and gives back any other.
"""

import errno
import os
import selectors
import time
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, Final, Literal

from msgspec import Raw, Struct

from jqd.client.shared import CONNECT_S, make_shared
from jqd.client.synclink import open_socket
from jqd.core.commands import (
    Ack,
    Command,
    Hello,
    Lease,
    Leased,
    LeasedJob,
    Release,
    Submit,
    SubmitGroup,
    SubmitMany,
    Submitted,
    SubmittedMany,
    Verdicts,
    Welcome,
    check_version,
    to_ranges,
)
from jqd.core.model import (
    FRAME_BYTES_MAX,
    IN_FLIGHT_MAX,
    JOBS_PER_REQUEST_MAX,
    PAYLOAD_BYTES_MAX,
    check_name,
)
from jqd.errors import (
    WIRE_ERRORS,
    BadFrame,
    ConnectionLost,
    InvalidArgument,
    JqdError,
    LeaseLost,
    RequestTimeout,
    WrongState,
)
from jqd.protocol import framing, messages

__all__ = [
    "BYTES_MAX",
    "CLIENTS_MAX",
    "IN_FLIGHT_MAX",
    "JOBS_MAX",
    "JOBS_PER_REQUEST_MAX",
    "PAYLOAD_BYTES_MAX",
    "STAMP_BYTES",
    "Kind",
    "Latencies",
    "Load",
    "Plan",
    "Span",
    "check",
]

Kind = Literal["submit", "lease", "mixed"]

# Enough to keep any daemon busy; a mixed load has twice as many connections, and the daemon takes 10,000.
CLIENTS_MAX: Final = 1_000
# An hour at the rate of a slow disk.
JOBS_MAX: Final = 10_000_000
# Payloads of all jobs together: a daemon holds what waits in memory, and writes all of it to its log.
BYTES_MAX: Final = 1 << 30
# In front of a mixed load's payload: which run it belongs to, and when it was submitted.
_RUN_BYTES: Final = 8
STAMP_BYTES: Final = _RUN_BYTES + 8

# What a job adds to a request beside its payload, and what a request has beside its jobs, at most.
_JOB_BYTES: Final = 5
_REQUEST_BYTES: Final = 512
# Jobs that are put in before a lease is measured, in one request: at most so many bytes.
_FILL_BYTES: Final = 4 << 20
# What is read at a time: below malloc's threshold for mmap.
_READ_BYTES: Final = 64 << 10
# How often the loop looks at the clock, at least.
_LOOK_S: Final = 0.1
# How long an interrupted load waits for what is under way.
_DRAIN_S: Final = 5.0
# How long a worker waits for a job in one request.
_WAIT_MS: Final = 1_000
_US: Final = 1_000
_FILLER: Final = b"abcdefghijklmnopqrstuvwxyz0123456789"


class Plan(Struct, frozen=True, kw_only=True):
    """What is to be done.

    clients:  connections; of a mixed load so many producers and so many workers.
    pipeline: requests in flight on each, but for the workers: they have one.
    batch:    jobs in a request; 1 submits with `submit`, more with `submit_many`.
    jobs:     in all.
    existing: lease the jobs that are in the queue, whoever put them there, instead of own ones.
    """

    kind: Kind
    queue: str
    clients: int
    pipeline: int
    batch: int
    payload_bytes: int
    jobs: int
    existing: bool = False


def check(plan: Plan) -> None:
    """Refuse what a daemon would refuse, or what would fill its memory.

    Raises: InvalidArgument: naming the value and the limit.
    """
    check_name("queue", plan.queue)
    for name, least, most in (
        ("clients", 1, CLIENTS_MAX),
        ("pipeline", 1, IN_FLIGHT_MAX),
        ("batch", 1, JOBS_PER_REQUEST_MAX),
        ("payload_bytes", STAMP_BYTES if plan.kind == "mixed" else 0, PAYLOAD_BYTES_MAX),
        ("jobs", 1, JOBS_MAX),
    ):
        value = getattr(plan, name)
        if not least <= value <= most:
            raise InvalidArgument(f"{name} = {value}: must be {least} to {most}")
    if (size := plan.jobs * plan.payload_bytes) > BYTES_MAX:
        raise InvalidArgument(
            f"jobs = {plan.jobs} of {plan.payload_bytes} bytes = {size} bytes: the limit is {BYTES_MAX}, "
            "since the daemon keeps them in memory"
        )
    size = _REQUEST_BYTES + plan.batch * (plan.payload_bytes + _JOB_BYTES)
    if plan.kind != "lease" and size > FRAME_BYTES_MAX:
        raise InvalidArgument(
            f"batch = {plan.batch} jobs of {plan.payload_bytes} bytes = {size} bytes: "
            f"the limit of a request is {FRAME_BYTES_MAX}"
        )


class Latencies:
    """Times in us, each with how often it was seen. Exact; as large as there are different ones."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def add(self, ns: int, count: int = 1) -> None:
        us = ns // _US
        self.counts[us] = self.counts.get(us, 0) + count

    def __len__(self) -> int:
        return sum(self.counts.values())

    def percentile(self, percent: float) -> int | None:
        """Return the least time that `percent` of all do not exceed (nearest rank); None without any."""
        wanted = len(self) * percent / 100
        seen = 0
        for us in sorted(self.counts):
            seen += self.counts[us]
            if seen >= wanted:
                return us
        return None


class Span(Struct, kw_only=True):
    """What was measured.

    jobs:     that were done: submitted, or leased and acked.
    requests: of those verbs that have a latency: of a mixed load not the leases, which wait for a job.
    waits:    of a mixed load: from the sending of submit to the arrival of the lease, of each job.
    cpu_s:    processor time of this process.
    """

    jobs: int
    seconds: float
    cpu_s: float
    requests: Latencies
    waits: Latencies
    stopped: bool


class Load:
    """See the file's card.

    Args:
        timeout_s: nothing comes for so long while something is under way: it has failed.
        progress: called some times a second with how many jobs are done, and of how many.
    """

    def __init__(
        self,
        url: str,
        plan: Plan,
        *,
        timeout_s: float,
        worker: str = "",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        check(plan)
        self.url = url
        self.worker = worker
        self.plan = plan
        self.left = 0  # jobs that nobody has begun
        self.open = 0  # of a mixed load: jobs that were sent and are not acked
        self.open_max = plan.clients * plan.pipeline * plan.batch
        self.done = 0
        self.unanswered = 0
        self.stopped = False
        self.refusal: JqdError | None = None  # the first; what is under way is still awaited
        self.requests = Latencies()
        self.waits = Latencies()
        self.resting: deque[Producer] = deque()  # wait until a job is acked
        self.run = os.urandom(_RUN_BYTES)
        self._own: array[int] = array("Q")  # first id, count, first id, count, ...
        self._fence: list[int] = []  # borders of the own ids, once they are all there
        self._timeout_s = timeout_s
        self._progress = progress
        self._selector = selectors.DefaultSelector()
        self._lanes: list[_Lane] = []
        self.moved = False  # something came since the loop last looked
        self._heard_s = 0.0  # when something last came, as far as the loop has looked
        self._drain_by_s: float | None = None
        self._look_s = 0.0

    # --- what a caller does, in this order ------------------------------------------------------

    def prepare(self) -> None:
        """Connect, and put in what is to be leased.

        Raises: JqdError: the first thing that went wrong.
        """
        plan = self.plan
        if plan.kind == "lease" and not plan.existing:
            size = min(_FILL_BYTES // (plan.payload_bytes + _JOB_BYTES), JOBS_PER_REQUEST_MAX)
            fill = Producer(self, batch=max(size, 1), window=2)
            self._connect([fill])
            self.left = plan.jobs
            self._play([fill], self._settled)
            self._disconnect(fill)
            self._fence = [border for first, end in self._own_runs() for border in (first, end)]
        kinds: dict[Kind, list[type[_Lane]]] = {
            "submit": [Producer],
            "lease": [Taker],
            "mixed": [Producer, Worker],
        }
        self.done = 0
        self._connect([kind(self) for kind in kinds[plan.kind] for _ in range(plan.clients)])

    def measure(self) -> Span:
        """Do what is planned. Returns early after stop(), with what was done till then.

        Raises: JqdError: the first refusal, once all else that was under way is answered; ConnectionLost,
                RequestTimeout: at once.
        """
        self.requests, self.waits = Latencies(), Latencies()
        self.done = 0
        self.left = 0 if self.stopped else self.plan.jobs
        cpu_s, begun_s = time.process_time(), time.perf_counter()
        self._play(self._lanes, self._finished if self.plan.kind == "mixed" else self._settled)
        seconds = time.perf_counter() - begun_s
        return Span(
            jobs=self.done,
            seconds=seconds,
            cpu_s=time.process_time() - cpu_s,
            requests=self.requests,
            waits=self.waits,
            stopped=self.stopped,
        )

    def stop(self) -> None:
        """Begin nothing new, and finish what is under way. May be called in a signal handler."""
        self.stopped = True

    def own_ids(self) -> Iterator[list[int]]:
        """Yield the ids of all jobs that were put in, as far as their replies came, as many as a request takes."""
        ids = chain.from_iterable(range(first, end) for first, end in self._own_runs())
        while part := list(islice(ids, JOBS_PER_REQUEST_MAX)):
            yield part

    def close(self) -> None:
        """Close every connection."""
        for lane in list(self._lanes):
            self._disconnect(lane)
        self._selector.close()

    # --- the loop ---------------------------------------------------------------------------------

    def _connect(self, lanes: "list[_Lane]") -> None:
        for lane in lanes:
            self._lanes.append(lane)
            self._selector.register(lane.socket, selectors.EVENT_READ, lane)
            lane.greet()
        self._play([], lambda: all(lane.greeted for lane in lanes), CONNECT_S)

    def _disconnect(self, lane: "_Lane") -> None:
        self._lanes.remove(lane)
        self._selector.unregister(lane.socket)
        lane.socket.close()

    def _play(self, lanes: "list[_Lane]", over: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Let these lanes begin, and serve all until it is over."""
        self._heard_s = time.monotonic()
        for lane in lanes:
            lane.go_on()
            lane.flush()
        while not over():
            for key, events in self._selector.select(_LOOK_S):
                lane = key.data
                if events & selectors.EVENT_READ:
                    lane.receive()
                lane.flush()
            while self.resting and self.left and self.open < self.open_max:
                producer = self.resting.popleft()
                producer.rests = False
                producer.go_on()
                producer.flush()
            now_s = time.monotonic()
            if now_s >= self._look_s + _LOOK_S:
                self._look_s = now_s
                self._look(now_s, timeout_s or self._timeout_s)
            if self._drain_by_s is not None and now_s > self._drain_by_s:
                break
        if self._progress is not None and lanes:
            self._progress(self.done, self.plan.jobs)
        if self.refusal is not None:
            raise self.refusal

    def _look(self, now_s: float, timeout_s: float) -> None:
        if self.stopped and self._drain_by_s is None:
            self.left = 0
            self._drain_by_s = now_s + _DRAIN_S
        if self.moved:
            self.moved, self._heard_s = False, now_s
        elif now_s - self._heard_s > timeout_s:
            raise RequestTimeout(
                f"{self.plan.kind}: no progress at {self.url} within {timeout_s:g} s (outcome unknown)"
            )
        if self._progress is not None:
            self._progress(self.done, self.plan.jobs)

    def _settled(self) -> bool:
        return not (self.left or self.unanswered)

    def _finished(self) -> bool:
        """Tell whether every job of a mixed load is acked, or none will be because of a refusal."""
        return not self.left and not (self.open if self.refusal is None else self.unanswered)

    # --- what the lanes tell ------------------------------------------------------------------------

    def take(self, wanted: int) -> int:
        """Return how many jobs may be begun, up to `wanted`."""
        count = min(wanted, self.left)
        self.left -= count
        return count

    def refuse(self, error: JqdError) -> None:
        """Remember what went wrong with one request; no other one is begun."""
        if self.refusal is None:
            self.refusal = error
        self.left = 0
        self.stop()

    def watch(self, lane: "_Lane", *, writable: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writable else 0)
        self._selector.modify(lane.socket, events, lane)

    def own(self, first: int, count: int) -> None:
        """Remember jobs that were put in."""
        self._own.extend((first, count))

    def is_own(self, jobs: list[LeasedJob]) -> bool:
        """Tell whether all of these were put in by this load, before it was measured."""
        if self.plan.existing:
            return True
        ids = [job.job_id for job in jobs]
        place = bisect_right(self._fence, min(ids))
        if place % 2 and max(ids) < self._fence[place]:  # all in one run: the common case
            return True
        return all(bisect_right(self._fence, job_id) % 2 for job_id in ids)

    def _own_runs(self) -> list[tuple[int, int]]:
        """Return the own ids as runs (first, end), in order."""
        runs: list[tuple[int, int]] = []
        for first, count in sorted(zip(self._own[::2], self._own[1::2], strict=True)):
            if runs and runs[-1][1] == first:
                runs[-1] = (runs[-1][0], first + count)
            else:
                runs.append((first, first + count))
        return runs


class _Lane:
    """One connection: what it has asked, and the bytes on their way."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.greeted = False
        self._shared = make_shared(_Lane, load.url, load.worker, None, _nobody)
        try:
            self.socket = open_socket(self._shared.address, CONNECT_S)
        except OSError as failure:
            if failure.errno in (errno.EMFILE, errno.ENFILE):
                raise InvalidArgument(
                    f"clients = {load.plan.clients}: this process may open no more connections (ulimit -n)"
                ) from None
            raise self._shared.unreachable(failure) from None
        self._reader = framing.FrameReader(FRAME_BYTES_MAX)
        # By request id: the command's type, when it was sent, how many jobs it is about.
        self._asked: dict[int, tuple[type[Command[Any]], int, int]] = {}
        self._unsent: list[bytes] = []
        self._out = memoryview(b"")  # what the socket did not take

    def greet(self) -> None:
        self.ask(Hello, messages.encode(self._shared.session.hello), 0)
        self.flush()

    def go_on(self) -> None:
        """Ask what may be asked now."""
        raise NotImplementedError

    def answered(self, kind: type[Command[Any]], body: Any, jobs: int, sent_ns: int, now_ns: int) -> None:  # noqa: ANN401 - the reply to `kind`
        """Go on: this reply came."""
        raise NotImplementedError

    def refused(self, kind: type[Command[Any]], jobs: int) -> None:
        """Go on: this request was refused."""

    def ask(self, kind: type[Command[Any]], args: bytes, jobs: int) -> None:
        """Line up a request about so many jobs; flush() sends it."""
        request_id = self._shared.session.next_id()
        body = messages.encode((request_id, kind.verb, Raw(args)))
        self._unsent += (framing.pack_length(len(body)), body)
        self._asked[request_id] = kind, time.perf_counter_ns(), jobs
        self.load.unanswered += 1

    @property
    def in_flight(self) -> int:
        return len(self._asked)

    # --- the socket -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what the socket takes."""
        was_full = len(self._out) > 0
        if self._unsent:
            data = b"".join(self._unsent)
            self._unsent.clear()
            self._out = memoryview(bytes(self._out) + data if was_full else data)
        elif not was_full:
            return
        try:
            self._out = self._out[self.socket.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from None
        is_full = len(self._out) > 0
        if is_full is not was_full:
            self.load.watch(self, writable=is_full)

    def receive(self) -> None:
        """Take what has arrived."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from None
        if not data:
            raise self._lost("the server closed it")
        self._reader.feed(data)
        now_ns = time.perf_counter_ns()
        while (frame := self._reader.next_frame()) is not None:
            self._take(messages.decode_reply(frame), now_ns)

    def _take(self, reply: messages.ReceivedReply, now_ns: int) -> None:
        asked = self._asked.pop(reply.request_id, None)
        if asked is None:
            if reply.request_id:
                raise BadFrame(f"reply to request {reply.request_id}: not asked, or answered before")
            if reply.status in WIRE_ERRORS:  # of the connection as a whole; another event is skipped
                raise messages.decode_body(reply, Welcome)
            return
        kind, sent_ns, jobs = asked
        self.load.unanswered -= 1
        body = messages.decode_body(reply, kind.reply)
        if kind is Hello:
            if isinstance(body, JqdError):
                raise body
            check_version(body.version)
            self.greeted = True
        elif isinstance(body, JqdError):
            self.load.refuse(body)
            self.refused(kind, jobs)
        else:
            self.answered(kind, body, jobs, sent_ns, now_ns)

    def _lost(self, reason: str) -> ConnectionLost:
        return ConnectionLost(
            f"{self.load.url}: the connection was lost: {reason}", outcome_unknown=self.greeted
        )

    # --- what a lease has brought ------------------------------------------------------------------

    def finish(self, grant: Leased) -> None:
        """Ack the jobs of a grant."""
        ranges = to_ranges([job.job_id for job in grant.jobs])
        self.ask(Ack, messages.encode(Ack(items=[(grant.token, ranges, None)])), len(grant.jobs))

    def give_back(self, grant: Leased) -> None:
        """Release jobs that belong to somebody else, and stop."""
        ranges = to_ranges([job.job_id for job in grant.jobs])
        self.ask(Release, messages.encode(Release(items=[(grant.token, ranges)])), 0)
        self.load.refuse(
            WrongState(
                f"queue = {self.load.plan.queue}: somebody else puts jobs in, of which {len(grant.jobs)} were "
                "leased and given back: measure with a queue that nobody uses"
            )
        )

    def check(self, verdicts: Verdicts) -> int:
        """Return how many jobs were acked; what was not ends the load."""
        done = sum(count for _, count, code in verdicts.results if code == messages.OK)
        for first, count, code in verdicts.results:
            if code != messages.OK:
                self.load.refuse(
                    LeaseLost(f"ack of {count} jobs from {first} on: {code}: their lease ran out")
                )
        return done


class Producer(_Lane):
    """Submits; see the file's card. batch, window: instead of the plan's."""

    def __init__(self, load: Load, batch: int = 0, window: int = 0) -> None:
        super().__init__(load)
        plan = load.plan
        self.rests = False  # until a job is acked
        self._mixed = plan.kind == "mixed"
        self._window = window or plan.pipeline
        self._batch = batch or plan.batch
        self._payload = (_FILLER * (plan.payload_bytes // len(_FILLER) + 1))[: plan.payload_bytes]
        self._args: dict[int, bytes] = {}  # by number of jobs

    def go_on(self) -> None:
        load = self.load
        while len(self._asked) < self._window:
            if self._mixed and load.open >= load.open_max:
                if load.left and not self.rests:
                    self.rests = True
                    load.resting.append(self)
                return
            count = load.take(self._batch)
            if not count:
                return
            load.open += count
            if self._mixed:
                stamp = time.perf_counter_ns().to_bytes(8, "big")
                args = self._encode(load.run + stamp + self._payload[STAMP_BYTES:], count)
            elif (args := self._args.get(count, b"")) == b"":
                args = self._args[count] = self._encode(self._payload, count)
            self.ask(Submit if self._batch == 1 else SubmitMany, args, count)

    def _encode(self, payload: bytes, count: int) -> bytes:
        queue = self.load.plan.queue
        if self._batch == 1:
            return messages.encode(Submit(queue=queue, payload=payload))
        return messages.encode(SubmitMany(groups=[SubmitGroup(queue=queue, payloads=[payload] * count)]))

    def answered(
        self,
        kind: type[Command[Any]],  # noqa: ARG002 - as the others
        body: Submitted | SubmittedMany,
        jobs: int,
        sent_ns: int,
        now_ns: int,
    ) -> None:
        load = self.load
        if isinstance(body, Submitted):
            load.own(body.job_id, 1)
        else:
            for first, count, _ in body.jobs:
                load.own(first, count)
        load.requests.add(now_ns - sent_ns)
        load.moved = True
        if not self._mixed:
            load.open -= jobs
            load.done += jobs
        self.go_on()

    def refused(self, kind: type[Command[Any]], jobs: int) -> None:  # noqa: ARG002 - as the others
        self.load.open -= jobs


class Taker(_Lane):
    """Leases and acks jobs that are there; see the file's card."""

    def go_on(self) -> None:
        while len(self._asked) < self.load.plan.pipeline:
            count = self.load.take(self.load.plan.batch)
            if not count:
                return
            self.ask(Lease, messages.encode(Lease(queues=[self.load.plan.queue], count=count)), count)

    def answered(self, kind: type[Command[Any]], body: Any, jobs: int, sent_ns: int, now_ns: int) -> None:  # noqa: ANN401
        load = self.load
        load.moved = True
        if kind is Release:
            return
        load.requests.add(now_ns - sent_ns)
        if kind is Ack:
            load.done += self.check(body)
            self.go_on()
        elif not body.jobs:
            self._found_nothing(jobs)
        elif load.is_own(body.jobs):
            if not load.stopped:  # a reply ends before its limit of bytes: the others are still there
                load.left += jobs - len(body.jobs)
            self.finish(body)
        else:
            self.give_back(body)

    def _found_nothing(self, jobs: int) -> None:
        if self.load.plan.existing:
            self.load.left = 0
        else:
            self.load.refuse(
                WrongState(
                    f"queue = {self.load.plan.queue}: {jobs} jobs of this run are not there any more: somebody else "
                    "leases from this queue"
                )
            )


class Worker(_Lane):
    """Waits for jobs and acks them; see the file's card."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        plan = load.plan
        self._args = messages.encode(Lease(queues=[plan.queue], count=plan.batch, wait_ms=_WAIT_MS))

    def go_on(self) -> None:
        if self.load.refusal is None:
            self.ask(Lease, self._args, 0)

    def answered(self, kind: type[Command[Any]], body: Any, jobs: int, sent_ns: int, now_ns: int) -> None:  # noqa: ANN401
        load = self.load
        if kind is Ack:
            load.requests.add(now_ns - sent_ns)
            load.moved = True
            load.open -= jobs
            load.done += self.check(body)
            self.go_on()
        elif kind is Lease:
            if not body.jobs:
                self.go_on()
                return
            run, payloads = load.run, [job.payload for job in body.jobs]
            if not all(payload.startswith(run) for payload in payloads):
                self.give_back(body)
                return
            for payload in payloads:
                load.waits.add(now_ns - int.from_bytes(payload[_RUN_BYTES:STAMP_BYTES], "big"))
            self.finish(body)


def _nobody(_: Struct | JqdError) -> None:
    """Replies without somebody who waits do not come up here."""
