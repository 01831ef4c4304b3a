"""The engine and the naive queue, told the same, say the same: replies, order, tokens, and every job.

Clocks move and jump, turns hold several commands, leases wait, requests come twice, replies get lost, and the
daemon is killed and starts again on its log.
"""

from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jqd.core import commands as c
from jqd.core import dump, model, waiting
from jqd.core.changes import encode_part
from jqd.core.dump import Dump
from jqd.core.model import Caller, RetryPolicy
from jqd.errors import JqdError
from tests.support.core import Core, parts_of, restored_from
from tests.support.naive import NaiveQueue, Refused

QUEUES = ("a", "b", "c")
SESSIONS = (None, b"s" * 16, b"t" * 16, b"u" * 16)
TICKETS = ("one", "two", "three")
# Low enough to be met by some dozens of jobs. Not that of dead jobs: which of those that die in one ms goes first is
# nobody's promise.
LIMITS = {
    "FINISHED_COUNT_MAX": 5,
    "RESULTS_BYTES_MAX": 12,
    "SESSIONS_MAX": 2,
    "QUEUES_SET_MAX": 2,
    "ANSWERS_PER_SESSION_MAX": 3,
    "SCAN_JOBS_MAX": 12,
    "KEYS_MAX": 6,
    "WAIT_JOBS_MAX": 5,
    "WAITED_JOBS_MAX": 12,
}

