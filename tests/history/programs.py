"""What clients do in a history: programs that say what to ask next, whoever asks it.

    program = anybody(seed, name)
    step = next(program)                    an Ask: a verb of the client with its arguments
    step = program.send(outcome)            the reply, or the exception that the client raised

A program is a generator, so the same ones run over the blocking client in threads and over the asyncio client in
tasks (clients.py). Whoever drives one says `outcome=None` where it is to come to an end.

Knows:         verbs of the client, and what keeps a daemon busy in every respect.
Must not know: which client asks, connections, what is written down.
"""

import random
from collections import deque
from collections.abc import Generator
from typing import Any, Final, NamedTuple

from jqd.client.requests import Held, HeldJob
from jqd.core.commands import JobList, Submitted, SubmittedMany
from jqd.errors import JqdError

QUEUES: Final = ("q0", "q1", "q2")
# Little goes into the last one, and as many ask for it: most leases find nothing there, and may be told so twice.
SHARES: Final = (10, 10, 1)
# Jobs that one actor may hold over other requests: others have to have something to do.
HELD_MAX: Final = 30
# Ids near the newest one: jobs that are being submitted, and some that do not exist yet.
NEAR: Final = (-60, 20)
LISTED_MAX: Final = 10


class Ask(NamedTuple):
    verb: str
    args: tuple[Any, ...]
    options: dict[str, Any]


Outcome = object
Program = Generator[Ask, Outcome, None]


def ask(verb: str, *args: Any, **options: Any) -> Ask:
    return Ask(verb, args, options)


