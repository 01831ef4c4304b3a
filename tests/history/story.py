"""Histories without processes: what clients would have seen of the engine in a test's hand.

    story = Story(seed)
    ann = story.client("ann")
    job = story.ask(ann, c.Submit(payload=b"a"))        an Operation; .body is the reply
    story.pass_time(1_500)                              with all that is due
    story.ask(ann, command, fate=Fate.UNKNOWN)          carried out, and nobody was told
    story.restart()
    story.history()                                     with random overlap of what different actors did

    random_story(seed, steps).history()                 a good one, in which everything happens

Knows:         how requests are put to the engine, and how a dump shows its facts.
Must not know: what makes a history good: it is, since the engine is right. Lies are told by the tests.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import Any, Final

import msgpack
import msgspec

from jqctl.facts import to_record
from jqctl.output import to_json
from jqd.core import commands as c
from jqd.core.changes import decode_batch
from jqd.core.model import Caller, JobState
from jqd.errors import JqdError
from tests.history.operations import NEVER, Fact, History, Operation, read_facts
from tests.history.search import DRAIN
from tests.support.core import Core

NS_PER_MS: Final = 1_000_000
# A moment between two steps of the same millisecond.
STEP_NS: Final = 1_000


class Fate(Enum):
    """What becomes of a request on its way."""

    ANSWERED = "the reply comes"
    UNKNOWN = "it is carried out, and no reply comes"
    VANISHED = "the daemon dies before it is on disk, and no reply comes"
    SENT_AGAIN = "the reply is lost, and the one to the second try comes"


@dataclass
class Client:
    """A client process and its only actor."""

    name: str
    session: bytes
    caller: Caller
    next_id: int = 2


@dataclass
class _Moment:
    """When an operation was carried out, and until when its actor waited for the reply."""

    operation: Operation
    client: Client
    first_ns: int
    last_ns: int


class Story:
    """See the file's card."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.core = Core()
        self.time_ns = self.core.engine_ms * NS_PER_MS
        self.starts = [self.time_ns]
        self.clients: list[Client] = []
        self._moments: list[_Moment] = []

    def client(self, name: str) -> Client:
        session = self.random.randbytes(16)
        client = Client(name, session, self.core.hello(session, worker=name))
        self.clients.append(client)
        return client

    # --- what happens ---------------------------------------------------------------------------

    def ask(
        self,
        client: Client,
        command: c.Command[Any],
        fate: Fate = Fate.ANSWERED,
        between: Callable[[], None] | None = None,
    ) -> Operation:
        """Carry out one request in a turn of its own.

        between: what happens between two tries of one that is sent again.
        """
        one = Operation(
            actor=client.name,
            session=sha256(client.session).hexdigest()[:16],
            worker=client.name,
            verb=command.verb,
            args=msgpack.unpackb(msgspec.msgpack.encode(command)),
            invoked=0,
            ids=[client.next_id],
            sends=1,
        )
        client.next_id += 1
        first_ns = self._step()
        moment = _Moment(one, client, first_ns, first_ns)
        self._moments.append(moment)
        self._execute(one, command, client)
        if fate is Fate.VANISHED:
            self.restart(lose=True)
        else:
            self.core.turn()
        if fate is Fate.SENT_AGAIN:
            if between is not None:
                between()
            moment.last_ns = self._step()
            one.sends = 2
            self._execute(one, command, client)
            self.core.turn()
        if fate in (Fate.UNKNOWN, Fate.VANISHED):
            one.status, one.lsn, one.body, one.said = "", 0, {}, "request_timeout?"
        return one

    def _execute(self, one: Operation, command: c.Command[Any], client: Client) -> None:
        try:
            body = self.core.engine.execute(command, client.caller, one.ids[-1], client.name, self.core.now)
        except JqdError as error:
            one.status, one.said, one.body = error.code, error.code, {}
        else:
            assert body is not None, "nobody waits in a story"
            one.status, one.said = "ok", "ok"
            one.body = msgpack.unpackb(msgspec.msgpack.encode(body))
        one.lsn = self.core.state.lsn

    @property
    def last(self) -> Operation:
        """Return what was asked last."""
        return self._moments[-1].operation

    def _step(self) -> int:
        self.time_ns += STEP_NS
        return self.time_ns

    def pass_time(self, ms: int) -> None:
        """Let time pass, with all that is due on its way."""
        self.time_ns += ms * NS_PER_MS
        end_ms = self.core.engine_ms + ms
        while True:
            due_ms = self.core.engine.next_deadline(self.core.now)
            if due_ms is None or due_ms > end_ms:
                break
            self.core.move(max(0, due_ms - self.core.engine_ms))
            self.core.turn()
        self.core.move(end_ms - self.core.engine_ms)

    def restart(self, *, lose: bool = False) -> None:
        """Kill the daemon and start it again. lose: what this turn has done so far never came to the disk."""
        if not lose:
            self.core.write()
        self.core.restart()
        self.starts.append(self._step())
        for client in self.clients:
            client.caller = self.core.hello(client.session, worker=client.name)

    def take_back(self, lease: Operation) -> None:
        """Undo a lease whose reply found its socket closed: the newest one."""
        assert lease.verb == "lease" and not lease.status
        self.core.engine.take_back(self.core.state.epoch << 32 | self.core.state.grant, self.core.now)
        self.core.turn()

    def drain(self) -> None:
        """Work everything off, and list it."""
        drain = self.client(DRAIN)
        while any(self.core.state.counts()[: JobState.DONE]):
            lease = self.ask(drain, c.Lease(queues=list(QUEUES), count=100))
            if lease.body["jobs"]:
                ranges = [(job["job_id"], 1) for job in lease.body["jobs"]]
                self.ask(drain, c.Ack(items=[(lease.body["token"], ranges, None)]))
            else:
                due_ms = self.core.engine.next_deadline(self.core.now)
                assert due_ms is not None
                self.pass_time(max(1, due_ms - self.core.engine_ms))
        page = self.ask(drain, c.ListJobs(limit=20))
        while page.body["cursor"] is not None:
            page = self.ask(drain, c.ListJobs(cursor=page.body["cursor"], limit=20))

    # --- what is known of it ---------------------------------------------------------------------

    def history(self) -> History:
        """Return what clients saw, each actor's requests one after the other, those of different ones overlapping."""
        for client in self.clients:
            mine = [moment for moment in self._moments if moment.client is client]
            free_ns = 0
            next_ns = [moment.first_ns for moment in mine[1:]]
            for moment, until_ns in zip(mine, [*next_ns, self.time_ns + 50 * NS_PER_MS], strict=False):
                one = moment.operation
                one.invoked = self.random.randint(free_ns, moment.first_ns)
                free_ns = self.random.randint(moment.last_ns, until_ns - 1)
                one.returned = free_ns if one.status else NEVER
                free_ns += 1
        return History(
            operations=[moment.operation for moment in self._moments], facts=self.facts(), starts=self.starts
        )

    def facts(self) -> list[Fact]:
        lines: list[bytes] = []
        for offset, batch in enumerate(self.core.log):
            decoded = decode_batch(batch.payload)
            for lsn, change in enumerate(decoded.changes, batch.first_lsn):
                place: dict[str, Any] = {
                    "lsn": lsn,
                    "segment": 1,
                    "offset": offset,
                    "engine_ms": decoded.engine_ms,
                }
                place |= {"wall_ms": decoded.wall_ms, "kind": type(change).__name__}
                lines.append(to_json(to_record(place, change)))
        return read_facts(lines)


