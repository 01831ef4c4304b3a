"""The queue once more, in the dumbest way that can be right: an oracle for the core.

Every rule is written anew from the design, with lists that are sorted when they are read. Of jqd.core it knows what
can be said and answered (commands), and the numbers (model); no decision, no container, no arithmetic. Jitter is the
one thing it does not compute: it knows the bounds, and takes the time that it is told by `adopt`.
"""

import copy
import itertools
import re
from collections.abc import Container, Iterable, Iterator
from fractions import Fraction
from functools import cache
from math import ceil
from typing import Any

from msgspec import Struct, structs

from jqd.core import commands as c
from jqd.core import model

STATES = ("delayed", "ready", "leased", "done", "dead", "cancelled", "expired")
ALIVE = ("delayed", "ready", "leased")
FINISHED = ("done", "cancelled", "expired")


class Refused(Exception):
    """An error reply.

    Args:
        code: its word on the wire.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class NaiveJob:
    """A job, with its lease spelled out in it."""

    def __init__(
        self, job_id: int, fields: c.JobFields, payload: bytes, now: model.Now, in_queue: dict[str, Any]
    ) -> None:
        self.id = job_id
        self.in_queue = in_queue  # what was set of its queue
        self.fields = fields
        self.payload: bytes | None = payload
        self.state = "ready"
        self.shown: c.JobInfo | None = None  # when it has ended: nothing in it moves then
        self.created = self.changed = now
        self.attempt = self.errors = self.crashes = 0
        self.attempts: list[c.AttemptInfo] = []
        self.error = ""
        self.reason: Any = None
        self.result: bytes | None = None
        self.result_encoding: Any = "raw"
        self.result_expired = False
        self.progress_percent: int | None = None
        self.progress_text = ""
        self.expires_ms: int | None = None
        self.due_ms: int | None = None  # by the engine clock
        self.due_wall_ms: int | None = None
        self.due_bounds: tuple[int, int] | None = None  # of due_ms, where only jitter knows it
        self.token = self.deadline_ms = self.lease_ms = 0
        self.worker = ""
        self.restarted = self.cancel_marked = False
        self.session: bytes | None = None

    @property
    def once(self) -> bool:
        return self.fields.delivery == "at_most_once"

    @property
    def max_retries(self) -> int:
        if self.once:
            return 0
        own = self.fields.max_retries
        return self.in_queue.get("max_retries", 3) if own is None else own

    @property
    def max_crashes(self) -> int:
        own = self.fields.max_crashes
        return self.in_queue.get("max_crashes", 5) if own is None else own

    @property
    def retry(self) -> model.RetryPolicy | None:
        return self.fields.retry or self.in_queue.get("retry")

    @property
    def own_lease_ms(self) -> int:
        return self.fields.lease_ms or self.in_queue.get("lease_ms", 30_000)

    def holds(self, token: int, now: model.Now) -> bool:
        return self.state == "leased" and self.token == token and now.engine_ms < self.deadline_ms


class NaiveKey(Struct):
    """What a key stands for, until when, and what was submitted with it."""

    first_id: int
    count: int
    due_ms: int | None
    content: Any


class NaiveParked:
    """A lease that waits."""

    def __init__(
        self, command: c.Lease, caller: model.Caller, request_id: int, ticket: str, until_ms: int
    ) -> None:
        self.command, self.caller, self.request_id, self.ticket = command, caller, request_id, ticket
        self.until_ms = until_ms


class NaiveWait:
    """A wait that waits."""

    def __init__(self, command: c.Wait, request_id: int, ticket: str, until_ms: int) -> None:
        self.command, self.request_id, self.ticket, self.until_ms = command, request_id, ticket, until_ms


class NaiveSession:
    """What is known of a client process."""

    def __init__(self) -> None:
        self.answers: dict[int, Any] = {}  # by request id: reply or a lease's token, oldest first
        self.floor = 0
        self.alone_since_ms = 0


class NaiveQueue:
    """The whole daemon's memory."""

    def __init__(self) -> None:
        self.jobs: dict[int, NaiveJob] = {}
        self.alive: dict[int, NaiveJob] = {}  # those that wait or are leased, by rising id
        self.settings: dict[str, dict[str, Any]] = {}  # by queue: what was set, and "paused", "kept" if so
        self.next_id = 1
        self.epoch = self.grant = 0
        self.finished: list[int] = []  # in the order in which they ended
        self.dead: list[int] = []
        self.with_result: list[int] = []  # of the finished
        self.dated: list[int] = []  # that may expire, and some that cannot any more
        self.jittered: list[int] = []  # jobs that got bounds, of which some may have their time since
        self.sessions: dict[bytes, NaiveSession] = {}  # those that have changed something
        self.keys: dict[
            tuple[str | None, ...], NaiveKey
        ] = {}  # ("d", tenant, queue, key) or ("i", tenant, key)
        self.met: list[NaiveJob] = []  # what the newest sweep meant
        self.connected: list[bytes] = []  # once for each connection
        self.releasing: set[bytes] = set()  # whose newest hello asked for it
        self.leaving: dict[bytes, int] = {}  # whose leases end then
        self.parked: list[NaiveParked] = []
        self.waits: list[NaiveWait] = []
        self.outbox: list[tuple[str, int, Any]] = []
        self.changed = False
        self.lag_ms = 0  # leases are judged as of so long ago

    def twin(self) -> "NaiveQueue":
        """Return an independent copy. What is never changed in place is shared."""
        twin = copy.copy(self)
        twin.settings = {name: dict(settings) for name, settings in self.settings.items()}
        twin.jobs = {}
        for job_id, job in self.jobs.items():
            twin.jobs[job_id] = other = NaiveJob.__new__(NaiveJob)  # copy.copy takes three times as long
            other.__dict__.update(job.__dict__)
            other.attempts = list(job.attempts)
            other.in_queue = twin.settings[job.fields.queue]
        twin.alive = {job_id: twin.jobs[job_id] for job_id in self.alive}
        twin.sessions = {}
        for name, session in self.sessions.items():
            twin.sessions[name] = known = copy.copy(session)
            known.answers = dict(session.answers)
        twin.keys = {name: copy.copy(key) for name, key in self.keys.items()}
        twin.finished, twin.dead = list(self.finished), list(self.dead)
        twin.with_result, twin.jittered = list(self.with_result), list(self.jittered)
        twin.dated = list(self.dated)
        twin.connected, twin.parked, twin.outbox = list(self.connected), list(self.parked), list(self.outbox)
        twin.releasing, twin.leaving = set(self.releasing), dict(self.leaving)
        twin.waits = list(self.waits)
        return twin

    # --- runs, connections --------------------------------------------------------------------

    def start(self, now: model.Now) -> None:
        is_credible = now.wall_ms <= 4_102_444_800_999  # no clock is right that shows more than 2100
        self.epoch = max(self.epoch + 1, now.wall_ms // 1000 if is_credible else 0)
        self.grant = self.lag_ms = 0
        self.parked, self.waits = [], []
        self.connected = []
        self.releasing, self.leaving = set(), {}
        for session in self.sessions.values():
            session.alone_since_ms = now.engine_ms
        for job in self.in_state("leased"):
            job.deadline_ms = max(job.deadline_ms, now.engine_ms + min(job.lease_ms, 30_000))
            job.restarted = True

    def hello(self, name: bytes | None, on_disconnect: str) -> None:
        if name is None and on_disconnect == "release":
            raise Refused("invalid_argument")
        if name is None:
            return
        if name not in self.sessions and len(self.sessions) >= model.SESSIONS_MAX:
            raise Refused("overloaded")
        self.connected.append(name)
        self.leaving.pop(name, None)
        self.releasing -= {name}
        self.releasing |= {name} if on_disconnect == "release" else set()

    def disconnect(self, caller: model.Caller, ticket: str, now: model.Now, *, lost: bool) -> None:
        self.parked = [one for one in self.parked if one.ticket != ticket]
        self.waits = [one for one in self.waits if one.ticket != ticket]
        if caller.session is not None:
            self.connected.remove(caller.session)
            if caller.session in self.sessions:
                self.sessions[caller.session].alone_since_ms = now.engine_ms
            if caller.session not in self.connected:
                if lost and caller.session in self.releasing:
                    self.leaving[caller.session] = now.engine_ms + 500
                self.releasing -= {caller.session}

    # --- commands -----------------------------------------------------------------------------

    def execute(
        self, command: c.Command[Any], caller: model.Caller, request_id: int, ticket: str, now: model.Now
    ) -> Any:
        """Answer, or return None for what is parked. Raises: Refused."""
        if command.writes:
            answer = self.answered(caller, request_id, now)
            if answer is not None:
                return answer
        if isinstance(command, c.Lease):
            self.expire_waiting(now)
            self.serve(now)
            answer = self.answered(caller, request_id, now)
            if answer is not None:
                return answer
            if command.wait_ms and any(one.ticket == ticket for one in self.parked):
                raise Refused("invalid_argument")
            reply = self.remembered(command, caller, request_id, now)
            if reply.jobs or not command.wait_ms:
                return reply
            for one in [
                one
                for one in self.parked
                if (one.caller.session, one.request_id) == (caller.session, request_id)
            ]:
                if caller.session is not None:
                    self.answer(one, nothing(now))
            self.parked.append(
                NaiveParked(command, caller, request_id, ticket, now.engine_ms + command.wait_ms)
            )
            return None
        if isinstance(command, c.Wait):
            return self.wait(command, request_id, ticket, now)
        return self.remembered(command, caller, request_id, now)

    def wait(self, command: c.Wait, request_id: int, ticket: str, now: model.Now) -> c.Waited | None:
        check_ranges([command.ids])
        count = len(ids_of(command))
        if count > model.WAIT_JOBS_MAX:
            raise Refused("invalid_argument")
        if not command.wait_ms or self.is_met(command):
            return self.waited(command, now)
        if sum(len(ids_of(one.command)) for one in self.waits) + count > model.WAITED_JOBS_MAX:
            raise Refused("overloaded")
        self.waits.append(NaiveWait(command, request_id, ticket, now.engine_ms + command.wait_ms))
        return None

    def ended(self, command: c.Wait) -> list[int]:
        return [
            job_id
            for job_id in ids_of(command)
            if job_id not in self.jobs or self.jobs[job_id].state in (*FINISHED, "dead")
        ]

    def is_met(self, command: c.Wait) -> bool:
        ended = self.ended(command)
        return len(ended) == len(ids_of(command)) if command.all else bool(ended)

    def waited(self, command: c.Wait, now: model.Now) -> c.Waited:
        infos = [self.info(self.jobs[one], now) for one in self.ended(command) if one in self.jobs]
        return c.Waited(
            jobs=[
                c.EndedJob(**{name: getattr(info, name) for name in c.EndedJob.__struct_fields__})
                for info in infos
            ],
            pending=len(ids_of(command)) - len(self.ended(command)),
            gone=c.to_ranges([one for one in ids_of(command) if one not in self.jobs]),
        )

    def serve_waits(self, now: model.Now) -> None:
        self.answer_waits([one for one in self.waits if self.is_met(one.command)], now)

    def answer_waits(self, waits: list[NaiveWait], now: model.Now) -> None:
        for one in waits:
            self.waits.remove(one)
            self.outbox.append((one.ticket, one.request_id, self.waited(one.command, now)))

    def remembered(
        self, command: c.Command[Any], caller: model.Caller, request_id: int, now: model.Now
    ) -> Any:
        self.changed = False
        reply = getattr(self, f"on_{command.verb}")(command, caller, now)
        if caller.session is not None and self.changed:
            session = self.sessions.setdefault(caller.session, NaiveSession())
            answer = reply.token if isinstance(reply, c.Leased) else reply
            session.answers[request_id] = answer  # a known one stays in its place
        return reply

    def answered(self, caller: model.Caller, request_id: int, now: model.Now) -> Struct | None:
        if caller.session not in self.sessions:
            return None
        session = self.sessions[caller.session]
        if request_id in session.answers:
            answer: int | Struct = session.answers[request_id]
            return self.leased_again(answer, now) if isinstance(answer, int) else answer
        if request_id <= session.floor:
            raise Refused("position_lost")
        return None

    def leased_again(self, token: int, now: model.Now) -> c.Leased:
        jobs = [job for job in self.alive.values() if job.holds(token, self.judged(now)) and not job.once]
        if not jobs:
            return nothing(now)
        left_ms = max(0, min(job.deadline_ms for job in jobs) - now.engine_ms)
        return c.Leased(
            token=token, lease_ms_left=left_ms, wall_ms=now.wall_ms, jobs=[leased_job(job) for job in jobs]
        )

    def on_submit(self, command: c.Submit, caller: model.Caller, now: model.Now) -> c.Submitted:
        first_id, _, existing = self.carry_out([(command, [command.payload])], now)[0]
        return c.Submitted(job_id=first_id, existing=existing)

    def on_submit_many(self, command: c.SubmitMany, caller: model.Caller, now: model.Now) -> c.SubmittedMany:
        return c.SubmittedMany(
            jobs=self.carry_out([(group, group.payloads) for group in command.groups], now)
        )

    def carry_out(
        self, groups: list[tuple[c.JobFields, list[bytes]]], now: model.Now
    ) -> list[tuple[int, int, bool]]:
        """Carry out all groups, or none of them: what happens is tried on a copy first."""
        keyed = any(group.dedupe_key or group.idempotency_key for group, _ in groups)
        bounded = [name for name, said in self.settings.items() if "length_max" in said]
        # Of others nothing is refused after the first change.
        trial = self.trial() if keyed or bounded else None
        named: list[tuple[str | None, ...]] = []
        for group, payloads in groups:
            self.check_fields(group, now)
            if group.dedupe_key is not None and len(payloads) > 1:
                raise Refused("invalid_argument")
            for key in (
                ("d", group.tenant, group.queue, group.dedupe_key),
                ("i", group.tenant, group.idempotency_key),
            ):
                if key[-1] is not None and key in named:
                    raise Refused("invalid_argument")
                named.append(key)
            if trial is not None:
                trial.submit_group(group, payloads, now)
        for name in bounded:
            assert trial is not None
            if self.length(name) < trial.length(name) > self.settings[name]["length_max"]:
                raise Refused("queue_full")
        return [self.submit_group(group, payloads, now) for group, payloads in groups]

    def trial(self) -> "NaiveQueue":
        """Return a copy that submits can be tried on: of the jobs they change only those that have a key."""
        twin = copy.copy(self)
        twin.jobs, twin.alive = dict(self.jobs), dict(self.alive)
        twin.keys, twin.settings = dict(self.keys), dict(self.settings)
        for key in self.keys.values():
            if key.first_id in twin.jobs:
                other = twin.jobs[key.first_id] = copy.copy(twin.jobs[key.first_id])
                if key.first_id in twin.alive:
                    twin.alive[key.first_id] = other
        return twin

    def submit_group(
        self, fields: c.JobFields, payloads: list[bytes], now: model.Now
    ) -> tuple[int, int, bool]:
        dedupe = ("d", fields.tenant, fields.queue, fields.dedupe_key)
        idempotency = ("i", fields.tenant, fields.idempotency_key)
        content = (
            payloads,
            structs.replace(as_fields(fields), idempotency_key=None, idempotency_ttl_ms=None),
        )
        known = self.known(idempotency, now)
        if known is not None:
            if known.content != content:
                raise Refused("idempotency_conflict")
            return known.first_id, known.count, True
        held = self.known(dedupe, now)
        added = (fields.dedupe_key is not None and held is None) + (fields.idempotency_key is not None)
        answer = (0, 0, False)
        if held is None:
            self.check_result_ttl(fields)
        if held is not None:
            self.meet(fields, payloads[0], held.first_id, now)
            answer = (held.first_id, 1, True)
        if added and len(self.keys) + added > model.KEYS_MAX:
            raise Refused("overloaded")
        if held is None:
            ids = [self.add(fields, payload, now) for payload in payloads]
            answer = (ids[0], len(ids), False)
            if fields.dedupe_key is not None:
                ttl_ms = fields.dedupe_ttl_ms
                due_ms = None if ttl_ms is None else now.engine_ms + ttl_ms
                self.keys[dedupe] = NaiveKey(ids[0], 1, due_ms, None)
        if fields.idempotency_key is not None:
            self.changed = True
            due_ms = now.engine_ms + (fields.idempotency_ttl_ms or 86_400_000)
            self.keys[idempotency] = NaiveKey(*answer[:2], due_ms, content)
        return answer

    def meet(self, fields: c.JobFields, payload: bytes, job_id: int, now: model.Now) -> None:
        """Do to the job that has the key what the mode says."""
        job = self.jobs.get(job_id)
        if fields.dedupe == "existing":
            return
        if fields.dedupe == "reject" or job is None or job.state not in ("delayed", "ready"):
            raise Refused("duplicate")
        self.overwrite(job, payload, fields.encoding, fields.priority, fields.metadata)
        if fields.dedupe == "debounce":
            self.move(job, fields.delay_ms, fields.run_at_ms, now)

    def known(self, key: tuple[str | None, ...], now: model.Now) -> "NaiveKey | None":
        found = self.keys.get(key)
        return (
            None if found is None or (found.due_ms is not None and found.due_ms <= now.engine_ms) else found
        )

    def free(self, job: NaiveJob) -> None:
        """Take from a job the key that it has no longer than it lives, or waits."""
        key = ("d", job.fields.tenant, job.fields.queue, job.fields.dedupe_key)
        if key in self.keys and self.keys[key].first_id == job.id and self.keys[key].due_ms is None:
            del self.keys[key]

    def check_fields(self, fields: c.JobFields, now: model.Now) -> None:
        ready_ms = now.wall_ms + fields.delay_ms if fields.delay_ms else fields.run_at_ms
        dates = [
            at for at in (fields.expires_at_ms, fields.expires_ms and now.wall_ms + fields.expires_ms) if at
        ]
        if len(dates) > 1 or (dates and ready_ms is not None and dates[0] <= ready_ms):
            raise Refused("invalid_argument")
        if fields.delay_ms is not None and fields.run_at_ms is not None:
            raise Refused("invalid_argument")
        if fields.delivery == "at_most_once" and (fields.max_retries or fields.retry is not None):
            raise Refused("invalid_argument")
        check_policy(fields.retry)
        if fields.dedupe_key is None and fields.idempotency_key is None:
            self.check_result_ttl(fields)
        if any("/" in name for name in (fields.queue, fields.tenant, fields.group or "")):
            raise Refused("invalid_argument")
        if fields.dedupe_key is None:
            if (fields.dedupe, fields.dedupe_until, fields.dedupe_ttl_ms) != ("existing", "finished", None):
                raise Refused("invalid_argument")
        elif (fields.dedupe_until == "started" and fields.dedupe_ttl_ms is not None) or (
            fields.dedupe == "debounce" and fields.delay_ms is None and fields.run_at_ms is None
        ):
            raise Refused("invalid_argument")
        if fields.idempotency_key is None and fields.idempotency_ttl_ms is not None:
            raise Refused("invalid_argument")

    def check_result_ttl(self, fields: c.JobFields) -> None:
        longest_ms = self.settings.get(fields.queue, {}).get("retention_ms", 3_600_000)
        if fields.result_ttl_ms is not None and fields.result_ttl_ms > longest_ms:
            raise Refused("invalid_argument")

    def add(self, fields: c.JobFields, payload: bytes, now: model.Now) -> int:
        self.changed = True
        job = NaiveJob(self.next_id, fields, payload, now, self.settings.setdefault(fields.queue, {}))
        self.next_id += 1
        self.jobs[job.id] = self.alive[job.id] = job
        job.expires_ms = fields.expires_at_ms
        if fields.expires_ms is not None:
            job.expires_ms = now.wall_ms + fields.expires_ms
        if job.expires_ms is not None:
            self.dated.append(job.id)
        if fields.delay_ms:
            job.state, job.due_ms = "delayed", now.engine_ms + fields.delay_ms
        elif fields.run_at_ms is not None and fields.run_at_ms > now.wall_ms:
            job.state, job.due_wall_ms = "delayed", fields.run_at_ms
        return job.id

    def on_lease(self, command: c.Lease, caller: model.Caller, now: model.Now) -> c.Leased:
        if any("/" in name for name in command.queues):
            raise Refused("invalid_argument")
        if command.weights is not None and len(command.weights) != len(command.queues):
            raise Refused("invalid_argument")
        wanted = self.waiting_for(command)[: command.count]
        jobs: list[NaiveJob] = []
        for job in wanted:
            if command.lease_ms is None and job.own_lease_ms != wanted[0].own_lease_ms:
                break
            jobs.append(job)
        if not jobs:
            return nothing(now)
        self.changed = True
        self.grant += 1
        lease_ms = command.lease_ms or jobs[0].own_lease_ms
        for job in jobs:
            job.state, job.changed, job.attempt = "leased", now, job.attempt + 1
            job.token = (self.epoch << 32) + self.grant
            job.lease_ms, job.deadline_ms = lease_ms, now.engine_ms + lease_ms
            job.worker, job.session, job.restarted = caller.worker, caller.session, False
            job.progress_percent, job.progress_text = None, ""
            if job.fields.dedupe_until == "started":
                self.free(job)
        return c.Leased(
            token=jobs[0].token,
            lease_ms_left=lease_ms,
            wall_ms=now.wall_ms,
            jobs=[leased_job(job) for job in jobs],
        )

    def waiting_for(self, command: c.Lease) -> list[NaiveJob]:
        """What the command's queues hold ready, in the order of handing out."""
        found: list[NaiveJob] = []
        all_ready = self.in_state("ready")
        for name in dict.fromkeys(command.queues) if command.weights is None else self.drawn(command):
            if self.settings.get(name, {}).get("paused"):
                continue
            ready = [job for job in all_ready if job.fields.queue == name]
            found += sorted(ready, key=lambda job: (-job.fields.priority, job.id))
        return found

    def drawn(self, command: c.Lease) -> list[str]:
        """The queues that hold something ready, in the order that the page says of weights."""
        left = [
            (name, weight)
            for index, (name, weight) in enumerate(zip(command.queues, command.weights, strict=True))
            if name not in command.queues[:index] and self.waiting_for(c.Lease(queues=[name]))
        ]
        drawn = []
        number = (self.grant + 1) * 2_654_435_769 % 2**32
        while left:
            tickets = [name for name, weight in left for _ in range(weight)]
            drawn.append(tickets[number * len(tickets) // 2**32])
            left = [one for one in left if one[0] != drawn[-1]]
            number = (number + 1) * 2_654_435_769 % 2**32
        return drawn

    def on_extend(self, command: c.Extend, caller: model.Caller, now: model.Now) -> c.Extended:
        if len(command.progress_text.encode()) > 256:
            raise Refused("invalid_argument")
        check_ranges(ranges for _, ranges in command.items)
        verdicts, left_ms, marked = [], [], []
        for job_id, token in spread(command.items):
            verdicts.append((job_id, code := self.verdict(job_id, token, now)))
            if code == "ok":
                job = self.jobs[job_id]
                self.changed = True
                job.lease_ms = command.lease_ms or job.lease_ms
                job.deadline_ms = now.engine_ms + job.lease_ms
                job.restarted = False
                if (command.progress_percent, command.progress_text) != (None, ""):
                    job.progress_percent = command.progress_percent
                    job.progress_text = command.progress_text
                left_ms.append(job.lease_ms)
                if job.cancel_marked:
                    marked.append(job_id)
        return c.Extended(
            results=runs(verdicts), lease_ms_left=min(left_ms, default=0), cancel_marked=c.to_ranges(marked)
        )

    def on_ack(self, command: c.Ack, caller: model.Caller, now: model.Now) -> c.Verdicts:
        check_ranges(ranges for _, ranges, _ in command.items)
        if command.result_error is not None and any(result is not None for _, _, result in command.items):
            raise Refused("invalid_argument")
        verdicts, plain = [], []
        for token, ranges, result in command.items:
            for job_id, _ in spread([(token, ranges)]):
                verdicts.append((job_id, code := self.verdict(job_id, token, now)))
                if code != "ok":
                    continue
                job = self.jobs[job_id]
                if command.result_error is not None:
                    job.errors += 1
                    self.bury(job, "refused", "error", command.result_error, now)
                elif result is None or job.fields.result_ttl_ms == 0:
                    plain.append(job)
                else:
                    job.result, job.result_encoding = result, command.encoding
                    self.finish(job, "done", now)
        for job in plain:  # what has no result ends after what has one
            self.finish(job, "done", now)
        return c.Verdicts(results=runs(verdicts))

    def on_fail(self, command: c.Fail, caller: model.Caller, now: model.Now) -> c.Verdicts:
        if (command.dead, command.retry_in_ms is not None, command.retry is not None).count(True) > 1:
            raise Refused("invalid_argument")
        check_policy(command.retry)
        check_ranges(ranges for _, ranges in command.items)
        verdicts = []
        for job_id, token in spread(command.items):
            verdicts.append((job_id, code := self.verdict(job_id, token, now)))
            if code != "ok":
                continue
            job = self.jobs[job_id]
            job.errors += 1
            if job.cancel_marked:
                self.record(job, "error", command.error, now)
                self.finish(job, "cancelled", now)
            elif command.dead:
                self.bury(job, "killed", "error", command.error, now)
            elif job.errors > job.max_retries:
                self.bury(job, "retries", "error", command.error, now)
            else:
                self.record(job, "error", command.error, now)
                if command.retry_in_ms is None:
                    self.back_off(job, job.errors, now, command.retry or job.retry)
                else:
                    self.give_back(job, command.retry_in_ms, now)
        return c.Verdicts(results=runs(verdicts))

    def on_release(self, command: c.Release, caller: model.Caller, now: model.Now) -> c.Verdicts:
        check_ranges(ranges for _, ranges in command.items)
        verdicts = []
        for job_id, token in spread(command.items):
            verdicts.append((job_id, code := self.verdict(job_id, token, now)))
            if code == "ok" and self.jobs[job_id].cancel_marked:
                self.finish(self.jobs[job_id], "cancelled", now)
            elif code == "ok":
                self.jobs[job_id].attempt -= 1
                self.give_back(self.jobs[job_id], command.delay_ms, now)
        return c.Verdicts(results=runs(verdicts))

    def take_back(self, token: int, now: model.Now) -> None:
        for job in self.in_state("leased"):
            if job.token == token and job.cancel_marked:
                self.finish(job, "cancelled", now)
            elif job.token == token:
                job.attempt -= 1
                self.give_back(job, 0, now)

    def verdict(self, job_id: int, token: int, now: model.Now) -> str:
        if job_id not in self.jobs:
            return "job_not_found"
        return "ok" if self.jobs[job_id].holds(token, self.judged(now)) else "lease_lost"

    def judged(self, now: model.Now) -> model.Now:
        """The time by which leases are judged."""
        return model.Now(now.engine_ms - self.lag_ms, now.wall_ms)

    # --- bulk, reading ------------------------------------------------------------------------

    def on_cancel(self, command: c.Cancel, caller: model.Caller, now: model.Now) -> c.Swept:
        states = ("delayed", "ready", "leased") if command.running else ("delayed", "ready")
        found, swept = self.sweep(command, states, states, now)
        swept.marked = sum(job.state == "leased" for job in self.met)
        for job in found:
            if job.state != "leased":
                self.finish(job, "cancelled", now)
            elif not job.cancel_marked:
                self.changed = job.cancel_marked = True
        return swept

    def on_update(self, command: c.Update, caller: model.Caller, now: model.Now) -> c.Updated:
        moves = command.delay_ms is not None or command.run_at_ms is not None
        says_something = moves or any(
            one is not None for one in (command.priority, command.payload, command.metadata)
        )
        both = command.delay_ms is not None and command.run_at_ms is not None
        if both or not says_something or (command.encoding and command.payload is None):
            raise Refused("invalid_argument")
        if command.job_id not in self.jobs:
            raise Refused("job_not_found")
        job = self.jobs[command.job_id]
        if job.state not in ("delayed", "ready"):
            raise Refused("wrong_state")
        self.overwrite(job, command.payload, command.encoding, command.priority, command.metadata)
        if moves:
            self.move(job, command.delay_ms, command.run_at_ms, now)
        return c.Updated(job_id=job.id, state=job.state)  # type: ignore[arg-type]

    def overwrite(
        self,
        job: NaiveJob,
        payload: bytes | None,
        encoding: Any,
        priority: int | None,
        metadata: dict[str, str] | None,
    ) -> None:
        self.changed = True
        job.fields = structs.replace(job.fields)  # others may share it
        if payload is not None:
            job.payload, job.fields.encoding = payload, encoding or "raw"
        if priority is not None:
            job.fields.priority = priority
        if metadata is not None:
            job.fields.metadata = metadata

    def move(self, job: NaiveJob, delay_ms: int | None, run_at_ms: int | None, now: model.Now) -> None:
        before = job.state
        job.state, job.due_ms, job.due_wall_ms = "ready", None, None
        if delay_ms:
            job.state, job.due_ms = "delayed", now.engine_ms + delay_ms
        elif run_at_ms is not None and run_at_ms > now.wall_ms:
            job.state, job.due_wall_ms = "delayed", run_at_ms
        if job.state != before:
            job.changed = now

    def on_requeue(self, command: c.Requeue, caller: model.Caller, now: model.Now) -> c.Swept:
        found, swept = self.sweep(command, ("dead",), ("dead",), now)
        for job in found:
            self.changed = True
            if takes_key_again(job):
                key = ("d", job.fields.tenant, job.fields.queue, job.fields.dedupe_key)
                self.keys[key] = NaiveKey(job.id, 1, None, None)
            self.dead.remove(job.id)
            job.shown = None
            self.alive = dict(sorted((self.alive | {job.id: job}).items()))
            job.errors = job.crashes = 0
            job.reason = None
            job.state, job.changed = "ready", now
        return swept

    def on_purge(self, command: c.Purge, caller: model.Caller, now: model.Now) -> c.Swept:
        found, swept = self.sweep(command, ("delayed", "ready", "dead"), ("delayed", "ready"), now)
        for job in found:
            self.forget(job.id)
        return swept

    def sweep(
        self, command: c.Sweep, accepted: tuple[str, ...], usual: tuple[str, ...], now: model.Now
    ) -> tuple[list[NaiveJob], c.Swept]:
        if (command.ids is None) == (command.filter is None):
            raise Refused("invalid_argument")
        verdicts: list[tuple[int, str]] = []
        cursor = None
        if command.ids is not None:
            check_ranges([command.ids])
            found: list[NaiveJob] = []
            for job_id, _ in spread([(0, command.ids)]):
                if job_id not in self.jobs:
                    verdicts.append((job_id, "job_not_found"))
                elif self.jobs[job_id].state in accepted and self.would_be_second(
                    command, self.jobs[job_id], found, now
                ):
                    verdicts.append((job_id, "duplicate"))
                elif self.jobs[job_id].state in accepted:
                    verdicts.append((job_id, "ok"))
                    found.append(self.jobs[job_id])
                else:
                    verdicts.append((job_id, "wrong_state"))
        else:
            wanted = command.filter
            states: tuple[str, ...] = usual
            meant = None if wanted.where is None else meaning_of(wanted.where)
            if wanted.state is not None:
                states = (wanted.state,)
                if wanted.state not in accepted:
                    raise Refused("wrong_state")
            elif meant is not None and "state" in meant.fields:
                states = tuple(state for state in accepted if meant.possible[state])
                if not states:
                    raise Refused("wrong_state")
            met, cursor = self.page(wanted.queue, states, meant, command, now)
            found = []
            for job in met:
                if not self.would_be_second(command, job, found, now):
                    found.append(job)
        self.met = found
        swept = c.Swept(count=len(found), cursor=cursor, results=runs(verdicts))
        return ([] if command.dry_run else found), swept

    def would_be_second(self, command: c.Sweep, job: NaiveJob, found: list[NaiveJob], now: model.Now) -> bool:
        """Tell whether a revived job would live beside another one with its key."""
        if not isinstance(command, c.Requeue) or not takes_key_again(job):
            return False
        key = (job.fields.tenant, job.fields.queue, job.fields.dedupe_key)
        others = [
            (one.fields.tenant, one.fields.queue, one.fields.dedupe_key)
            for one in found
            if takes_key_again(one)
        ]
        return key in others or self.known(("d", *key), now) is not None

    def page(
        self,
        queue: str | None,
        states: Iterable[str],
        meant: "Meaning | None",
        command: c.Sweep | c.ListJobs,
        now: model.Now,
    ) -> tuple[list[NaiveJob], int | None]:
        if queue is not None and queue not in self.names():
            raise Refused("queue_not_found")
        found: list[NaiveJob] = []
        steps = 0
        for job in self.sorted():
            if job.id < command.cursor:
                continue
            if len(found) == command.limit or steps >= model.SCAN_JOBS_MAX:
                return found, job.id
            steps += 1
            if job.state in states and queue in (None, job.fields.queue):
                if meant is None:
                    found.append(job)
                elif meant.possible[job.state]:
                    steps += meant.steps(job, now)
                    found += [job] if meant.holds(job, now) else []
        return found, None

    def on_list(self, command: c.ListJobs, caller: model.Caller, now: model.Now) -> c.JobList:
        wanted = command.filter or c.JobFilter()
        states = STATES if wanted.state is None else (wanted.state,)
        meant = None if wanted.where is None else meaning_of(wanted.where)
        found, cursor = self.page(wanted.queue, states, meant, command, now)
        return c.JobList(jobs=[self.info(job, now) for job in found], cursor=cursor)

    def on_get(self, command: c.Get, caller: model.Caller, now: model.Now) -> c.JobInfo:
        if command.job_id not in self.jobs:
            raise Refused("job_not_found")
        job = self.jobs[command.job_id]
        info = self.described(job, now)
        info.payload = job.payload
        return info

    def on_queues(self, command: c.Queues, caller: model.Caller, now: model.Now) -> c.QueueList:
        names = sorted(name for name in self.names() if name > command.cursor)
        shown = names[: command.limit]
        infos = [self.queue_info(name, now) for name in shown]
        return c.QueueList(queues=infos, cursor=shown[-1] if names[len(shown) :] else None)

    def queue_info(self, name: str, now: model.Now) -> c.QueueInfo:
        counts: dict[str, Any] = {
            state: sum(job.fields.queue == name for job in self.in_state(state)) for state in STATES
        }
        ready = [job for job in self.in_state("ready") if job.fields.queue == name]
        first: dict[int, NaiveJob] = {}  # of each priority
        for job in ready:
            first.setdefault(job.fields.priority, job)
        ages = [now.engine_ms - job.changed.engine_ms for job in first.values()]
        paused = bool(self.settings.get(name, {}).get("paused"))
        return c.QueueInfo(queue=name, paused=paused, ready_age_ms=max(ages, default=None), **counts)

    def on_queue(self, command: c.GetQueue, caller: model.Caller, now: model.Now) -> c.QueueDetails:
        if command.queue not in self.names():
            raise Refused("queue_not_found")
        said = self.settings[command.queue]
        return c.QueueDetails(
            info=self.queue_info(command.queue, now),
            lease_ms=said.get("lease_ms", 30_000),
            max_retries=said.get("max_retries", 3),
            max_crashes=said.get("max_crashes", 5),
            retry=said.get("retry", model.RetryPolicy()),
            retention_ms=said.get("retention_ms", 3_600_000),
            dead_retention_ms=said.get("dead_retention_ms", 30 * 86_400_000),
            length_max=said.get("length_max", 0),
            waits=[],
            runs=[],
        )

    def on_set_queue(self, command: c.SetQueue, caller: model.Caller, now: model.Now) -> c.QueueChanged:
        check_policy(command.retry)
        names = (
            "lease_ms",
            "max_retries",
            "max_crashes",
            "retry",
            "retention_ms",
            "dead_retention_ms",
            "length_max",
        )
        said = {name: getattr(command, name) for name in names if getattr(command, name) is not None}
        old = self.settings.get(command.queue, {})
        new = {"paused": True} if command.reset and old.get("paused") else {} if command.reset else dict(old)
        new |= said
        if new.get("length_max") == 0:
            del new["length_max"]
        if said or not command.reset:
            new["kept"] = True
        return self.change(command.queue, new)

    def on_pause(self, command: c.Pause, caller: model.Caller, now: model.Now) -> c.QueueChanged:
        return self.change(command.queue, self.settings.get(command.queue, {}) | {"paused": True})

    def on_resume(self, command: c.Resume, caller: model.Caller, now: model.Now) -> c.QueueChanged:
        if command.queue not in self.names():
            raise Refused("queue_not_found")
        new = dict(self.settings[command.queue])
        new.pop("paused", None)
        return self.change(command.queue, new)

    def change(self, name: str, new: dict[str, Any]) -> c.QueueChanged:
        if "/" in name:
            raise Refused("invalid_argument")
        old = self.settings.setdefault(name, {})
        if new != old:
            if not old and len([one for one in self.settings.values() if one]) >= model.QUEUES_SET_MAX:
                raise Refused("overloaded")
            self.changed = True
            old.clear()
            old.update(new)  # jobs know this very dict
        return c.QueueChanged(queue=name, paused=bool(new.get("paused")))

    def length(self, name: str) -> int:
        return len([job for job in self.alive.values() if job.fields.queue == name])

    @staticmethod
    def has_overdue_result(job: NaiveJob, now: model.Now) -> bool:
        ttl_ms = job.fields.result_ttl_ms
        is_timed = job.result is not None and ttl_ms is not None
        return is_timed and now.engine_ms >= job.changed.engine_ms + ttl_ms

    def info(self, job: NaiveJob, now: model.Now) -> c.JobInfo:
        is_timed = job.result is not None and job.fields.result_ttl_ms is not None
        if job.state in ALIVE or job.in_queue or is_timed:
            return self.described(job, now)
        if job.shown is None:
            job.shown = self.described(job, now)
        return job.shown

    def described(self, job: NaiveJob, now: model.Now) -> c.JobInfo:
        fields, leased = job.fields, job.state == "leased"
        overdue = self.has_overdue_result(job, now)
        return c.JobInfo(
            job_id=job.id,
            queue=fields.queue,
            state=job.state,  # type: ignore[arg-type]
            attempt=job.attempt,
            created_wall_ms=job.created.wall_ms,
            changed_wall_ms=job.changed.wall_ms,
            payload_bytes=len(job.payload or b""),
            encoding=fields.encoding,
            priority=fields.priority,
            tenant=fields.tenant,
            group=fields.group,
            task=fields.task,
            dedupe_key=fields.dedupe_key,
            metadata=fields.metadata,
            delivery=fields.delivery,
            errors=job.errors,
            crashes=job.crashes,
            max_retries=job.max_retries,
            max_crashes=job.max_crashes,
            retry=job.retry,
            lease_ms=job.own_lease_ms,
            lease_ms_left=max(0, job.deadline_ms - now.engine_ms) if leased else None,
            worker=job.worker if leased else None,
            cancel_marked=job.cancel_marked,
            due_ms_left=None if job.due_ms is None else max(0, job.due_ms - now.engine_ms),
            run_at_ms=job.due_wall_ms,
            expires_at_ms=job.expires_ms,
            reason=job.reason,
            error=job.error,
            attempts=job.attempts[-16:],
            result=None if overdue else job.result,
            result_encoding="raw" if overdue else job.result_encoding,
            result_expired=overdue or job.result_expired,
            progress_percent=job.progress_percent,
            progress_text=job.progress_text,
        )

    # --- time ---------------------------------------------------------------------------------

    def turn(self, now: model.Now, unsent: Container[int] = ()) -> None:
        """Let everything happen that is due. unsent: tokens of grants whose reply no socket has seen."""
        for job in self.in_state("delayed"):
            due = job.due_ms is not None and job.due_ms <= now.engine_ms
            if due or (job.due_wall_ms is not None and job.due_wall_ms <= now.wall_ms):
                job.state, job.changed, job.due_ms, job.due_wall_ms = "ready", now, None, None
        self.expire_waiting(now)
        judged_ms = self.judged(now).engine_ms
        over = [job for job in self.in_state("leased") if job.deadline_ms <= judged_ms]
        for job in sorted(over, key=self.expiry_order):
            self.expire(job, now, f"lease of {job.lease_ms} ms ran out")
        for name in [name for name, due_ms in self.leaving.items() if due_ms <= judged_ms]:
            del self.leaving[name]
            for job in self.in_state("leased"):
                if job.session == name and job.token not in unsent:
                    self.expire(job, now, "its worker's connection was lost")
        for key in [key for key in self.keys if self.known(key, now) is None]:
            del self.keys[key]
        self.serve_waits(now)
        self.forget_old(now)
        for name, session in list(self.sessions.items()):
            if name not in self.connected and session.alone_since_ms + 600_000 <= now.engine_ms:
                del self.sessions[name]
        self.serve(now)
        self.serve_waits(now)
        self.answer_waits([one for one in self.waits if one.until_ms <= now.engine_ms], now)
        over_now = [one for one in self.parked if one.until_ms <= now.engine_ms]
        for parked in sorted(over_now, key=lambda one: one.until_ms):
            self.answer(parked, nothing(now))
        for session in self.sessions.values():
            while len(session.answers) > model.ANSWERS_PER_SESSION_MAX:
                oldest = next(iter(session.answers))
                session.floor = max(session.floor, oldest)
                del session.answers[oldest]

    def expire_waiting(self, now: model.Now) -> None:
        self.dated = [job_id for job_id in self.dated if job_id in self.alive]  # what was dead had started
        for job in [self.alive[job_id] for job_id in self.dated]:
            never_started = job.state in ("delayed", "ready") and job.attempt == 0
            if never_started and job.expires_ms is not None and job.expires_ms <= now.wall_ms:
                self.finish(job, "expired", now)

    @staticmethod
    def expiry_order(job: NaiveJob) -> tuple[int, int]:
        return job.deadline_ms, job.token

    def expire(self, job: NaiveJob, now: model.Now, error: str) -> None:
        cause = "restart" if job.restarted else "crash"
        job.crashes += cause == "crash"
        if job.cancel_marked:
            self.record(job, cause, error, now)
            self.finish(job, "cancelled", now)
        elif job.once:
            self.bury(job, "abandoned", cause, error, now)
        elif cause == "crash" and job.crashes > job.max_crashes:
            self.bury(job, "crashes", cause, error, now)
        else:
            self.record(job, cause, error, now)
            if cause == "restart" or job.crashes == 1:
                self.give_back(job, 0, now)
            else:
                self.back_off(job, job.crashes - 1, now, job.retry)

    def forget_old(self, now: model.Now) -> None:
        for shelf, setting, usual_ms in (
            (self.finished, "retention_ms", 3_600_000),
            (self.dead, "dead_retention_ms", 30 * 86_400_000),
        ):
            least_ms = min([usual_ms, *(said[setting] for said in self.settings.values() if setting in said)])
            for job_id in list(shelf):
                job = self.jobs[job_id]
                if job.changed.engine_ms + least_ms > now.engine_ms:
                    break  # and those behind it ended later
                if job.changed.engine_ms + job.in_queue.get(setting, usual_ms) <= now.engine_ms:
                    self.forget(job_id)
        for is_dead, most in ((False, model.FINISHED_COUNT_MAX), (True, model.DEAD_COUNT_MAX)):
            for name in self.names() if len(self.dead if is_dead else self.finished) > most else ():
                ids = self.dead if is_dead else self.finished  # forget() makes another list
                mine = [job_id for job_id in ids if self.jobs[job_id].fields.queue == name]
                for job_id in mine[: max(0, len(mine) - most)]:
                    self.forget(job_id)
        for job_id in list(self.with_result):
            job = self.jobs[job_id]
            if self.has_overdue_result(job, now):
                job.result, job.result_encoding, job.result_expired = None, "raw", True
                self.with_result.remove(job_id)
        while (
            sum(len(self.jobs[job_id].result or b"") for job_id in self.with_result) > model.RESULTS_BYTES_MAX
        ):
            self.forget(self.with_result[0])

    def serve(self, now: model.Now) -> None:
        for parked in list(self.parked):
            if self.waiting_for(parked.command):
                self.answer(parked, self.remembered(parked.command, parked.caller, parked.request_id, now))

    def answer(self, parked: NaiveParked, reply: c.Leased) -> None:
        self.parked.remove(parked)
        self.outbox.append((parked.ticket, parked.request_id, reply))

    # --- moves --------------------------------------------------------------------------------

    def finish(self, job: NaiveJob, state: str, now: model.Now) -> None:
        self.changed = True
        self.free(job)
        job.cancel_marked = False
        job.state, job.changed, job.payload = state, now, None
        job.due_ms = job.due_wall_ms = job.due_bounds = None
        del self.alive[job.id]
        self.finished.append(job.id)
        if job.result is not None:
            self.with_result.append(job.id)

    def bury(self, job: NaiveJob, reason: str, cause: str, error: str, now: model.Now) -> None:
        self.record(job, cause, error, now)
        self.free(job)
        job.cancel_marked = False
        job.state, job.changed, job.reason = "dead", now, reason
        del self.alive[job.id]
        self.dead.append(job.id)

    def record(self, job: NaiveJob, cause: str, error: str, now: model.Now) -> None:
        self.changed = True
        job.error = error
        job.attempts.append(
            c.AttemptInfo(
                attempt=job.attempt,
                cause=cause,  # type: ignore[arg-type]
                wall_ms=now.wall_ms,
                worker=job.worker,
                error=error,
            )
        )

    def give_back(self, job: NaiveJob, delay_ms: int, now: model.Now) -> None:
        self.changed = True
        job.changed = now
        if delay_ms:
            job.state, job.due_ms = "delayed", now.engine_ms + delay_ms
        else:
            job.state = "ready"

    def back_off(
        self, job: NaiveJob, failures: int, now: model.Now, policy: model.RetryPolicy | None
    ) -> None:
        delay_ms, percent = delay_and_jitter(policy or model.RetryPolicy(), failures)
        self.give_back(job, delay_ms, now)
        if not delay_ms:
            return
        spread_ms = Fraction(delay_ms * percent, 100)
        job.due_bounds = (
            now.engine_ms + ceil(delay_ms - spread_ms),
            now.engine_ms + int(delay_ms + spread_ms),
        )
        self.jittered.append(job.id)

    def unsettled(self) -> list[int]:
        """Return the jobs whose time only jitter knows."""
        found = {job_id for job_id in self.jittered if job_id in self.alive}
        self.jittered = []
        return sorted(job_id for job_id in found if self.alive[job_id].due_bounds is not None)

    def adopt(self, job_id: int, due_ms: int) -> None:
        job = self.jobs[job_id]
        low_ms, high_ms = job.due_bounds
        assert low_ms <= due_ms <= high_ms, f"job {job_id}: {due_ms} is not in {low_ms}..{high_ms}"
        job.due_ms, job.due_bounds = due_ms, None

    def forget(self, job_id: int) -> None:
        self.changed = True
        self.free(self.jobs[job_id])
        del self.jobs[job_id]
        self.alive.pop(job_id, None)
        self.with_result = [one for one in self.with_result if one != job_id]
        self.finished = [one for one in self.finished if one != job_id]
        self.dead = [one for one in self.dead if one != job_id]

    def sorted(self) -> list[NaiveJob]:
        return list(self.jobs.values())  # ids only rise, and no job comes back

    def names(self) -> set[str]:
        """The queues that are there: those with a job, whatever its state, and those of which something was set."""
        said = {name for name, settings in self.settings.items() if settings}
        return said | {job.fields.queue for job in self.jobs.values()}

    def in_state(self, state: str) -> list[NaiveJob]:
        jobs = self.alive if state in ALIVE else self.jobs
        return [job for job in jobs.values() if job.state == state]


def check_policy(policy: model.RetryPolicy | None) -> None:
    """Refuse what makes no sense: what another kind knows, a list without delays, a base above the cap."""
    if policy is None:
        return
    said = {name for name in policy.__struct_fields__ if getattr(policy, name) is not None} - {"kind"}
    known = {"jitter_percent"} | {
        "exponential": {"base_ms", "factor_percent", "cap_ms"},
        "linear": {"base_ms", "cap_ms"},
        "fixed": {"base_ms"},
        "list": {"delays_ms"},
    }[policy.kind]
    if said - known or (policy.kind == "list" and "delays_ms" not in said):
        raise Refused("invalid_argument")
    if "cap_ms" in known and (policy.base_ms or 1_000) > (policy.cap_ms or 3_600_000):
        raise Refused("invalid_argument")


def delay_and_jitter(policy: model.RetryPolicy, failures: int) -> tuple[int, int]:
    """Return the delay after so many failures, and its jitter in percent."""
    percent = 20 if policy.jitter_percent is None else policy.jitter_percent
    base_ms, cap_ms = policy.base_ms or 1_000, policy.cap_ms or 3_600_000
    if policy.delays_ms is not None:
        return [*policy.delays_ms, *[policy.delays_ms[-1]] * failures][failures - 1], percent
    if policy.kind == "fixed":
        return base_ms, percent
    if policy.kind == "linear":
        return min(base_ms * failures, cap_ms), percent
    exact = Fraction(base_ms) * Fraction(policy.factor_percent or 200, 100) ** (failures - 1)
    return int(min(exact, Fraction(cap_ms))), percent


def takes_key_again(job: NaiveJob) -> bool:
    fields = job.fields
    return (fields.dedupe_key, fields.dedupe_until, fields.dedupe_ttl_ms) == (
        fields.dedupe_key,
        "finished",
        None,
    ) and (fields.dedupe_key is not None)


def as_fields(fields: c.JobFields) -> c.JobFields:
    """Return what is said about a job, without how it is said."""
    return c.JobFields(**{name: getattr(fields, name) for name in c.JobFields.__struct_fields__})


class Meaning:
    """What a filter's text says, of the plain ones that tests make: FIELD OP VALUE, and what Python says alike.

    code: the text with each comparison replaced by is_true(its number).
    possible: whether a job can be meant, by the state that it is in.
    """

    def __init__(self, where: str) -> None:
        self.comparisons: list[tuple[str, str, list[Any]]] = []
        text = re.sub(r"([\w.]+) (=|!=|<=?|>=?|contains|in) (\([^)]*\)|[\w-]+|'')", self.number, where)
        self.code = compile(text, where, "eval")
        self.fields = [field for field, _, _ in self.comparisons]
        self.possible = {state: self.may_be(state) for state in STATES}

    def number(self, match: re.Match[str]) -> str:
        values = [self.value(one.strip(" ()'")) for one in match[3].split(",")]
        self.comparisons.append((match[1], match[2], values))
        return f"is_true({len(self.comparisons) - 1})"

    @staticmethod
    def value(text: str) -> Any:
        if duration := re.fullmatch(r"(\d+)(ms|s|m|h)", text):
            return int(duration[1]) * {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}[duration[2]]
        return int(text) if re.fullmatch(r"-?\d+", text) else text

    def holds(self, job: NaiveJob, now: model.Now) -> bool:
        def is_true(number: int) -> bool:
            field, sign, values = self.comparisons[number]
            return self.compare(self.of(job, field, now), sign, values)

        return bool(eval(self.code, {"is_true": is_true}))

    def may_be(self, state: str) -> bool:
        """Tell whether any outcome of the comparisons with other fields makes it true of a job in this state."""
        for others in itertools.product((True, False), repeat=len(self.comparisons)):
            outcomes = [
                self.compare(state, sign, values) if field == "state" else other
                for (field, sign, values), other in zip(self.comparisons, others, strict=True)
            ]
            if eval(self.code, {"is_true": outcomes.__getitem__}):
                return True
        return False

    def steps(self, job: NaiveJob, now: model.Now) -> int:
        """Return what testing a job counts."""
        searched = sum(
            len(self.of(job, field, now)) for field, sign, _ in self.comparisons if sign == "contains"
        )
        return sum(len(values) for _, _, values in self.comparisons) + searched // 32

    @staticmethod
    def of(job: NaiveJob, field: str, now: model.Now) -> Any:
        if field.startswith("metadata."):
            return (job.fields.metadata or {}).get(field.removeprefix("metadata."), "")
        if field in ("age", "state_age"):
            return now.engine_ms - (job.created if field == "age" else job.changed).engine_ms
        owner = job if field in ("state", "error", "reason", "attempt", "errors", "crashes") else job.fields
        value = getattr(owner, field)
        return "" if value is None else value

    @staticmethod
    def compare(found: Any, sign: str, values: list[Any]) -> bool:
        first = values[0]
        match sign:
            case "=":
                return bool(found == first)
            case "!=":
                return bool(found != first)
            case "<":
                return bool(found < first)
            case "<=":
                return bool(found <= first)
            case ">":
                return bool(found > first)
            case ">=":
                return bool(found >= first)
            case "in":
                return found in values
        return first.lower() in found.lower()


@cache
def meaning_of(where: str) -> Meaning:
    """Tests make few texts, and ask what each means again and again."""
    return Meaning(where)


def nothing(now: model.Now) -> c.Leased:
    return c.Leased(token=0, lease_ms_left=0, wall_ms=now.wall_ms, jobs=[])


def leased_job(job: NaiveJob) -> c.LeasedJob:
    return c.LeasedJob(
        job_id=job.id,
        queue=job.fields.queue,
        attempt=job.attempt,
        payload=job.payload,
        encoding=job.fields.encoding,
        priority=job.fields.priority,
        task=job.fields.task,
        metadata=job.fields.metadata,
        delivery=job.fields.delivery,
        errors=job.errors,
        crashes=job.crashes,
        tenant=job.fields.tenant,
        group=job.fields.group,
    )


def spread(items: Iterable[tuple[int, Iterable[tuple[int, int]]]]) -> Iterator[tuple[int, int]]:
    """Yield (job id, token) for each job that is named."""
    for token, ranges in items:
        for first, count in ranges:
            for job_id in range(first, first + count):
                yield job_id, token


def ids_of(command: c.Wait) -> list[int]:
    return [job_id for job_id, _ in spread([(0, command.ids)])]


def check_ranges(items: Iterable[Iterable[tuple[int, int]]]) -> None:
    ids = [job_id for ranges in items for job_id, _ in spread([(0, ranges)])]
    if len(set(ids)) < len(ids) or len(ids) > 10_000:
        raise Refused("invalid_argument")


def runs(verdicts: list[tuple[int, str]]) -> list[c.Verdict]:
    """Pack verdicts on single jobs into runs."""
    packed: list[c.Verdict] = []
    for job_id, code in verdicts:
        if packed and packed[-1][0] + packed[-1][1] == job_id and packed[-1][2] == code:
            packed[-1] = (packed[-1][0], packed[-1][1] + 1, code)
        else:
            packed.append((job_id, 1, code))
    return packed