class Anybody:
    """Somebody who submits, works, looks and manages; how much of what is drawn once, so that no two are alike.

    Args:
        lease_s_max: leases are at most that long: somebody who is killed keeps them.
    """

    def __init__(self, seed: str, name: str, lease_s_max: float) -> None:
        self.random = random.Random(seed)
        self.name = name
        self.lease_s_max = lease_s_max
        self.submits = 0
        self.newest = 1
        self.held: deque[HeldJob] = deque()
        self.ended: deque[HeldJob] = deque(maxlen=10)
        self.mine: deque[int] = deque(maxlen=20)
        kinds = (self.submit, self.submit_many, self.lease, self.end, self.stale, self.look, self.manage)
        usual = (30, 2, 24, 34, 2, 6, 2)
        self.kinds = kinds
        self.weights = [weight * self.random.uniform(0.3, 1.7) for weight in usual]

    def run(self) -> Program:
        outcome: Outcome = self
        while outcome is not None:
            (kind,) = self.random.choices(self.kinds, self.weights)
            outcome = yield from kind()
        while self.held:
            yield ask("ack", self.held.popleft())

    def timeout(self) -> dict[str, Any]:
        """Some are in a hurry: what was under way at a kill is then unknown to them."""
        return {"timeout": self.random.choice((0.05, 0.2))} if self.random.random() < 0.15 else {}

    # --- producer -------------------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        self.submits += 1
        chance = self.random.random
        options: dict[str, Any] = {"metadata": {"marker": f"{self.name}-{self.submits}"}, **self.timeout()}
        if chance() < 0.3:
            options["priority"] = self.random.randrange(-2, 3)
        if chance() < 0.08:
            options["delay"] = self.random.choice(("20ms", "300ms", "1s"))
        if chance() < 0.1:
            options["max_retries"] = self.random.randrange(3)
        if chance() < 0.1:
            options["max_crashes"] = self.random.randrange(3)
        if chance() < 0.05:
            options |= {"delivery": "at_most_once", "max_retries": 0}
        options["lease"] = self.random.choice(
            (1.5, 4, 4, 4, 4)
        )  # what is left at the end shall not take long
        return options

    def submit(self) -> Generator[Ask, Outcome, Outcome]:
        payload = self.random.randbytes(self.random.choice((0, 20, 20, 300, 2_000)))
        outcome = yield ask("submit", self.queue(), payload, **self.options())
        if isinstance(outcome, Submitted):
            self.knows(outcome.job_id)
        return outcome

    def submit_many(self) -> Generator[Ask, Outcome, Outcome]:
        payloads = [b"%d" % number for number in range(self.random.choice((2, 5, 20)))]
        outcome = yield ask("submit_many", self.queue(), payloads, **self.options())
        if isinstance(outcome, SubmittedMany):
            self.knows(outcome.jobs[-1][0])
        return outcome

    def queue(self) -> str:
        return self.random.choices(QUEUES, SHARES)[0]

    def knows(self, job_id: int) -> None:
        self.newest = max(self.newest, job_id)
        self.mine.append(job_id)

    # --- worker ---------------------------------------------------------------------------------

    def lease(self) -> Generator[Ask, Outcome, Outcome]:
        if len(self.held) >= HELD_MAX:
            return (yield from self.end())
        queues = self.random.sample(QUEUES, self.random.choice((1, 1, 2, 3)))
        options: dict[str, Any] = {"count": self.random.choice((1, 1, 1, 2, 5, 20)), **self.timeout()}
        if self.random.random() < 0.9:
            options["lease"] = min(self.lease_s_max, self.random.choice((1, 2, 5, 5, 5)))
        if self.random.random() < 0.1:
            options["wait"] = "100ms"
        outcome = yield ask("lease", queues, **options)
        if isinstance(outcome, Held):
            self.held += outcome.jobs
            for job in outcome.jobs:
                self.newest = max(self.newest, job.job_id)
        return outcome

    def end(self) -> Generator[Ask, Outcome, Outcome]:
        """Finish something that is held; or hold it on; or forget it."""
        if not self.held:
            return (yield from self.lease())
        job = self.held.popleft()
        chance = self.random.random()
        if chance < 0.08:
            self.held.append(job)
            return (yield ask("extend", job, lease=min(self.lease_s_max, 3), **self.timeout()))
        if chance < 0.1:
            return self  # forgotten: its lease runs out
        self.ended.append(job)
        if chance < 0.25:
            retry = self.random.choice(({}, {"retry_in": 0}, {"retry_in": "50ms"}, {"dead": True}))
            return (yield ask("fail", job, error="it did not work", **retry, **self.timeout()))
        if chance < 0.32:
            delay = self.random.choice((0, 0, "100ms"))
            return (yield ask("release", job, delay=delay, **self.timeout()))
        if chance < 0.34:
            return (yield ask("ack", job, error="it makes no sense", **self.timeout()))
        if chance < 0.5 and self.held:
            both = [job, self.held.popleft()]
            return (yield ask("ack_many", both, results=[b"both", None], **self.timeout()))
        result = self.random.choice((None, None, b"result"))
        return (yield ask("ack", job, result=result, **self.timeout()))

    def stale(self) -> Generator[Ask, Outcome, Outcome]:
        """Come late."""
        if not self.ended:
            return (yield from self.submit())
        job = self.random.choice(self.ended)
        return (yield ask(self.random.choice(("ack", "extend", "fail", "release")), job))

    # --- onlookers and operators ------------------------------------------------------------------

    def look(self) -> Generator[Ask, Outcome, Outcome]:
        near = max(1, self.newest + self.random.randrange(*NEAR))
        chance = self.random.random()
        if chance < 0.6:
            return (yield ask("get", near, **self.timeout()))
        if chance < 0.8:
            return (yield ask("queues"))
        where: dict[str, Any] = {"cursor": near, "limit": LISTED_MAX}
        if chance < 0.9:
            where["queue"] = self.random.choice(QUEUES)
        if chance < 0.85:
            where["state"] = self.random.choice(("ready", "done", "dead"))
        outcome = yield ask("list", **where)
        if isinstance(outcome, JobList) and outcome.jobs:
            self.newest = max(self.newest, outcome.jobs[-1].job_id)
        return outcome

    def manage(self) -> Generator[Ask, Outcome, Outcome]:
        near = max(1, self.newest + self.random.randrange(*NEAR))
        chance = self.random.random()
        if chance < 0.4 and self.mine:
            return (yield ask("cancel", self.mine.pop()))
        if chance < 0.6:
            return (yield ask("requeue", [near, near + 1, near + 2]))
        if chance < 0.65:
            verb = self.random.choice(("cancel", "requeue"))
            return (yield ask(verb, queue=self.random.choice(QUEUES), cursor=near, limit=2))
        return (yield ask("requeue", near, **self.timeout()))


def anybody(seed: str, name: str, lease_s_max: float) -> Program:
    return Anybody(seed, name, lease_s_max).run()


def drain() -> Program:
    """Work everything off, and list it: the last program of a run, alone with the daemon."""
    while True:
        counts = yield ask("queues")
        waits = [queue for queue in counts.queues if queue.ready or queue.delayed or queue.leased]  # type: ignore[attr-defined]
        if not waits:
            break
        held = yield ask("lease", [queue.queue for queue in waits], count=500, lease=20, wait="500ms")
        if isinstance(held, Held) and held.jobs:
            yield ask("ack_many", held.jobs)
    cursor: int | None = 0
    while cursor is not None:
        page = yield ask("list", cursor=cursor, limit=500)
        cursor = page.cursor  # type: ignore[attr-defined]


def code_of(error: JqdError) -> str:
    """Return what a history says of an exception: its code, and `?` where the outcome is unknown."""
    return f"{error.code}?" if getattr(error, "outcome_unknown", False) else error.code