# --- stories made by chance -----------------------------------------------------------------------

QUEUES: Final = ("mail", "images")


class _Chance:
    """Clients that do whatever comes to their minds."""

    def __init__(self, seed: int, clients: int) -> None:
        self.story = Story(seed)
        self.random = self.story.random
        self.clients = [self.story.client(f"client-{number}") for number in range(clients)]
        self.held: list[tuple[int, int]] = []  # (token, job id) that somebody was told of
        self.ended: list[tuple[int, int]] = []
        self.count = 0

    def step(self) -> None:
        chance = self.random.random()
        if chance < 0.05:
            self.story.pass_time(self.random.choice((500, 1_000, 1_200, 3_000)))
        elif chance < 0.08:
            self.story.restart()
        else:
            self.story.pass_time(self.random.randrange(30))
            self.ask(self.random.choice(self.clients))

    def ask(self, client: Client) -> None:
        fate = self.random.choices(list(Fate), (90, 4, 2, 4))[0]
        one = self.story.ask(client, self.command(), fate, self.meanwhile)
        for job in one.body.get("jobs", ()) if one.verb == "lease" else ():
            self.held.append((one.body["token"], job["job_id"]))

    def meanwhile(self) -> None:
        """What others do before a request is sent again."""
        if self.random.random() < 0.5:
            self.story.restart()
        other = self.random.choice(self.clients)
        if other is not self.story._moments[-1].client:
            self.story.ask(other, self.command())

    def command(self) -> c.Command[Any]:
        makers = (self.submit, self.submit_many, self.lease, self.hold, self.read, self.sweep)
        return self.random.choices(makers, (25, 5, 25, 30, 12, 5))[0]()

    def options(self) -> dict[str, Any]:
        self.count += 1
        options: dict[str, Any] = {
            "queue": self.random.choice(QUEUES),
            "metadata": {"marker": f"m{self.count}"},
        }
        if self.random.random() < 0.3:
            options["priority"] = self.random.randrange(-1, 3)
        if self.random.random() < 0.15:
            options["delay_ms"] = self.random.choice((1, 40, 700))
        if self.random.random() < 0.2:
            options["max_crashes"] = self.random.randrange(2)
        if self.random.random() < 0.2:
            options["max_retries"] = self.random.randrange(2)
        if self.random.random() < 0.1:
            options |= {"delivery": "at_most_once", "max_retries": None}
        if self.random.random() < 0.2:
            options["lease_ms"] = 2_000
        return options

    def submit(self) -> c.Command[Any]:
        return c.Submit(payload=b"p%d" % self.count, **self.options())

    def submit_many(self) -> c.Command[Any]:
        payloads = [b"p%d-%d" % (self.count, number) for number in range(self.random.randrange(1, 4))]
        return c.SubmitMany(groups=[c.SubmitGroup(payloads=payloads, **self.options())])

    def lease(self) -> c.Command[Any]:
        queues = self.random.sample(QUEUES, self.random.randrange(1, 3))
        lease_ms = self.random.choice((None, 1_000, 2_500))
        return c.Lease(queues=queues, count=self.random.choice((1, 1, 2, 5)), lease_ms=lease_ms)

    def hold(self) -> c.Command[Any]:
        """Say something about jobs that are held, or were."""
        if not self.held or self.random.random() < 0.1:
            token, job_id = self.random.choice(self.ended) if self.ended else (7, 1)
        else:
            token, job_id = self.held.pop(self.random.randrange(len(self.held)))
            self.ended.append((token, job_id))
        ranges = [(job_id, 1)]
        match self.random.randrange(10):
            case 0 | 1 | 2 | 3:
                return c.Ack(items=[(token, ranges, self.random.choice((None, b"r")))])
            case 4 | 5 | 6:
                retry_in_ms = self.random.choice((None, 0, 300))
                return c.Fail(items=[(token, ranges)], error="bad", retry_in_ms=retry_in_ms)
            case 7:
                return c.Release(items=[(token, ranges)], delay_ms=self.random.choice((0, 200)))
            case 8:
                return c.Ack(items=[(token, ranges, None)], result_error="no use")
        self.held.append((token, job_id))
        return c.Extend(items=[(token, ranges)], lease_ms=self.random.choice((None, 1_500)))

    def read(self) -> c.Command[Any]:
        newest = self.story.core.state.pages.next_id
        match self.random.randrange(4):
            case 0:
                wanted = c.JobFilter(queue=self.random.choice(QUEUES))
                return c.ListJobs(filter=wanted, cursor=max(0, newest - 8), limit=5)
            case 1:
                return c.Queues()
        return c.Get(job_id=max(1, newest - self.random.randrange(8)))

    def sweep(self) -> c.Command[Any]:
        kind = self.random.choice((c.Cancel, c.Requeue, c.Requeue))
        if self.random.random() < 0.3:
            return kind(filter=c.JobFilter(queue=self.random.choice(QUEUES)), limit=2)
        return kind(ids=[(max(1, self.story.core.state.pages.next_id - self.random.randrange(10)), 2)])


def random_story(seed: int, *, clients: int = 4, steps: int = 60) -> Story:
    """Return a story in which clients submit, lease, end and read jobs while the daemon dies now and then."""
    chance = _Chance(seed, clients)
    for _ in range(steps):
        chance.step()
    chance.story.drain()
    return chance.story