FIXED = model.RetryPolicy(kind="fixed", base_ms=5_000)
queue = st.sampled_from(QUEUES)
picks = st.integers(0, 63)
some_ms = st.sampled_from([0, 1, 500, 999, 1_000, 1_001, 5_000, 29_999, 30_000, 60_000, 600_000, 3_600_000])
some_lease_ms = st.sampled_from([None, None, 1_000, 2_000, 30_000, 86_400_000])
policies = st.sampled_from(
    [
        RetryPolicy(),
        RetryPolicy(base_ms=333, factor_percent=150, cap_ms=1_000, jitter_percent=0),
        RetryPolicy(kind="linear", base_ms=700, cap_ms=1_000),
        RetryPolicy(kind="fixed", base_ms=50, jitter_percent=97),
        RetryPolicy(kind="list", delays_ms=(0, 5_000), jitter_percent=7),
    ]
)
no_policies = st.sampled_from(
    [
        RetryPolicy(base_ms=10_000, cap_ms=9_999),
        RetryPolicy(kind="list"),
        RetryPolicy(kind="fixed", cap_ms=1_000),
    ]
)
some_ttl_ms = st.sampled_from([0, 1, 1_000, 60_000, 3_600_000, 3_600_001])
varied = st.fixed_dictionaries(
    {},
    optional={
        "queue": queue,
        "priority": st.sampled_from([-1, 1, 32_767]),
        "max_retries": st.integers(0, 2),
        "max_crashes": st.integers(0, 2),
        "lease_ms": st.sampled_from([1_000, 5_000]),
        "delivery": st.sampled_from(["at_most_once", "at_least_once"]),
        "encoding": st.sampled_from(["raw", "json"]),
        "task": st.just("t"),
        "tenant": st.sampled_from(["default", "acme"]),
        "group": st.just("g"),
        "retry": policies,
        "expires_ms": st.sampled_from([1, 1_000, 40_000]),
        "result_ttl_ms": some_ttl_ms,
        "metadata": st.just({"k": "v"}),
    },
).map(lambda fields: {"queue": "a"} | fields)
# Keys: few, so that they meet; with all that may be said about them, and some that may not.
keyed = st.fixed_dictionaries(
    {"queue": st.sampled_from(["a", "b"])},
    optional={
        "tenant": st.sampled_from(["default", "acme"]),
        "dedupe_key": st.sampled_from(["k", "l"]),
        "dedupe": st.sampled_from(["existing", "reject", "replace", "debounce"]),
        "dedupe_until": st.sampled_from(["finished", "started"]),
        "dedupe_ttl_ms": st.sampled_from([1_000, 60_000]),
        "idempotency_key": st.sampled_from(["m", "n"]),
        "idempotency_ttl_ms": st.sampled_from([1_000, 600_000]),
        "priority": st.sampled_from([0, 5]),
        "delay_ms": st.sampled_from([0, 1_000]),
        "metadata": st.just({"k": "v"}),
        "result_ttl_ms": some_ttl_ms,
    },
)
some_payload = st.sampled_from([b"", b"x"])
# Filters: comparisons, joined in ways that group differently.
comparison = st.sampled_from(
    [
        *(
            "state = dead",
            "state != ready",
            "state in (delayed, ready, done)",
            "reason = killed",
            "queue = a",
        ),
        *(
            "queue in (a, c)",
            "queue contains B",
            "tenant = default",
            "group = ''",
            "group != g",
            "task = t",
            "task = ''",
        ),
        *("metadata.k = v", "metadata.k != v", "error contains OOPS", "error contains ran", "error = ''"),
        *("priority > 0", "priority in (-1, 1)", "attempt >= 2", "errors < 1", "crashes = 1", "crashes != 0"),
        *("age > 1s", "age <= 30s", "state_age < 1m", "state_age >= 500ms"),
    ]
)
conditions = st.recursive(
    comparison,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join)
        | inner.map("not ({})".format)
        | inner.map("({})".format)
    ),
    max_leaves=4,
)
# Half of all jobs are alike, so that neighbours are.
options = st.just({"queue": "a"}) | varied


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core = Core()
        self.naive = NaiveQueue()
        self.naive.start(self.core.now)
        self.connections: dict[str, Caller] = {}
        self.sent: list[tuple[bytes, int, c.Command[Any]]] = []  # what may be sent again
        self.tokens: list[int] = [1]
        self.delivered: dict[int, int] = {}  # job -> its newest token
        self.noted_count = 0  # answers to parked leases of this turn that note() has seen
        self.request_id = 0
        self.dump: Dump | None = None
        self.dump_digest = ""
        self.parts: list[bytes] = []
        self.snapshot: list[bytes] | None = None  # the newest whole one
        self.connect("one", SESSIONS[1], "box")

    # --- saying the same to both --------------------------------------------------------------

    def say(self, command: c.Command[Any], ticket: str = "local", request_id: int | None = None) -> Any:
        again = request_id is not None
        if request_id is None:
            request_id = self.request_id = self.request_id + 1
        caller = self.connections.get(ticket, model.LOCAL)
        if caller.session is not None and command.writes and not again:
            self.sent.append((caller.session, request_id, command))
        try:
            expected: Any = self.naive.execute(command, caller, request_id, ticket, self.core.now)
        except Refused as refused:
            expected = refused.code
        try:
            got = self.core.execute(command, caller, request_id=request_id, ticket=ticket)
        except JqdError as error:
            got = error.code
        self.note_parked(self.leased_of(self.core.engine.outbox))
        if again and isinstance(got, c.Leased):
            got.jobs.sort(key=lambda job: job.job_id)  # a grant of which a part was extended has no order
            expected.jobs.sort(key=lambda job: job.job_id)
        elif isinstance(got, c.Leased):
            self.note(got)
        if isinstance(got, c.QueueDetails):
            got.waits = got.runs = []  # measures, no facts
        infos = (
            got.queues
            if isinstance(got, c.QueueList)
            else [got.info]
            if isinstance(got, c.QueueDetails)
            else []
        )
        for info in infos:
            assert info.memory_bytes > 0
            info.memory_bytes = 0  # an estimate; check() recounts it
        self.settle_jitter()
        assert got == expected, f"got {got}, expected {expected}"
        return got

    def note(self, leased: c.Leased) -> None:
        """Check what holds for every grant, whatever the oracle says."""
        if leased.jobs:
            assert leased.token > max(self.tokens)
            self.tokens.append(leased.token)
        for job in leased.jobs:
            assert self.delivered.get(job.job_id, 0) < leased.token
            self.delivered[job.job_id] = leased.token

    @staticmethod
    def leased_of(answers: list[Any]) -> list[c.Leased]:
        return [answer for _, _, answer in answers if not isinstance(answer, c.Waited)]

    def note_parked(self, answers: list[Any]) -> None:
        for leased in answers[self.noted_count :]:
            self.note(leased)
        self.noted_count = len(answers)

    def settle_jitter(self) -> None:
        for job_id in self.naive.unsettled():
            job = self.core.job(job_id)
            assert job.due is not None
            self.naive.adopt(job_id, job.due.ms)

    def end_turn(self) -> None:
        self.naive.turn(self.core.now)
        self.core.answers.clear()
        self.core.settle()
        self.settle_jitter()
        self.note_parked(self.leased_of(self.core.answers))
        self.noted_count = 0
        for is_wait in (False, True):
            got = [one for one in self.core.answers if isinstance(one[2], c.Waited) is is_wait]
            expected = [one for one in self.naive.outbox if isinstance(one[2], c.Waited) is is_wait]
            if is_wait:  # which of those that are answered in one turn comes first is nobody's promise
                got.sort(key=lambda one: one[1])
                expected.sort(key=lambda one: one[1])
            assert got == expected, f"got {got}, expected {expected}"
        self.naive.outbox.clear()

    def token(self, pick: int) -> int:
        """One of the newest tokens, or a stale one."""
        return self.tokens[-1 - pick % len(self.tokens)]

    def ids_under(self, token: int, pick: int) -> list[tuple[int, int]]:
        """The jobs of a token, a part of them, or some others."""
        mine = [job.id for job in self.naive.sorted() if job.token == token]
        if pick % 4 == 0 or not mine:
            return [(pick % self.naive.next_id + 1, pick % 3 + 1)]
        return c.to_ranges(mine if pick % 4 < 3 else mine[: len(mine) // 2 + 1])

    # --- rules --------------------------------------------------------------------------------

    tickets = st.sampled_from(("one", "one", "two", "three", "local"))

    @rule(fields=options, payload=st.binary(max_size=3), ticket=tickets)
    def submit(self, fields, payload, ticket):
        self.say(c.Submit(payload=payload, **fields), ticket)

    @rule(fields=keyed, payload=some_payload, ticket=tickets)
    def submit_with_a_key(self, fields, payload, ticket):
        self.say(c.Submit(payload=payload, **fields), ticket)

    @rule(
        groups=st.lists(
            st.tuples(keyed | options, st.lists(some_payload, min_size=1, max_size=2)), min_size=1, max_size=3
        ),
        ticket=tickets,
    )
    def submit_many_with_keys(self, groups, ticket):
        made = [c.SubmitGroup(payloads=payloads, **fields) for fields, payloads in groups]
        self.say(c.SubmitMany(groups=made), ticket)

    @rule(fields=options, delay_ms=some_ms, ticket=tickets)
    def submit_later(self, fields, delay_ms, ticket):
        self.say(c.Submit(delay_ms=delay_ms, **fields), ticket)

    @rule(fields=options, in_ms=st.integers(-10, 10_000))
    def submit_with_a_date(self, fields, in_ms):
        self.say(c.Submit(run_at_ms=self.core.wall_ms + in_ms, **fields))

    @rule(fields=options, in_ms=st.integers(-10, 10_000), delay_ms=st.sampled_from([None, 0, 5_000]))
    def submit_until_a_date(self, fields, in_ms, delay_ms):
        self.say(c.Submit(expires_at_ms=self.core.wall_ms + in_ms, delay_ms=delay_ms, **fields))

    @rule(
        fields=st.sampled_from([{"queue": "/"}, {"group": "g/"}, {"delay_ms": 1, "run_at_ms": 1}])
        | no_policies.map(lambda policy: {"retry": policy})
    )
    def submit_nonsense(self, fields):
        self.say(c.Submit(**fields), "one")

    @rule(
        groups=st.lists(st.tuples(options, st.integers(1, 6), some_ms), min_size=1, max_size=3),
        ticket=tickets,
    )
    def submit_many(self, groups, ticket):
        made = [c.SubmitGroup(payloads=[b"p"] * count, delay_ms=ms, **fields) for fields, count, ms in groups]
        self.say(c.SubmitMany(groups=made), ticket)

    @rule(
        jobs=st.lists(
            st.tuples(
                options
                | keyed
                | st.sampled_from([{"queue": "/"}, {"group": "g/"}, {"queue": "a", "delay_ms": 700}]),
                st.binary(max_size=3),
            ),
            min_size=2,
            max_size=6,
        ),
        again=st.lists(picks, max_size=2),
        ticket=tickets,
    )
    def submit_a_run(self, jobs, again, ticket):
        """Submits that came together, some of which may have come before."""
        caller = self.connections.get(ticket, model.LOCAL)
        run = []
        for fields, payload in jobs:
            self.request_id += 1
            run.append((self.request_id, c.Submit(payload=payload, **fields)))
        old = [
            (request_id, command)
            for session, request_id, command in [*self.sent, *((caller.session, *one) for one in run)]
            if session == caller.session and isinstance(command, c.Submit)
        ]
        if caller.session is not None:
            self.sent += [(caller.session, *one) for one in run]
            run += [old[-1 - pick % len(old)] for pick in again]
        expected: list[Any] = []
        for request_id, command in run:
            try:
                expected.append(self.naive.execute(command, caller, request_id, ticket, self.core.now))
            except Refused as refused:
                expected.append(refused.code)
        got = self.core.submit_run(run, caller)
        assert got == expected, f"got {got}, expected {expected}"

    lease_args: ClassVar[dict[str, Any]] = {
        "queues": st.lists(queue, min_size=1, max_size=3),
        "count": st.sampled_from([1, 1, 2, 5, 100]),
        "lease_ms": some_lease_ms,
        "wait_ms": st.sampled_from([0, 0, 1, 2_000, 30_000]),
        "ticket": tickets,
    }

    @rule(**lease_args)
    def lease(self, queues, count, lease_ms, wait_ms, ticket):
        self.say(c.Lease(queues=queues, count=count, lease_ms=lease_ms, wait_ms=wait_ms), ticket)

    @rule(**lease_args)
    def lease_more(self, queues, count, lease_ms, wait_ms, ticket):
        self.say(c.Lease(queues=queues, count=count, lease_ms=lease_ms, wait_ms=wait_ms), ticket)

    @rule(
        weighted=st.lists(st.tuples(queue, st.integers(1, 4)), min_size=1, max_size=4),
        count=lease_args["count"],
        wait_ms=lease_args["wait_ms"],
        ticket=tickets,
    )
    def lease_by_weight(self, weighted, count, wait_ms, ticket):
        queues, weights = map(list, zip(*weighted, strict=True))
        self.say(c.Lease(queues=queues, weights=weights, count=count, wait_ms=wait_ms), ticket)

    @rule(ticket=tickets)
    def lease_nonsense(self, ticket):
        self.say(c.Lease(queues=["a", "b"], weights=[1]), ticket)
        self.say(c.Lease(queues=["a", "/"]), ticket)

    @rule(
        pick=picks,
        part=picks,
        lease_ms=some_lease_ms,
        progress=st.sampled_from(
            [(None, ""), (None, ""), (0, ""), (None, "half"), (100, "all"), (1, "ä" * 129)]
        ),
        ticket=tickets,
    )
    def extend(self, pick, part, lease_ms, progress, ticket):
        token = self.token(pick)
        percent, text = progress
        command = c.Extend(
            items=[(token, self.ids_under(token, part))],
            lease_ms=lease_ms,
            progress_percent=percent,
            progress_text=text,
        )
        self.say(command, ticket)

    @rule(
        first=picks,
        counts=st.lists(st.integers(1, 3), min_size=1, max_size=2),
        wait_ms=st.sampled_from([0, 1, 2_000, 30_000, 30_000]),
        all=st.booleans(),
        ticket=tickets,
    )
    def wait(self, first, counts, wait_ms, all, ticket):
        first = max(1, self.naive.next_id - 1 - first % 12)
        ids = [(first + 4 * index, count) for index, count in enumerate(counts)]
        self.say(c.Wait(ids=ids, wait_ms=wait_ms, all=all), ticket)

    @rule(
        items=st.lists(
            st.tuples(picks, picks, st.sampled_from([None, b"", b"res", b"longer"])), min_size=1, max_size=2
        ),
        error=st.sampled_from([None, None, "no"]),
        ticket=tickets,
    )
    def ack(self, items, error, ticket):
        made = []
        for pick, part, result in items:
            token = self.token(pick)
            made.append((token, self.ids_under(token, part), result))
        self.say(c.Ack(items=made, encoding="text", result_error=error), ticket)

    @rule(
        items=st.lists(st.tuples(picks, picks), min_size=1, max_size=2),
        retry_in_ms=st.sampled_from([None, None, 0, 700]),
        retry=st.none() | st.none() | policies | no_policies,
        dead=st.sampled_from([False, False, False, True]),
        ticket=tickets,
    )
    def fail(self, items, retry_in_ms, retry, dead, ticket):
        made = [(self.token(pick), self.ids_under(self.token(pick), part)) for pick, part in items]
        self.say(c.Fail(items=made, error="oops", retry_in_ms=retry_in_ms, retry=retry, dead=dead), ticket)

    @rule(pick=picks, part=picks, delay_ms=some_ms, ticket=tickets)
    def release(self, pick, part, delay_ms, ticket):
        token = self.token(pick)
        self.say(c.Release(items=[(token, self.ids_under(token, part))], delay_ms=delay_ms), ticket)

    @precondition(lambda self: self.naive.in_state("leased"))
    @rule(pick=picks, old=picks, verb=st.sampled_from(["ack", "fail", "extend", "release"]))
    def say_something_of_a_held_job(self, pick, old, verb):
        """By who holds it, or by a worker who held it, or another one, before."""
        held = self.naive.in_state("leased")
        job = held[pick % len(held)]
        token = job.token if old % 2 else self.token(old // 2)
        ranges = [(job.id, 1)]
        match verb:
            case "ack":
                self.say(c.Ack(items=[(token, ranges, None)]))
            case "fail":
                self.say(c.Fail(items=[(token, ranges)], retry_in_ms=0 if old % 3 else None))
            case "extend":
                self.say(c.Extend(items=[(token, ranges)]))
            case _:
                self.say(c.Release(items=[(token, ranges)]))

    @rule(
        pick=picks,
        wanted=st.fixed_dictionaries(
            {},
            optional={
                "priority": st.sampled_from([-1, 0, 2]),
                "delay_ms": some_ms,
                "payload": st.binary(max_size=3),
                "encoding": st.sampled_from(["raw", "json"]),
                "metadata": st.sampled_from([{}, {"k": "w"}]),
            },
        ),
        in_ms=st.none() | st.none() | st.integers(-10, 10_000),
        ticket=tickets,
    )
    def update(self, pick, wanted, in_ms, ticket):
        waiting = [job.id for job in self.naive.sorted() if job.state in ("delayed", "ready")]
        job_id = waiting[pick % len(waiting)] if waiting and pick % 5 else pick % self.naive.next_id + 1
        run_at_ms = None if in_ms is None else self.core.wall_ms + in_ms
        self.say(c.Update(job_id=job_id, run_at_ms=run_at_ms, **wanted), ticket)

    @rule()
    def requeue_the_dead(self):
        self.say(c.Requeue(filter=c.JobFilter(state="dead")))

    @rule(pick=picks)
    def lose_the_reply_of_a_lease(self, pick):
        self.naive.take_back(self.token(pick), self.core.now)
        self.core.engine.take_back(self.token(pick), self.core.now)

    kinds = st.sampled_from([c.Cancel, c.Requeue, c.Purge])

    @rule(
        kind=kinds,
        first=picks,
        count=st.integers(1, 9),
        dry_run=st.sampled_from([False, False, True]),
        ticket=tickets,
    )
    def sweep_ids(self, kind, first, count, dry_run, ticket):
        first = first % self.naive.next_id + 1
        self.say(kind(ids=[(first, count), (first + count + 3, 1)], dry_run=dry_run), ticket)

    @rule(pick=picks, count=st.integers(1, 4), dry_run=st.sampled_from([False, False, True]), ticket=tickets)
    def cancel_running_ones(self, pick, count, dry_run, ticket):
        held = [job.id for job in self.naive.in_state("leased")]
        first = held[pick % len(held)] if held and pick % 5 else pick % self.naive.next_id + 1
        self.say(c.Cancel(ids=[(first, count)], running=True, dry_run=dry_run), ticket)

    @rule(
        name=st.sampled_from([None, *QUEUES]),
        state=st.sampled_from([None, "leased"]),
        limit=st.integers(1, 5),
    )
    def cancel_running_ones_by_filter(self, name, state, limit):
        self.say(c.Cancel(filter=c.JobFilter(queue=name, state=state), running=True, limit=limit))

    @rule(fields=options, ready=st.integers(1, 3), delayed=st.integers(1, 3))
    def submit_neighbours(self, fields, ready, delayed):
        groups = [
            c.SubmitGroup(payloads=[b""] * ready, **fields),
            c.SubmitGroup(payloads=[b""] * delayed, delay_ms=5_000, **fields),
        ]
        self.say(c.SubmitMany(groups=groups), "one")

    @rule(
        kind=kinds,
        name=st.sampled_from([None, *QUEUES]),
        state=st.sampled_from([None, "delayed", "ready", "dead", "done"]),
        cursor=st.integers(0, 20),
        limit=st.integers(1, 12),
        dry_run=st.booleans(),
        where=st.none() | conditions,
        ticket=tickets,
    )
    def sweep_by_filter(self, kind, name, state, cursor, limit, dry_run, where, ticket):
        wanted = c.JobFilter(queue=name, state=state, where=where)
        self.say(kind(filter=wanted, cursor=cursor, limit=limit, dry_run=dry_run), ticket)

    @rule(
        name=queue,
        said=st.fixed_dictionaries(
            {},
            optional={
                "lease_ms": st.sampled_from([1_000, 5_000]),
                "max_retries": st.integers(0, 2),
                "max_crashes": st.integers(0, 2),
                "retry": st.sampled_from([FIXED, model.RetryPolicy(kind="list")]),
                "retention_ms": st.sampled_from([0, 60_000]),
                "dead_retention_ms": st.sampled_from([1_000, 600_000]),
                "length_max": st.sampled_from([0, 1, 4]),
                "reset": st.booleans(),
            },
        ),
        ticket=tickets,
    )
    def set_a_queue(self, name, said, ticket):
        self.say(c.SetQueue(queue=name, **said), ticket)

    @rule(name=queue, kind=st.sampled_from([c.Pause, c.Resume]), ticket=tickets)
    def pause_or_resume(self, name, kind, ticket):
        self.say(kind(queue=name), ticket)

    @rule()
    def set_nonsense(self):
        self.say(c.SetQueue(queue="/"))
        self.say(c.Pause(queue="/"))

    @rule(
        name=st.sampled_from([None, *QUEUES]),
        state=st.sampled_from([None, "ready"]),
        limit=st.integers(1, 20),
        where=st.none() | conditions,
    )
    def list_a_page(self, name, state, limit, where):
        self.say(c.ListJobs(filter=c.JobFilter(queue=name, state=state, where=where), limit=limit))

    # --- snapshots ----------------------------------------------------------------------------

    @precondition(lambda self: self.dump is None)
    @rule()
    def begin_a_dump(self):
        self.end_turn()
        self.dump = self.core.engine.begin_dump()
        self.dump_digest = self.core.state.digest()
        self.parts = []

    @precondition(lambda self: self.dump is not None)
    @rule(slices=st.integers(1, 3))
    def dump_on(self, slices):
        for _ in range(slices):
            images = self.dump.take_slice()
            if not images:
                self.finish_dump()
                return
            self.parts.append(encode_part(images))

    @precondition(lambda self: self.dump is not None)
    @rule()
    def finish_dump(self):
        """What came out is the state of when it began, and with the log since then the state of now."""
        self.parts += parts_of(self.dump)
        self.dump = None
        self.end_turn()
        then = restored_from(self.parts)
        then.check()
        assert then.digest() == self.dump_digest
        assert restored_from(self.parts, self.core.log).digest() == self.core.state.digest()
        self.snapshot = self.parts

    # --- connections --------------------------------------------------------------------------

    @rule(
        ticket=st.sampled_from(TICKETS),
        session=st.sampled_from(SESSIONS),
        worker=st.sampled_from(["", "box"]),
        on_disconnect=st.sampled_from(["keep", "release"]),
    )
    def connect(self, ticket, session, worker, on_disconnect="release"):
        if ticket in self.connections:
            self.disconnect(ticket, lost=True)
        hello = c.Hello(version=1, session=session, worker=worker, on_disconnect=on_disconnect)
        try:
            self.naive.hello(session, on_disconnect)
        except Refused as refused:
            with pytest.raises(JqdError) as error:
                self.core.engine.hello(hello, self.core.now, ticket)
            assert error.value.code == refused.code
        else:
            self.connections[ticket], _ = self.core.engine.hello(hello, self.core.now, ticket)

    @rule(ticket=st.sampled_from(TICKETS), lost=st.sampled_from([True, True, False]))
    def disconnect(self, ticket, lost):
        if ticket in self.connections:
            caller = self.connections.pop(ticket)
            self.naive.disconnect(caller, ticket, self.core.now, lost=lost)
            self.core.engine.disconnect(caller, ticket, self.core.now, lost=lost)

    @precondition(lambda self: self.sent)
    @rule(pick=picks, ticket=st.sampled_from(TICKETS))
    def send_again(self, pick, ticket):
        session, request_id, command = self.sent[-1 - pick % min(len(self.sent), 8)]
        if self.connections.get(ticket, model.LOCAL).session != session:
            self.connect(ticket, session, "")
        if ticket in self.connections:
            self.say(command, ticket, request_id)

    # --- time ---------------------------------------------------------------------------------

    @rule(ms=some_ms)
    def pass_time(self, ms):
        self.end_turn()
        self.core.move(ms)

    @rule(off_ms=st.sampled_from([-1, 0, 0, 1]))
    def pass_time_to_the_next_deadline(self, off_ms):
        self.end_turn()
        due_ms = self.core.engine.next_deadline(self.core.now)
        if due_ms is not None:
            self.core.move(max(0, due_ms + off_ms - self.core.engine_ms))

    @rule(ms=some_ms)
    def pass_time_with_a_turn(self, ms):
        self.end_turn()
        self.core.move(ms)
        self.end_turn()

    @rule(ms=st.sampled_from([0, 5_000]), jump_ms=st.sampled_from([-7_200_000, -1_000, 1_000, 7_200_000]))
    def jump_the_wall_clock(self, ms, jump_ms):
        self.end_turn()
        self.core.move(ms, wall_ms=jump_ms)

    @rule()
    def pass_a_month(self):
        self.end_turn()
        self.core.move(30 * model.DAY_MS)
        self.end_turn()

    @rule(down_ms=st.sampled_from([0, 1_000, 100_000, -50_000]), by_snapshot=st.booleans())
    def kill_and_start(self, down_ms, by_snapshot):
        self.end_turn()
        self.core.check()
        self.dump = None
        self.core.restart(wall_ms=down_ms, parts=self.snapshot if by_snapshot else None)
        self.naive.start(self.core.now)
        self.connections.clear()
        self.connect("one", SESSIONS[1], "box")

    # --- what always holds --------------------------------------------------------------------

    @invariant()
    def every_job_is_as_expected(self):
        self.core.state.check()
        cursor, ids = 0, []
        while cursor is not None:
            page = self.say(c.ListJobs(cursor=cursor, limit=1_000))
            ids += [job.job_id for job in page.jobs]
            cursor = page.cursor
        assert ids == sorted(self.naive.jobs)
        for job_id in ids:
            assert self.core.job(job_id).payload == self.naive.jobs[job_id].payload
        self.say(c.Queues())
        for name in QUEUES:
            self.say(c.GetQueue(queue=name))
        lanes = {name: [job.id for job in self.naive.waiting_for(c.Lease(queues=[name]))] for name in QUEUES}
        assert {name: self.core.state.ready_ids(name, 1_000) for name in QUEUES} == lanes

    @invariant()
    def counts_add_up(self):
        stats = self.core.execute(c.Stats())
        assert stats.jobs == {state: len(self.naive.in_state(state)) for state in stats.jobs}
        assert stats.parked_count == len(self.naive.parked)
        assert stats.waiting_count == len(self.naive.waits)
        assert stats.session_count == len(self.naive.sessions)
        assert stats.key_count == len(self.naive.keys)
        assert stats.lease_count == len({job.token for job in self.naive.in_state("leased")})

    def teardown(self):
        self.end_turn()
        self.core.check()


@pytest.mark.timeout(600)  # hundreds of runs of dozens of steps, or thousands under the long profile
def test_engine_says_what_the_naive_queue_says(monkeypatch):
    monkeypatch.setattr(dump, "SLICE_JOBS", 2)
    monkeypatch.setattr(dump, "SLICE_SESSIONS", 1)
    monkeypatch.setattr(waiting, "_LOOKS_PER_TURN", 2)
    for name, value in LIMITS.items():
        monkeypatch.setattr(model, name, value)
    examples = settings().max_examples
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=max(1, examples * 3 // 2), stateful_step_count=60)
    )
