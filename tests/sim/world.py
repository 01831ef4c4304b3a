"""A run: a plan carried out on the shipped daemon, with everything that was seen held against the oracle.

Knows:         how each step of a plan is done, when something can no longer be right.
Must not know: why the daemon answers what it answers (oracle.py, shadow.py say what it may answer).

    outcome = run(make_plan(seed))      raises Violation, with the step at which it showed

A run ends with a second part in which nothing goes wrong any more: the faults stop, sane workers take everything,
and all that can end has to end (I19).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

from jqd.core import commands as c
from jqd.core import dump, model
from jqd.core.model import DAY_MS, RESTART_GRACE_MS, JobState, RetryPolicy, StateName
from jqd.core.state import LEASED, WAITING, State
from jqd.errors import WIRE_ERRORS, JqdError, StorageError
from jqd.protocol import connection as client_connection
from jqd.protocol import framing, messages
from jqd.protocol.connection import Answered
from jqd.server import daemon
from jqd.server.standstill import STANDSTILL_MS
from tests.sim import actors, plan
from tests.sim.actors import Client, Grant, ranges_of
from tests.sim.dice import Dice
from tests.sim.disk import Copy, Fault, Loss, SimDisk
from tests.sim.house import Died, House
from tests.sim.loop import Clocks
from tests.sim.marks import Marks
from tests.sim.network import Stream
from tests.sim.oracle import Oracle, Violation
from tests.sim.plan import Plan, Step
from tests.sim.restart import recovered
from tests.sim.shadow import Shadow, ShadowedEngine
from tests.sim.watch import Watch
from tests.storage.logs import DATA
from tests.support.faultfs import Crash, SyncFailure

# How often the inside is looked at: indexes against each other, the log against memory.
CHECK_EVERY: Final = 256
# How long the shipped clients try to reach a server before they give a request up.
GIVE_UP_MS: Final = 60_000
# Passes of everything after which a run that does not come to rest never will.
REST_PASSES_MAX: Final = 10_000

# The naive queue knows no bound on what one turn does. And which of two jobs that ended in one ms is forgotten first
# is nobody's promise: a snapshot has them by id.
UNSHADOWED: Final = frozenset(
    {"PROMOTIONS_PER_TICK", "EXPIRIES_PER_TICK", "FINISHED_COUNT_MAX", "RESULTS_BYTES_MAX"}
)


class Outcome(NamedTuple):
    """What a run came to."""

    seed: int
    trace_hash: int
    state_hash: str
    steps: int
    runs: int  # of the daemon
    replies: int
    jobs: int


class World:
    """See the file's card."""

    def __init__(self, plan: Plan, marks: Marks, *, trace: Callable[[str], object] | None = None) -> None:
        settings = plan.settings
        self.plan = plan
        self.marks = marks
        self.trace = trace
        self.dice = Dice(plan.seed).child("world")
        self.clocks = Clocks(settings.wall_ms)
        self.disk = SimDisk(plan.seed)
        self.house = House(self.disk, self.clocks, **settings.daemon)
        self.shadow = Shadow(marks)
        self.memory_soft_bytes = settings.daemon.get("memory_soft_bytes")
        # It does not know either what things take in memory.
        self.is_shadowed = not settings.limits.keys() & UNSHADOWED and self.memory_soft_bytes is None
        self.watch = Watch(self.house, marks)
        self.oracle = Oracle(marks)
        self.oracle.rules(**settings.limits)
        if self.memory_soft_bytes is not None:
            self.oracle.rules(memory_soft_bytes=self.memory_soft_bytes)
        self.clients = [Client(f"c{number}", bytes([number + 1]) * 16) for number in range(settings.clients)]
        for number, client in enumerate(self.clients):
            client.decide(releases=bool(settings.releasing >> number & 1))
        self.zombies: list[Stream] = []  # the server does not know that the client has gone
        self.stale: list[tuple[int, int]] = []  # (token, job id) of leases that have ended
        self.jobs_seen: list[int] = []
        self.backup: Copy | None = None
        self.has_spare = True  # a snapshot may rot: there is another one, or all of the log
        self.disk_may_fail = False  # a fault was armed that the daemon may die of
        self.requests = 0
        self.replies = 0
        self.wall_max_ms = 0
        self.seen_lsn = 0  # the highest that a reply has told of
        self.recovered_lsn = 0  # that the newest start came to
        self.hash = 0
        self.at = 0  # number of the step under way
        self._told: set[bytes] = set()

    # --- the run ------------------------------------------------------------------------------

    def run(self) -> Outcome:
        steps = self.plan.steps
        self._start()
        for self.at, step in enumerate(steps):
            if self.trace is not None:
                self.trace(f"{self.at:5} {step}")
            self.do(step)
            if self.at % CHECK_EVERY == CHECK_EVERY - 1:
                self.look_inside()
        self.at = len(steps)
        self.end_well()
        state = self.house.engine.state
        return Outcome(
            self.plan.seed,
            self.hash,
            state.digest(),
            len(steps),
            self.house.runs,
            self.replies,
            state.pages.next_id - 1,
        )

    def do(self, step: Step) -> None:
        self.oracle.tick(self.clocks.wall_ms)
        self.wall_max_ms = max(self.wall_max_ms, self.clocks.wall_ms)
        name, a, b, d = step
        try:
            getattr(self, f"step_{name}")(a, b, d)
        except (Died, Crash) as death:
            self._died(death)
        self.watch.look()

    def wait(self, ms: int = 0, *, asleep_ms: int = 0) -> None:
        """Let time pass; a turn that is under way ends first, since it has one reading of the clocks."""
        if self.house.driver is not None and self.house.driver._now is not None:
            self.house.loop.run()
        self.clocks.wait(ms)
        self.clocks.suspend(asleep_ms)

    def note(self, *what: object) -> None:
        """Take something into the trace, of which the hash is what two equal runs share."""
        self.hash = crc32(repr(what).encode(), self.hash)
        if self.trace is not None:
            self.trace(f"        {what}")

    # --- the daemon's life and death ----------------------------------------------------------

    def _start(self, crash_at: int = 0) -> None:
        """Start the daemon; a start that dies of an armed fault is followed by one without."""
        if crash_at:
            self.disk.arm(Fault.KILL, crash_at)
        for _ in range(3):
            try:
                self.house.start()
            except (Died, Crash, StorageError, OSError) as error:
                if isinstance(error, Crash):
                    self.marks.hit("crash during recovery")
                elif not self.disk_may_fail:
                    raise Violation("I15", f"the daemon does not start: {error!r}") from error
                else:
                    self.marks.hit("start refused by a failing disk")
                self.house.kill()
                self.disk.disarm()
                self.disk.capacity_bytes = None
                continue
            break
        else:
            raise Violation("I15", "the daemon did not start in three attempts")
        self.disk.disarm()
        report = self.house.store.recovery
        if report.torn_bytes:
            self.marks.hit("torn tail cut")
        if report.snapshot_lsn:
            self.marks.hit("recovered from a snapshot")
        if report.clean and report.last_lsn:
            self.marks.hit("clean start")
        if report.last_lsn == self.recovered_lsn:
            self.marks.hit("run without a durable fact of its own")
        self.recovered_lsn = report.last_lsn
        self.note("started", report.last_lsn, report.clean)
        if report.last_lsn < self.seen_lsn:
            raise Violation(
                "I15", f"recovered up to LSN {report.last_lsn}, and a reply has told of {self.seen_lsn}"
            )
        self.check_all(report.last_lsn, fresh=True)

    def _died(self, death: BaseException, *, loss: Loss | None = None, dice: Dice | None = None) -> None:
        """The daemon is gone: what it sent may still arrive, what it knew must come back."""
        if isinstance(death, Died):
            cause = death.cause
            if not (isinstance(cause, StorageError) and cause.exit_code == 74 and self.disk_may_fail):
                raise Violation("CODE", f"the daemon ended itself: {cause!r}") from cause
            self.marks.hit("exit 74")
        self.note("died", type(death).__name__)
        self._lose_house(loss, dice)
        self._start()

    def _lose_house(self, loss: Loss | None = None, dice: Dice | None = None) -> None:
        if self.house.driver is not None and self.house.driver.snapshots.is_under_way:
            self.marks.hit("snapshot under way at the end of the process")
        self.house.kill()
        self.disk.disarm()
        self.disk_may_fail = self.disk.capacity_bytes is not None
        if loss is not None:
            assert dice is not None
            if any(directory.pending for directory in self.disk._nodes()[1]):
                self.marks.hit("power loss between a rename and the sync of its directory")
            self.disk.crash(loss, dice)
        for client in self.clients:
            if client.stream is not None:
                self._arrive(client, self.dice.below(len(client.stream.down) + 1))
                self._ended(client)
        now = self.house.clock.now()
        self.oracle.clocks(now.engine_ms, now.wall_ms)
        self.oracle.crashed()  # all has arrived that it had to say
        self._told.clear()
        self.zombies.clear()

    def _ended(self, client: Client) -> None:
        """A client sees the end of its stream."""
        self.oracle.lost(client.session, self.house.clock.now().engine_ms)
        self._deliver(client, client.close())

    # --- clients ------------------------------------------------------------------------------

    def client(self, number: int) -> Client:
        """Return a client, connected as far as it can be."""
        client = self.clients[number % len(self.clients)]
        if client.stream is None:
            if self.clocks.boot_ms - client.heard_ms > GIVE_UP_MS:
                self._deliver(client, client.wire.give_up("nobody could be reached"))
            client.open(self.house.connect())
            self._flush(client)
        return client

    def ask(self, client: Client, command: c.Command[Any]) -> None:
        client.wire.request(command)
        self.requests += 1
        self._flush(client)

    def _flush(self, client: Client) -> None:
        sent = client.flush()
        if not sent:
            return
        now = self.house.reading
        for request_id, verb, args in sent:
            self.oracle.sent(client.session, request_id, verb, args, now.engine_ms, now.wall_ms)

    def _arrive(self, client: Client, count: int) -> None:
        """Bytes from the server arrive at a client."""
        stream = client.stream
        assert stream is not None
        data = stream.deliver_down(count)
        if not data:
            return
        messages, answered = client.hear(data)
        client.heard_ms = self.clocks.boot_ms
        now = self.house.clock.now()
        for frame, message in messages:
            request_id, status, lsn, body = message[:4]
            self.replies += 1
            self.seen_lsn = max(self.seen_lsn, lsn)
            self.hash = crc32(frame, self.hash)
            if not request_id and status not in WIRE_ERRORS:
                self.oracle.event(client.session, status, lsn, body)
            if "epoch" in body and "store_id" in body and client.session not in self._told:
                self._told.add(client.session)
                self.oracle.started(body, now.engine_ms, now.wall_ms)
            if request_id:
                self.oracle.answered(
                    client.session, request_id, status, lsn, body, now.engine_ms, now.wall_ms
                )
            if self.trace is not None:
                self.trace(f"        {client.name} <- {message}"[:300])
        self._deliver(client, answered)
        self._flush(client)
        if client.wire.failure is not None:
            stream.abandon()
            stream.lose()
            self._ended(client)

    def _deliver(self, client: Client, answered: list[Answered]) -> None:
        for request, outcome in answered:
            if isinstance(outcome, JqdError) and outcome.code == "connection_lost":
                self.oracle.unknown(client.session, request.id)
            client.learned(request, outcome)
            if isinstance(outcome, c.Leased):
                self.jobs_seen += [job.job_id for job in outcome.jobs]
                del self.jobs_seen[:-200]

    # --- steps: what clients ask --------------------------------------------------------------

    def step_submit(self, a: int, b: int, d: int) -> None:
        fields = plan.job_fields(a >> 3, b, self.plan.settings.queues, self.clocks.wall_ms)
        self.ask(self.client(a), c.Submit(payload=self._payload(d), task=self._marker(), **fields))

    def _marker(self) -> str:
        """Name a job, so that it can be told from every other one: by its task, which nothing changes."""
        return str(self.requests)

    def _payload(self, d: int) -> bytes:
        return b"p" * (d % 40)

    def step_submit_burst(self, a: int, b: int, d: int) -> None:
        """Submits behind each other in one pipe."""
        for number in range(2 + d % 12):
            self.step_submit(a, b + number * 2 * (b % 3), d)

    def step_submit_many(self, a: int, b: int, d: int) -> None:
        groups = []
        for number in range(1 + d % 3):
            fields = plan.job_fields(
                (a >> 3) + number, b + number, self.plan.settings.queues, self.clocks.wall_ms
            )
            groups.append(
                c.SubmitGroup(
                    payloads=[self._payload(d)] * (1 + (d >> 2) % 5),
                    task=f"{self.requests}.{number}",
                    **fields,
                )
            )
        self.ask(self.client(a), c.SubmitMany(groups=groups))

    def step_lease(self, a: int, b: int, d: int) -> None:
        client = self.client(a)
        names = [f"q{(b + number) % self.plan.settings.queues}" for number in range(1 + b % 3)]
        wait_ms = 0 if client.has_parked else (0, 0, 0, 1, 2_000, 30_000)[d % 6]
        client.has_parked = client.has_parked or wait_ms > 0
        command = c.Lease(
            queues=list(dict.fromkeys(names)),
            count=(1, 1, 2, 5, 100)[(d >> 3) % 5],
            lease_ms=plan.LEASES_MS[(d >> 6) % len(plan.LEASES_MS)],
            wait_ms=wait_ms,
        )
        self.ask(client, command)

    def _grant(self, client: Client, b: int) -> Grant | None:
        """Return one of the client's grants, seldom another's: a token is a bearer's."""
        grants = client.grants
        if b % 16 == 0:
            grants = self.clients[b // 16 % len(self.clients)].grants
        return grants[b // 16 % len(grants)] if grants else None

    def _part(self, grant: Grant, d: int) -> list[int]:
        """Take some or all jobs of a grant out of its worker's hands."""
        count = len(grant.ids) if d % 2 else 1 + d // 2 % len(grant.ids)
        ids, grant.ids = grant.ids[:count], grant.ids[count:]
        self.stale += [(grant.token, job_id) for job_id in ids]
        del self.stale[: -actors.STALE_MAX]
        if not grant.ids:
            for client in self.clients:
                client.drop(grant)
        return ids

    def step_ack(self, a: int, b: int, d: int) -> None:
        client = self.client(a)
        if (grant := self._grant(client, b)) is None:
            return
        ids = self._part(grant, d)
        how = (d >> 8) % 8
        result = (b"r" * (d % 9)) if how in (5, 6) else None
        command = c.Ack(
            items=[(grant.token, ranges_of(ids), result)],
            result_error="no" if how == 7 else None,
            encoding="text" if result is not None else "raw",
        )
        self.ask(client, command)

    def step_fail(self, a: int, b: int, d: int) -> None:
        client = self.client(a)
        if (grant := self._grant(client, b)) is None:
            return
        ids = self._part(grant, d)
        how = (d >> 8) % 6
        command = c.Fail(
            items=[(grant.token, ranges_of(ids))],
            error="oops",
            retry_in_ms=(0, 700)[how] if how < 2 else None,
            dead=how == 2,
        )
        self.ask(client, command)

    def step_extend(self, a: int, b: int, d: int) -> None:
        client = self.client(a)
        if (grant := self._grant(client, b)) is not None:
            lease_ms = plan.LEASES_MS[d % len(plan.LEASES_MS)]
            self.ask(client, c.Extend(items=[(grant.token, ranges_of(grant.ids))], lease_ms=lease_ms))

    def step_release(self, a: int, b: int, d: int) -> None:
        client = self.client(a)
        if (grant := self._grant(client, b)) is not None:
            delay_ms = (0, 0, 500, 5_000)[(d >> 8) % 4]
            ids = self._part(grant, d)
            self.ask(client, c.Release(items=[(grant.token, ranges_of(ids))], delay_ms=delay_ms))

    def _is_held(self, job_id: int, token: int) -> bool:
        """Tell whether a guess would be right: of an at-most-once job a retried lease does not tell its client."""
        job = self.house.engine.state.job(job_id)
        return job is not None and job.lease is not None and job.lease.token == token

    def step_stale(self, a: int, b: int, d: int) -> None:
        """Speak of a lease that has ended, or with a token that is somebody's of another job."""
        client = self.client(a)
        if not self.stale:
            return
        token, job_id = self.stale[b % len(self.stale)]
        if d % 5 == 0:
            token += (
                1 << 20
            )  # nobody's: the next one can be a grant of which nobody has heard yet, and is a bearer
        if d % 7 == 0 and not self._is_held(job_id + 1, token):
            job_id += 1
        ranges = [(job_id, 1)]
        if d % 3 == 0 and client.grants:  # a held job, and its neighbours that may be somebody else's
            grant = client.grants[b % len(client.grants)]
            token, ranges = grant.token, [(grant.ids[0], 2 + b % 3)]
        match d % 4:
            case 0:
                self.ask(client, c.Ack(items=[(token, ranges, None)]))
            case 1:
                self.ask(client, c.Fail(items=[(token, ranges)], error="late"))
            case 2:
                self.ask(client, c.Extend(items=[(token, ranges)]))
            case _:
                self.ask(client, c.Release(items=[(token, ranges)]))

    def _sweep(self, kind: Any, a: int, b: int, d: int) -> None:
        client = self.client(a)
        dry_run = d % 5 == 0
        if b % 2 and self.jobs_seen:
            first = self.jobs_seen[(b >> 1) % len(self.jobs_seen)]
            self.ask(client, kind(ids=[(first, 1 + d % 3)], dry_run=dry_run))
            return
        queue = None if b % 4 == 0 else f"q{(b >> 2) % self.plan.settings.queues}"
        states: tuple[StateName | None, ...] = (None, None, "ready", "delayed", "dead", "done")
        state = states[(d >> 3) % 6]
        command = kind(filter=c.JobFilter(queue=queue, state=state), limit=1 + (d >> 6) % 12, dry_run=dry_run)
        self.ask(client, command)

    def step_cancel(self, a: int, b: int, d: int) -> None:
        self._sweep(c.Cancel, a, b, d)

    def step_requeue(self, a: int, b: int, d: int) -> None:
        self._sweep(c.Requeue, a, b, d)

    def step_purge(self, a: int, b: int, d: int) -> None:
        self._sweep(c.Purge, a, b, d)

    def step_get(self, a: int, b: int, d: int) -> None:
        job_id = self.jobs_seen[b % len(self.jobs_seen)] if self.jobs_seen and d % 4 else 1 + b % 50
        self.ask(self.client(a), c.Get(job_id=job_id))

    def step_list(self, a: int, b: int, d: int) -> None:
        states: tuple[StateName | None, ...] = (None, "ready", "leased", "dead", "done")
        state = states[b % 5]
        queue = None if d % 2 else f"q{(d >> 1) % self.plan.settings.queues}"
        command = c.ListJobs(filter=c.JobFilter(queue=queue, state=state), limit=1 + (d >> 3) % 30)
        self.ask(self.client(a), command)

    def step_queues(self, a: int, b: int, d: int) -> None:
        self.ask(self.client(a), c.Queues(limit=1 + b % 5))

    # --- steps: what clients ask, where more is to be said -------------------------------------

    def _queue(self, number: int) -> str:
        return f"q{number % self.plan.settings.queues}"

    def step_submit_keyed(self, a: int, b: int, d: int) -> None:
        """Submits with a dedupe key, alone or beside others in one request."""
        fields = plan.keyed_fields(a >> 3, b, self.plan.settings.queues)
        fields["task"] = self._marker()
        if d % 4:
            self.ask(self.client(a), c.Submit(payload=self._payload(d), **fields))
            return
        other = c.SubmitGroup(payloads=[b"", b"x"], task=f"{self.requests}.1", queue=fields["queue"])
        keyed = c.SubmitGroup(payloads=[self._payload(d)], **fields)
        self.ask(self.client(a), c.SubmitMany(groups=[keyed, other] if d % 8 else [other, keyed]))

    def step_submit_again(self, a: int, b: int, d: int) -> None:
        """Submits with an idempotency key; also one that no session would recognise."""
        fields = plan.again_fields(b, self.plan.settings.queues)
        if d % 5 == 0 and "dedupe_key" not in fields:
            self.ask(self.client(a), c.SubmitMany(groups=[c.SubmitGroup(payloads=[b"1"], **fields)]))
        else:
            self.ask(self.client(a), c.Submit(payload=b"1" if d % 7 else b"2", **fields))

    def step_submit_expiring(self, a: int, b: int, d: int) -> None:
        expires_ms = plan.EXPIRIES_MS[b % len(plan.EXPIRIES_MS)]
        fields: dict[str, Any] = {"expires_ms": expires_ms}
        if b // 5 % 2:
            at_ms = self.clocks.wall_ms + expires_ms - (1_000 if b // 10 % 8 == 0 else 0)
            fields = {"expires_at_ms": at_ms}
        elif b // 10 % 4 == 0 and expires_ms > 500:
            fields["delay_ms"] = expires_ms - 500
        if b // 40 % 3 == 0:  # more than the daemon ends at a time, where that is few
            group = c.SubmitGroup(payloads=[b""] * 5, queue=self._queue(d), task=self._marker(), **fields)
            self.ask(self.client(a), c.SubmitMany(groups=[group]))
            return
        self.ask(self.client(a), c.Submit(queue=self._queue(d), task=self._marker(), **fields))

    def _policy(self, number: int) -> RetryPolicy:
        return RetryPolicy(**plan.POLICIES[number % len(plan.POLICIES)])

    def step_submit_with_policy(self, a: int, b: int, d: int) -> None:
        fields: dict[str, Any] = {"retry": self._policy(b)}
        if d % 3:
            fields["max_retries"] = d // 3 % 6
        if d % 2:
            fields["max_crashes"] = d // 2 % 5
        self.ask(self.client(a), c.Submit(queue=self._queue(a >> 3), task=self._marker(), **fields))

    def step_fail_with_policy(self, a: int, b: int, d: int) -> None:
        client = self.client(a)
        if (grant := self._grant(client, b)) is not None:
            ids = self._part(grant, d)
            items = [(grant.token, ranges_of(ids))]
            self.ask(client, c.Fail(items=items, error="oops again", retry=self._policy(d >> 4)))

    def step_update(self, a: int, b: int, d: int) -> None:
        """Change a job that waits, or one that does not."""
        if not self.jobs_seen:
            return
        fields: dict[str, Any] = {}
        if b % 2:
            fields["priority"] = (-1, 0, 1, 5)[b // 2 % 4]
        match b // 8 % 6:
            case 0:
                fields["delay_ms"] = (0, 1, 700, 10_000)[b // 48 % 4]
            case 1:
                fields["run_at_ms"] = self.clocks.wall_ms + (-1_000, 1, 900, 60_000)[b // 48 % 4]
            case 2:
                fields["payload"] = self._payload(b // 48)
            case 3:
                fields["metadata"] = {"user": "ab"[b // 48 % 2]} if b // 96 % 2 else {}
            case 4:
                fields.update(payload=b"new", encoding="text", delay_ms=0)
        if not fields:
            fields["priority"] = 2
        job_id = self.jobs_seen[d % len(self.jobs_seen)] if d % 3 else self.waiting(d)
        self.ask(self.client(a), c.Update(job_id=job_id, **fields))

    def waiting(self, d: int) -> int:
        """Return the id of a job that waits, as somebody who has just read all of them would know it."""
        page = self.house.engine.state.pages.jobs_from(1)
        ids = [job.id for job in page if job.state.wire_name in ("delayed", "ready")]
        return ids[d % len(ids)] if ids else self.jobs_seen[-1]

    def step_cancel_running(self, a: int, b: int, d: int) -> None:
        client = self.client(a)
        dry_run = d % 9 == 0
        if b % 4 == 0:
            where = (None, plan.WHERES[d % len(plan.WHERES)])[b // 4 % 2]
            wanted = c.JobFilter(queue=self._queue(b >> 3), where=where)
            self.ask(client, c.Cancel(filter=wanted, running=True, limit=1 + d % 4, dry_run=dry_run))
            return
        holder = self.clients[b // 4 % len(self.clients)]
        if holder.grants:
            grant = holder.grants[d % len(holder.grants)]
            first = grant.ids[d // 7 % len(grant.ids)]
            self.ask(client, c.Cancel(ids=[(first, 1 + d // 5 % 2)], running=True, dry_run=dry_run))

    def step_obey(self, a: int, b: int, d: int) -> None:
        """A worker that was told that its job is to end stops, in one of its ways, or does not."""
        client = self.clients[a % len(self.clients)]
        while client.marked:
            token, job_id = client.marked.pop(b % len(client.marked))
            grant = next((one for one in client.grants if one.token == token and job_id in one.ids), None)
            if grant is None:
                continue
            client = self.client(a)
            if d % 8 != 7:  # else it goes on, and will be heard of later
                grant.ids.remove(job_id)
                if not grant.ids:
                    client.drop(grant)
                self.stale.append((token, job_id))
            items = [(token, [(job_id, 1)])]
            match d % 8:
                case 0 | 1 | 2:
                    self.ask(client, c.Release(items=items, delay_ms=(0, 500)[d // 8 % 2]))
                case 3 | 4:
                    self.ask(client, c.Fail(items=items, error="told to", dead=d // 8 % 4 == 0))
                case 5:
                    self.ask(client, c.Ack(items=[(token, [(job_id, 1)], None)]))
                case 7:
                    self.ask(client, c.Extend(items=items))
            return

    def step_lease_by_weight(self, a: int, b: int, d: int) -> None:
        names = [self._queue(b + number) for number in range(1 + b % 4)]
        weights = [(1, 1, 3, 10)[(d >> number) % 4] for number in range(len(names))]
        self.ask(self.client(a), c.Lease(queues=names, weights=weights, count=(1, 1, 2, 5)[d % 4]))

    def step_find(self, a: int, b: int, d: int) -> None:
        """List, or act on, what a filter's text means."""
        wanted = c.JobFilter(
            where=plan.WHERES[b % len(plan.WHERES)], queue=None if d % 3 else self._queue(d // 3)
        )
        kind = (None, None, None, c.Cancel, c.Requeue, c.Purge)[b // 8 % 6]
        command = (
            c.ListJobs(filter=wanted, limit=1 + d % 30)
            if kind is None
            else kind(filter=wanted, limit=1 + d % 6, dry_run=d // 6 % 2 == 0)
        )
        self.ask(self.client(a), command)

    def step_set_queue(self, a: int, b: int, d: int) -> None:
        fields: dict[str, Any] = {}
        match b % 8:
            case 0 | 1 | 2:
                fields["length_max"] = (0, 1, 3, 6, 12)[d % 5]
            case 3:
                fields["max_retries"] = (0, 1, 4)[d % 3]
            case 4:
                fields["max_crashes"] = (0, 1, 7)[d % 3]
            case 5:
                fields["retry"] = self._policy(d)
            case 6:
                fields["lease_ms"] = (1_000, 4_000, 60_000)[d % 3]
            case _:
                fields["retention_ms"], fields["dead_retention_ms"] = (
                    (0, 3_000),
                    (2_000, 0),
                    (None, 60_000),
                )[d % 3]
        self.ask(self.client(a), c.SetQueue(queue=self._queue(a >> 3), reset=b // 8 % 4 == 0, **fields))

    def step_pause(self, a: int, b: int, d: int) -> None:
        """Pause a queue, or more often let it go on."""
        kind = c.Pause if b % 5 < 2 else c.Resume
        self.ask(self.client(a), kind(queue=self._queue(a >> 3)))

    def step_queue(self, a: int, b: int, d: int) -> None:
        self.ask(self.client(a), c.GetQueue(queue=self._queue(b)))

    # --- steps: situations ----------------------------------------------------------------------

    def _through(self, client: Client) -> None:
        """Let everything that a client has asked go its way and be answered."""
        if client.stream is not None:
            client.stream.deliver_up(1 << 20)
        self.rest(passes=6)
        if client.stream is not None:
            self._arrive(client, 1 << 20)
            self._see_end(client)

    def _end(self, a: int, b: int, d: int) -> None:
        """The daemon ends, in one of its ways, perhaps with a snapshot of this very moment."""
        if d % 2:
            self.ask(self.client(a), c.Snapshot())
            self.rest()
        (self.step_kill, self.step_kill, self.step_power_loss, self.step_stop)[d // 2 % 4](a, b, d)

    def step_between_turns(self, a: int, b: int, d: int) -> None:
        """What one turn did is durable, what the next one did or saw is not; then comes the end."""
        client = self.client(a)
        self._through(client)
        self.step_submit(a, b, d)
        if client.stream is not None:
            client.stream.deliver_up(1 << 20)
        self.house.loop.run()
        if d % 2:
            self.ask(client, c.Get(job_id=max(1, self.house.engine.state.pages.next_id - 1)))
        else:
            self.step_submit(a, b + 1, d)
        if client.stream is not None:
            client.stream.deliver_up(1 << 20)
        if d % 2 == 0:
            self.house.threads.made[0].step()
        self.house.loop.run()
        if client.stream is not None:
            self._arrive(client, 1 << 20)
        self.step_power_loss(a, 4 * b, d)

    def step_too_late(self, a: int, b: int, d: int) -> None:
        """A client asks once more what was answered so long ago that the daemon has forgotten it."""
        if model.ANSWERS_PER_SESSION_MAX > 20:
            return
        client = self.client(a)
        self._through(client)
        if client.stream is None or not client.is_ready:
            return
        command = c.Submit(queue=self._queue(b), task=self._marker())
        newest_id = client.shared.newest_id
        self.ask(client, command)
        request_id = client.shared.newest_id
        if request_id != newest_id + 1:
            return  # something stands before it
        self._through(client)
        for number in range(model.ANSWERS_PER_SESSION_MAX + 1):
            self.step_submit(a, b + number, d)
        self._through(client)
        if client.stream is None or not client.is_ready:
            return
        data = framing.to_frame(messages.encode_request(request_id, command))
        _, verb, args = actors.messages_in(data)[0][0][1]
        now = self.house.reading
        self.oracle.sent(client.session, request_id, verb, args, now.engine_ms, now.wall_ms)
        client.stream.up += data
        self._through(client)  # it had an answer, so this one is none that its connection knows

    def step_change_of_mind(self, a: int, b: int, d: int) -> None:
        """A client's next hello says something else about its leases."""
        client = self.clients[a % len(self.clients)]
        client.decide(releases=not client.releases)

    def step_leave(self, a: int, b: int, d: int) -> None:
        """A worker whose leases end with its connections is gone, and comes back in time or too late."""
        client = self.client(a)
        if not client.releases:
            client.decide(releases=True)
            self._cut(client)
            client = self.client(a)
        if not client.grants:
            self.step_lease(a, b, 0)
        self._through(client)
        if client.stream is None:
            return
        self._cut(client)
        other = self.client(a + 1)
        if other is not client and d % 3 == 0:  # its coming is not the other one's
            self._cut(other)
            self._through(self.client(a + 1))
        self.wait((499, 500, 501, 100, 30, 499)[d % 6])
        if d // 6 % 3:
            self.rest(passes=3)
        if b // 2 % 2:
            self._through(self.client(a))
        if b // 4 % 2:
            self.wait((1, 400)[b // 8 % 2])
            self.rest(passes=3)
            self.step_lease(a + 1, b, d)
            self._through(self.client(a + 1))

    def _cut(self, client: Client) -> None:
        if client.stream is not None:
            client.stream.abandon()
            client.stream.lose()
            self._ended(client)

    def step_to_key_end(self, a: int, b: int, d: int) -> None:
        """Move to the end of a key's time, or one ms before or behind it, and submit with keys."""
        due_ms = self.house.engine.state.keys.timers.next_ms()
        left_ms = due_ms - self.house.clock.now().engine_ms
        if left_ms > 20_000:
            return
        self.wait(max(0, left_ms + (-1, 0, 0, 1)[a % 4]))
        self.rest(passes=2)
        for number in range(3):
            (self.step_submit_keyed if (b + number) % 2 else self.step_submit_again)(d, b + number, 1 + d)
        self._through(self.client(d))

    def step_to_expiry(self, a: int, b: int, d: int) -> None:
        """Move to the date of a job that is to be started by then, or one ms before or behind it, and lease."""
        if model.EXPIRIES_PER_TICK < 5:
            self.step_submit_expiring(a, 1, d)  # five of one date: more than the daemon ends at a time
            self._through(self.client(a))
        left_ms = self.house.engine.state.expiry_timers.next_ms() - self.clocks.wall_ms
        if left_ms > 100_000:
            return
        self.wait(max(0, left_ms + (-1, 0, 0, 1)[a % 4]))
        if b % 2:
            self.rest(passes=2)
        client = self.client(d)
        self.ask(client, c.Lease(queues=[self._queue(b + number) for number in range(3)], count=5))
        self._through(client)

    def step_end_with_marked(self, a: int, b: int, d: int) -> None:
        """The daemon ends while jobs are held that are to end; their workers go on with the next one."""
        client = self.client(a)
        if not client.grants:
            self.step_lease(a, b, 0)
            self._through(client)
        if client.grants and client.stream is not None:
            grant = client.grants[b % len(client.grants)]
            self.ask(client, c.Cancel(ids=[(grant.ids[0], 1)], running=True))
            self._through(client)
        self._end(a, b, d)
        if d // 8 % 2:
            self.step_extend(a, b, d)
        self._through(self.client(a))

    def step_end_with_paused(self, a: int, b: int, d: int) -> None:
        """The daemon ends while a queue is paused that has jobs."""
        client = self.client(a)
        self.ask(client, c.Submit(queue=self._queue(b), task=self._marker()))
        self.ask(client, c.Pause(queue=self._queue(b)))
        self._through(client)
        self._end(a, b, d)
        client = self.client(a)
        self.ask(client, c.Lease(queues=[self._queue(b)], count=5))
        if d // 8 % 4:
            self.ask(client, c.Resume(queue=self._queue(b)))
        self._through(client)

    def step_end_with_keys(self, a: int, b: int, d: int) -> None:
        """The daemon ends while keys are remembered, and they are used again behind it."""
        for number in range(2):
            self.step_submit_keyed(a, b + number, 1)
            self.step_submit_again(a, b + number, 1)
        self._through(self.client(a))
        self._end(a, b, d)
        for number in range(2):
            self.step_submit_keyed(a, b + number, 2)
            self.step_submit_again(a, b + number, 1)
        self._through(self.client(a))

    # --- steps: results, progress, waits ------------------------------------------------------

    def step_submit_for_result(self, a: int, b: int, d: int) -> None:
        """Submit a job whose result has a time of its own: also none, or one that is too long."""
        ttl_ms = plan.RESULT_TTLS_MS[b % len(plan.RESULT_TTLS_MS)]
        command = c.Submit(
            queue=self._queue(a >> 3), task=self._marker(), priority=d % 2, result_ttl_ms=ttl_ms
        )
        self.ask(self.client(a), command)

    def step_ack_with_result(self, a: int, b: int, d: int) -> None:
        client = self.client(a)
        if (grant := self._grant(client, b)) is not None:
            items = [(grant.token, ranges_of(self._part(grant, d)), b"r" * (d % 9))]
            self.ask(client, c.Ack(items=items, encoding="text"))

    def step_report(self, a: int, b: int, d: int) -> None:
        """A worker says how far it is, one that holds nothing any more too; somebody looks."""
        client = self.client(a)
        percent, text = plan.PROGRESS[d % len(plan.PROGRESS)]
        grant = self._grant(client, b)
        if b % 5 == 1 and self.stale:
            token, job_id = self.stale[b // 5 % len(self.stale)]
            items = [(token, [(job_id, 1)])]
        elif grant is not None:
            job_id = grant.ids[0]
            items = [(grant.token, ranges_of(grant.ids))]
        else:
            return
        self.ask(client, c.Extend(items=items, progress_percent=percent, progress_text=text))
        if d // 8 % 2:
            self._through(client)
        self.ask(self.client(a + d // 16), c.Get(job_id=job_id))

    def step_wait_for(self, a: int, b: int, d: int) -> None:
        """Wait for some jobs: of any time, not to come back, or not there yet."""
        newest = self.jobs_seen[-1 - b % len(self.jobs_seen)] if self.jobs_seen else 1
        ids = [(newest, 1 + d % 3)]
        if d // 4 % 2:
            ids.append((newest + 3 + b // 8 % 4, 1))
        if d // 8 % 4 == 0 and newest > 1:
            ids.append((1 + b // 32 % (newest - 1), 1))
        wait_ms = (0, 1, 2_000, 30_000, 30_000)[d // 32 % 5]
        self.ask(self.client(a), c.Wait(ids=ids, wait_ms=wait_ms, all=bool(d // 256 % 2)))

    def _held(self, a: int, b: int, **fields: Any) -> tuple[Client, Grant | None]:
        """Have a client hold one more job, a new one if it comes first, and tell it what it holds then."""
        client = self.client(a)
        queue = self._queue(b)
        self.ask(client, c.Submit(queue=queue, task=self._marker(), priority=32_767, **fields))
        self.ask(client, c.Lease(queues=[queue]))
        self._through(client)
        client = self.client(a)
        return client, client.grants[-1] if client.grants else None

    def _finished(self, a: int, b: int, ttl_ms: int) -> int | None:
        """Have a job done that has a result; return its id."""
        client, grant = self._held(a, b, result_ttl_ms=ttl_ms)
        if grant is None:
            return None
        job_id = grant.ids[0]
        self.ask(client, c.Ack(items=[(grant.token, ranges_of(self._part(grant, 1)), b"result")]))
        self._through(client)
        return job_id

    def step_to_result_end(self, a: int, b: int, d: int) -> None:
        """Move to the end of a result's time, or one ms before or behind it, and look."""
        if d % 2:
            self._finished(a, b, (1_000, 5_000)[b // 2 % 2])
        timers = self.house.engine.state.result_timers
        left_ms = timers.next_ms() - self.house.clock.now().engine_ms
        if left_ms > 400_000:
            return
        job_id = timers.first()[1]
        self.wait(max(0, left_ms + (-1, 0, 0, 1)[a % 4]))
        if b % 4 == 0:
            self.rest(passes=2)
        client = self.client(a + d)
        self.ask(client, (c.Get(job_id=job_id), c.Wait(ids=[(job_id, 1)]))[d // 2 % 2])
        if d // 4 % 2:
            self.ask(client, c.ListJobs(filter=c.JobFilter(state="done"), cursor=job_id, limit=3))
        self._through(client)

    def step_end_with_results(self, a: int, b: int, d: int) -> None:
        """The daemon ends while a result is shown; its time is over in the next run, or has to be."""
        job_id = self._finished(a, b, 1_000)
        self.wait((0, 900, 999, 1_000)[b // 2 % 4])
        if job_id is None:
            return
        self.ask(self.client(a), c.Get(job_id=job_id))
        self._through(self.client(a))
        self._end(a, b, d)
        self.wait((0, 1, 100, 1_000)[d // 8 % 4])
        self.ask(self.client(a), c.Get(job_id=job_id))
        self._through(self.client(a))

    def step_wait_for_held(self, a: int, b: int, d: int) -> None:
        """Somebody waits for a job that another one holds, and that comes to its end, or to none in time."""
        holder, grant = self._held(a, b)
        if grant is None:
            return
        job_id = grant.ids[0]
        other = self.client(a + 1)
        wait_ms = (500, 20_000)[b // 2 % 2]
        self.ask(other, c.Wait(ids=[(job_id, 1 + b // 4 % 2)], wait_ms=wait_ms, all=bool(b // 8 % 2)))
        self._through(other)
        items = [(grant.token, ranges_of(self._part(grant, 1)))]
        match d % 4:
            case 0:
                self.wait((499, 500, 501)[d // 4 % 3])
            case 1:
                self.ask(holder, c.Fail(items=items, error="no", dead=True))
            case 2 if len(items[0][1]) == 1:
                self.ask(holder, c.Ack(items=[(*items[0], b"r")]))
            case _:
                self.ask(holder, c.Release(items=items))
                self.ask(holder, c.Cancel(ids=[(job_id, 1)]))
        self._through(holder)
        self._through(self.client(a + 1))

    def step_nonsense(self, a: int, b: int, d: int) -> None:
        """Ask what is refused by its own words."""
        client = self.client(a)
        match b % 4:
            case 0:
                self.ask(client, c.Submit(delay_ms=1, run_at_ms=1))
            case 1:
                self.ask(client, c.Submit(delivery="at_most_once", max_retries=1))
            case 2:
                self.ask(client, c.Cancel())
            case _ if d % 2:
                self.ask(client, c.Submit(retry=RetryPolicy(kind="list")))
            case _:
                self.ask(client, c.Ack(items=[(1, [(5, 2), (6, 1)], None)]))

    def step_snapshot(self, a: int, b: int, d: int) -> None:
        self.ask(self.client(a), c.Snapshot())

    # --- steps: the way of bytes and records --------------------------------------------------

    def step_up(self, a: int, b: int, d: int) -> None:
        """Some bytes of a client reach the server, which has not ended its turn."""
        client = self.client(a)
        assert client.stream is not None
        count = len(client.stream.up) if b % 3 == 0 else 1 + b % 200
        client.stream.deliver_up(count)
        if d % 4 == 0:
            self.house.loop.run()

    def step_down(self, a: int, b: int, d: int) -> None:
        client = self.client(a)
        assert client.stream is not None
        count = len(client.stream.down) if b % 3 == 0 else 1 + b % 200
        self._arrive(client, count)
        self._see_end(client)

    def step_turn(self, a: int, b: int, d: int) -> None:
        for _ in range(1 + a % 3):
            self.house.loop.run()

    def step_work(self, a: int, b: int, d: int) -> None:
        """One of the threads takes a step."""
        threads = self.house.threads.made
        threads[a % len(threads)].step()
        if b % 2:
            self.house.loop.run()

    def step_overlap(self, a: int, b: int, d: int) -> None:
        """The loop goes on while the commit thread is inside a call to the disk; the end may come there too."""
        left = 1 + a % 3

        def act(name: str, path: str) -> None:
            nonlocal left
            if name not in ("write", "sync") or left == 0:
                return
            left -= 1
            self.marks.hit(f"loop ran within a {name} of the log")
            for client in self.clients:
                if client.stream is not None and d % 3:
                    client.stream.deliver_up(300)
            self.house.loop.run()
            if b % 8 == 0 and left == 0:
                self.marks.hit(f"killed within a {name} of the log")
                raise Crash

        self._hurry(1, 1)
        self.disk.on_call = act
        try:
            self.house.threads.made[0].step()
        except Crash as death:
            if b % 16 == 0:
                self.disk.on_call = None
                self._died(death)
                return
            self.disk.on_call = None
            self._died(death, loss=(Loss.PREFIX, Loss.SUBSET, Loss.TORN)[d % 3], dice=Dice(d))
        finally:
            self.disk.on_call = None

    def step_settle(self, a: int, b: int, d: int) -> None:
        """Everything goes its usual way for one client, or for all."""
        clients = self.clients if b % 4 == 0 else [self.clients[a % len(self.clients)]]
        for client in clients:
            if client.stream is not None:
                client.stream.deliver_up(1 << 20)
        self.rest(passes=2 + d % 3)
        for client in clients:
            if client.stream is not None:
                self._arrive(client, 1 << 20)
                self._see_end(client)

    def rest(self, passes: int = REST_PASSES_MAX) -> None:
        """Let loop and threads do what they can."""
        house = self.house
        for _ in range(passes):
            moved = house.loop.run()
            for thread in list(house.threads.made):
                moved = thread.step() or moved
            if not moved:
                return
        if passes == REST_PASSES_MAX:
            raise Violation("I19", "the daemon does not come to rest")

    def _see_end(self, client: Client) -> None:
        stream = client.stream
        if stream is not None and stream.is_lost and not stream.down:
            self._ended(client)

    def step_cut(self, a: int, b: int, d: int) -> None:
        """A connection ends at both ends; what was under way arrives in part, or not at all."""
        client = self.client(a)
        stream = client.stream
        assert stream is not None
        if b % 3 == 0:
            stream.deliver_up(1 + d % 300)
        if b % 2:
            self.house.loop.run()
        if b % 5 == 0:
            self._arrive(client, 1 + d % 100)
            if client.stream is None:
                return
        if stream.down:
            self.marks.hit("reply lost on its way")
        stream.abandon()
        stream.lose()
        self._ended(client)

    def step_lose_reply(self, a: int, b: int, d: int) -> None:
        """A lease is carried out, and its reply lost; the client asks again over another connection."""
        client = self.client(a)
        self.step_lease(a, b, d)
        stream = client.stream
        assert stream is not None
        stream.deliver_up(1 << 20)
        self.rest(passes=4)
        if stream.down:
            self.marks.hit("reply lost on its way")
        stream.abandon()
        stream.lose()
        self._ended(client)
        if b % 2:
            stream = self.client(a).stream
            assert stream is not None
            stream.deliver_up(1 << 20)

    def step_zombie(self, a: int, b: int, d: int) -> None:
        """The client's end is gone, its bytes are still under way, and the server knows nothing."""
        client = self.client(a)
        stream = client.stream
        assert stream is not None
        if len(self.zombies) >= 4:
            return
        stream.abandon()
        self.zombies.append(stream)
        self._ended(client)
        if b % 2:
            self.client(a)

    def step_zombie_up(self, a: int, b: int, d: int) -> None:
        """The server hears from a connection whose client has gone, or that it has."""
        if not self.zombies:
            return
        stream = self.zombies[a % len(self.zombies)]
        if stream.up and stream.deliver_up(1 + b % 400):
            self.marks.hit("zombie connection heard after its client came back")
        if d % 3 == 0 or not stream.up:
            self.zombies.remove(stream)
            stream.lose()

    def step_half_close(self, a: int, b: int, d: int) -> None:
        """A client says that it will send nothing more."""
        client = self.client(a)
        stream = client.stream
        assert stream is not None
        stream.deliver_up(1 << 20)
        if not stream.is_closing() and not stream.up and not stream.half_closed:
            self.oracle.lost(client.session, self.house.clock.now().engine_ms)
            stream.half_close()
            self.house.loop.run()
            self.marks.hit("half-closed connection answered")

    def step_withdraw(self, a: int, b: int, d: int) -> None:
        """A caller waits no longer for what it asked."""
        client = self.clients[a % len(self.clients)]
        requests = list(client.wire._unanswered.values())
        if requests:
            request = requests[b % len(requests)]
            if request.kind is not c.Lease:
                client.wire.withdraw(request)

    def step_garbage(self, a: int, b: int, d: int) -> None:
        """A stranger sends what nobody should."""
        stream = self.house.connect()
        for data in actors.garbage(a):
            stream.up += data
        stream.deliver_up(1 << 20)
        self.rest(passes=3)
        self.marks.hit("garbage refused")
        if not stream.is_lost:
            stream.abandon()
            stream.lose()

    # --- steps: time --------------------------------------------------------------------------

    def step_wait(self, a: int, b: int, d: int) -> None:
        self.wait(plan.WAITS_MS[a % len(plan.WAITS_MS)])
        if b % 4:
            self.rest(passes=4)

    def step_to_deadline(self, a: int, b: int, d: int) -> None:
        """Move to the next moment at which the engine has to act, or one ms before or behind it."""
        now = self.house.clock.now()
        due_ms = self.house.engine.next_deadline(now)
        if due_ms is None or due_ms - now.engine_ms > 40 * DAY_MS:
            return
        self.wait(max(0, due_ms - now.engine_ms + (-1, 0, 0, 1)[a % 4]))
        if b % 3:
            self.house.loop.run()

    def step_jump(self, a: int, b: int, d: int) -> None:
        self.clocks.wall_ms += plan.JUMPS_MS[a % len(plan.JUMPS_MS)]
        # Up to 2096: from 2100 on a restored backup may give out tokens again (docs/faults.md).
        self.clocks.wall_ms = min(max(self.clocks.wall_ms, 1_600_000_000_000), 4_000_000_000_000)
        self.marks.hit("wall clock jumped")

    def step_suspend(self, a: int, b: int, d: int) -> None:
        """The machine sleeps. What its workers sent meanwhile is there when it wakes."""
        self.wait(asleep_ms=plan.WAITS_MS[a % len(plan.WAITS_MS)] * 3)
        self.marks.hit("machine slept")

    def step_standstill(self, a: int, b: int, d: int) -> None:
        """The daemon is stopped for a while; then it hears what came."""
        if self.house.engine.state.lease_timers:
            self.marks.hit("standstill while leases run")
        self.wait(1_000 + plan.WAITS_MS[a % len(plan.WAITS_MS)])
        for client in self.clients:
            if client.stream is not None:
                client.stream.deliver_up(1 << 20)
        self.house.loop.run()

    def step_slow_disk(self, a: int, b: int, d: int) -> None:
        """A sync takes its time: the loop goes on meanwhile."""
        for number in range(1 + a % 4):
            self.wait(plan.WAITS_MS[(b + number) % 11])
            for client in self.clients:
                if client.stream is not None:
                    client.stream.deliver_up(500)
            self.house.loop.run()
        if self.house.driver is not None and self.house.driver._waiting:
            self.marks.hit("replies wait for a slow disk")

    # --- steps: faults ------------------------------------------------------------------------

    def _hurry(self, b: int, d: int) -> None:
        """Let something be under way when the end comes: requests, turns, records, in this order ever less."""
        if b % 4 == 0:
            return
        for client in self.clients:
            if client.stream is not None:
                client.stream.deliver_up(1 << 20 if b % 2 else 1 + d % 400)
        for number in range(d % 3):
            self.house.loop.run()
            if number:
                self.house.threads.made[0].step()

    def step_kill(self, a: int, b: int, d: int) -> None:
        self.note("kill")
        self._hurry(b, d)
        if self.house.engine.has_changes:
            self.marks.hit("killed within a turn")
        elif self.house.driver is not None and self.house.driver._waiting:
            self.marks.hit("killed before a sync")
        self._lose_house()
        self.wait(plan.WAITS_MS[a % len(plan.WAITS_MS)])
        self._start()

    def step_power_loss(self, a: int, b: int, d: int) -> None:
        loss = (Loss.PREFIX, Loss.SUBSET, Loss.TORN)[a % 3]
        self.note("power loss", loss.value)
        self._hurry(b, d)
        if self.disk.pending():
            self.marks.hit(f"power loss with pending operations: {loss.value}")
        self._lose_house(loss, Dice(b << 16 | d))
        self.wait(plan.WAITS_MS[d % len(plan.WAITS_MS)])
        self._start()

    def step_crash_in_recovery(self, a: int, b: int, d: int) -> None:
        loss = (None, Loss.PREFIX, Loss.SUBSET, Loss.TORN)[a % 4]
        self.note("crash in recovery")
        self._lose_house(loss, Dice(b << 16 | d))
        self._start(crash_at=1 + b % 12)

    def step_rot(self, a: int, b: int, d: int) -> None:
        """A bit of the newest snapshot flips while the daemon is away; the older one and the log are enough.

        Where there is one snapshot without all of the log, and none rotted before, the daemon must not have let it come
        to that.
        """
        self.note("rot")
        self._lose_house()
        names = sorted(name for name in self.disk.listing(DATA) if name.endswith(".snap"))
        if len(names) > 1 or (names and f"{1:016x}.wal" in self.disk.listing(DATA)):
            self.has_spare = True
        if names and self.has_spare:
            self.has_spare = False
            path = f"{DATA}/{names[-1]}"
            self.disk.flip(path, (a << 16 | b) % (8 * len(self.disk.content(path))))
            self.marks.hit("rot in a snapshot survived")
            if d % 2 and len(names) > 1:
                self.marks.hit("fell back to the older of two snapshots")
        self._start()

    def step_disk_fault(self, a: int, b: int, d: int) -> None:
        fault = (Fault.WRITE_FAILS, Fault.SYNC_FAILS, Fault.SYNC_FAILS, Fault.NO_SPACE, Fault.KILL)[a % 5]
        self.disk.sync_failure = tuple(SyncFailure)[b % 3]
        self.disk.arm(fault, 1 + d % 8)
        self.disk_may_fail = True
        self.marks.hit(f"disk fault armed: {fault.name}")

    def step_fill_disk(self, a: int, b: int, d: int) -> None:
        """Somebody else fills the disk."""
        used = self.disk._used_bytes(self.disk.root)
        self.disk.capacity_bytes = used + (0, 500, 3_000, 20_000)[a % 4]
        self.disk_may_fail = True

    def step_free_disk(self, a: int, b: int, d: int) -> None:
        self.disk.capacity_bytes = None

    def step_short_writes(self, a: int, b: int, d: int) -> None:
        self.disk.short_writes = bool(a % 3)

    def step_stop(self, a: int, b: int, d: int) -> None:
        self.note("stop")
        self._stop()
        self._start()

    def _stop(self) -> None:
        self.oracle.stops()
        self.house.stop()
        self.marks.hit("clean stop")
        for client in self.clients:
            if client.stream is not None:
                self._arrive(client, 1 << 20)
                if client.stream is not None:
                    self._ended(client)
        now = self.house.clock.now()
        self.oracle.clocks(now.engine_ms, now.wall_ms)
        self.oracle.crashed()
        self._told.clear()
        self.zombies.clear()

    def step_backup(self, a: int, b: int, d: int) -> None:
        """Copy the data directory of a stopped daemon."""
        self._stop()
        self.backup = self.disk.copy_of(DATA)
        self.shadow.saved()
        self._start()

    def step_restore(self, a: int, b: int, d: int) -> None:
        """Put the older copy back. Jobs and LSNs go back; tokens must not."""
        if self.backup is None:
            return
        self.note("restore")
        self._lose_house()
        self.disk.restore(DATA, self.backup)
        self.has_spare = False  # it may be of a time when one had rotted
        self.oracle.rolled_back()
        self.seen_lsn = 0
        self.shadow.rolled_back()
        # Its clock has to have moved on since the last start, or tokens may repeat: docs/faults.md, row 29.
        self.wait(2_000)
        self.clocks.wall_ms = max(self.clocks.wall_ms, self.wall_max_ms + 2_000)
        for client in self.clients:
            client.grants.clear()
        self._start()
        self.marks.hit("older backup restored")

    def _look_at_memory(self, state: State, soft_bytes: int) -> None:
        """Hold what jobs take at the least, and what is counted of those that ended, against the limit (I17)."""
        alive = [job for job in state.pages.jobs_from(0) if job.state in (*WAITING, LEASED)]
        least = sum(250 + len(job.payload or b"") for job in alive)
        if least > soft_bytes:
            raise Violation(
                "I17", f"{len(alive)} jobs take {least} bytes of memory: the limit is {soft_bytes}"
            )
        if state.memory.ended_bytes > soft_bytes // 5:
            raise Violation(
                "I17", f"{state.memory.ended_bytes} bytes of jobs that have ended: limit {soft_bytes // 5}"
            )

    # --- looks inside -------------------------------------------------------------------------

    def look_inside(self) -> None:
        """Hold indexes against each other, and the log against memory (I11, I13, I17, I20)."""
        house = self.house
        try:
            self.rest()
        except (Died, Crash) as death:
            self._died(death)
            return
        state = house.engine.state
        try:
            state.check()
        except AssertionError as error:
            raise Violation("I20", f"indexes disagree: {error}") from error
        if self.memory_soft_bytes is not None:
            self._look_at_memory(state, self.memory_soft_bytes)
        assert house.driver is not None
        if house.driver._waiting:
            raise Violation("I19", "a reply waits for the disk although it is idle")
        if isinstance(house.engine, ShadowedEngine):
            house.engine.compare(house.clock.now())
        twin = self.disk.clone()
        twin.kill()
        twin.capacity_bytes = None
        engine, store = recovered(twin, segment_bytes=house.config.segment_bytes)
        if engine.state.digest() != state.digest():
            raise Violation("I13", "snapshot and log give another state than memory has")
        store.close()

    # --- the end ------------------------------------------------------------------------------

    def end_well(self) -> None:
        """Nothing goes wrong any more: everything that can end has to (I19), and is as the oracle says."""
        disk = self.disk
        disk.disarm()
        disk.capacity_bytes = None
        disk.short_writes = False
        self.disk_may_fail = False
        for stream in self.zombies:
            stream.lose()
        self.zombies.clear()
        self.wait(1_500)  # a look finds the room that came back
        self.rest()
        client = self.clients[0]
        self._settle_all()
        for number in range(self.plan.settings.queues):
            self.client(0)
            self.ask(client, c.Resume(queue=self._queue(number)))
        self._settle_all()
        for number in range(REST_PASSES_MAX):
            if not number or self.house.engine.state.counts()[JobState.READY]:
                self._drain(client)
            counts = self.house.engine.state.counts()
            now = self.house.clock.now()
            due_ms = self.house.engine.next_deadline(now)
            live = sum(counts[:3])  # delayed, ready, leased
            if not live:
                break
            if due_ms is None:
                raise Violation("I19", f"{live} jobs live and nothing is due")
            self.wait(max(1, min(due_ms - now.engine_ms, DAY_MS)))
            self.rest()
            if self.house.engine.state.lease_lag_ms > RESTART_GRACE_MS:
                self._stay_awake()
        else:
            raise Violation("I19", "jobs do not come to an end")
        self._settle_all()
        self._end_waits()
        self.check_all(self.house.engine.state.lsn, final=True)
        self.oracle.finish()
        self.look_inside()

    def _end_waits(self) -> None:
        """Let the time of all who wait be over: none of them is left without an answer (I19)."""
        self.wait(model.WAIT_MS_MAX)
        self._settle_all()
        for client in self.clients:
            for request in client.wire._unanswered.values():
                if request.kind is c.Wait and not request.withdrawn:
                    raise Violation("I19", f"wait {request.id} of {client.name} has no answer at the end")

    def _stay_awake(self) -> None:
        """Let no standstill happen for as long as the last one is forgiven: a leap of time is one itself."""
        for _ in range(RESTART_GRACE_MS // STANDSTILL_MS + 1):
            self.wait(STANDSTILL_MS)
            self.rest()

    def _settle_all(self) -> None:
        for _ in range(REST_PASSES_MAX):
            self.rest()
            busy = False
            for client in self.clients:
                if client.stream is None and client.wire.wants_stream:
                    self.client(self.clients.index(client))
                stream = client.stream
                if stream is not None:
                    busy = stream.deliver_up(1 << 20) or busy
                    busy = bool(stream.down) or busy
                    self._arrive(client, 1 << 20)
                    self._see_end(client)
            if not busy:
                return
        raise Violation("I19", "clients and daemon never come to rest")

    def _drain(self, client: Client) -> None:
        """A sane worker takes what is ready."""
        while True:
            self.client(0)
            queues = [f"q{number}" for number in range(self.plan.settings.queues)]
            self.ask(client, c.Lease(queues=queues, count=100))
            known = len(client.grants)
            self._settle_all()
            fresh = client.grants[known:]
            if not fresh:
                return
            for grant in fresh:
                client.drop(grant)
                self.ask(client, c.Ack(items=[(grant.token, ranges_of(grant.ids), None)]))

    def check_all(self, lsn: int, *, final: bool = False, fresh: bool = False) -> None:
        """Read all that the daemon shows, and hold it against the oracle.

        Args:
            lsn: that clients may have been told of.
            fresh: nothing has happened since the start.
        """
        engine = self.house.engine
        now = self.house.clock.now()
        if fresh and isinstance(engine, ShadowedEngine):
            jobs = [shown.plain for shown in engine.shown]  # it has just looked through them
        elif fresh:
            jobs = [shown.plain for shown in self.shadow.listing.of(engine.state, now)]
        else:
            infos: list[c.JobInfo] = []
            cursor: int | None = 0
            while cursor is not None:
                page = engine.execute(c.ListJobs(cursor=cursor, limit=500), model.LOCAL, 0, "check", now)
                assert isinstance(page, c.JobList)
                infos += page.jobs
                cursor = page.cursor
            jobs = [msgspec.to_builtins(job, builtin_types=(bytes,)) for job in infos]
        listed = engine.execute(c.Queues(limit=1_000), model.LOCAL, 0, "check", now)
        assert isinstance(listed, c.QueueList)
        queues = [msgspec.to_builtins(queue) for queue in listed.queues]
        settings = []
        for queue in listed.queues if self.oracle.knows_settings else ():
            details = engine.execute(c.GetQueue(queue=queue.queue), model.LOCAL, 0, "check", now)
            settings.append(msgspec.to_builtins(details))
        self.oracle.check_listing(
            jobs,
            queues,
            lsn,
            final,
            engine_ms=now.engine_ms,
            wall_ms=now.wall_ms,
            fresh=fresh,
            settings=settings,
        )


@contextmanager
def rules_of(world: World) -> Iterator[None]:
    """Let limits and sizes of a run hold, and its daemon have the engine that the run wants."""
    plan = world.plan
    saved = {name: getattr(model, name) for name in plan.settings.limits}
    saved_slice = dump.SLICE_JOBS
    sender: Any = client_connection
    starter: Any = daemon
    saved_answers = sender.ANSWERS_PER_SESSION_MAX, sender._LEASE_AGE_MAX
    saved_engine = starter.Engine
    for name, value in plan.settings.limits.items():
        setattr(model, name, value)
    dump.SLICE_JOBS = plan.settings.slice_jobs  # type: ignore[misc]
    answers = model.ANSWERS_PER_SESSION_MAX
    sender.ANSWERS_PER_SESSION_MAX = answers
    sender._LEASE_AGE_MAX = answers // 2
    if world.is_shadowed:
        starter.Engine = world.shadow.make_engine
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(model, name, value)
        dump.SLICE_JOBS = saved_slice  # type: ignore[misc]
        sender.ANSWERS_PER_SESSION_MAX, sender._LEASE_AGE_MAX = saved_answers
        starter.Engine = saved_engine


def run(plan: Plan, marks: Marks | None = None, *, trace: Callable[[str], object] | None = None) -> Outcome:
    """Carry out a plan. Raises: Violation, whose `step` says where it showed."""
    world = World(plan, marks or Marks(), trace=trace)
    with rules_of(world):
        try:
            outcome = world.run()
        except Violation as violation:
            violation.step = world.at
            raise
        except (Exception, Died) as error:
            broken = Violation("CODE", f"{type(error).__name__}: {error}")
            broken.step = world.at
            raise broken from error
    world.house.kill()
    vars(
        world
    ).clear()  # what points to each other in it is little then: the collector is off, and walks what is left
    return outcome
