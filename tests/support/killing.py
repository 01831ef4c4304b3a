"""Clients that ask a daemon for everything while it dies again and again, and the ledger of what it said.

    loop = KillLoop(data, seed, producers=3, workers=4, readers=1)
    with loop:                          the daemon serves, the clients ask
        loop.wait_for_work(100)         until so many more requests were answered
        loop.kill()
        loop.start_daemon()             looks at everything before the clients do
        loop.end()                      every request is answered, all jobs are worked off

Each client is a thread with a session of its own. Whatever is under way at a kill is sent again under the same
request ids, as the SDK does, so that in the end every request has one outcome. They cut their own connections
too. Workers hold leases over the kills and use them afterwards.
"""

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.support.daemon import Daemon
from tests.support.ledger import Ledger, payload_of
from tests.support.wire import PATIENCE_S, Answer, Wire

Finish = Callable[[Answer, int], None]


class Client(threading.Thread):
    """One client process: a session, its connections one after the other, and what is not answered yet."""

    def __init__(self, loop: "KillLoop", number: int) -> None:
        super().__init__(name=f"{type(self).__name__}-{number}", daemon=True)
        self.loop = loop
        self.ledger = loop.ledger
        self.random = random.Random(f"{loop.seed}-{self.name}")
        self.session = random.Random(f"{loop.seed}-session-{self.name}").randbytes(16)
        self.next_id = 1
        self.unanswered: dict[int, tuple[str, dict[str, Any], Finish, int]] = {}  # by request id, in order
        self.crash: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.loop.over and (self.loop.running or self.unanswered):
                if not self.loop.gate.wait(PATIENCE_S):
                    raise AssertionError("the daemon did not come back")
                with contextlib.suppress(OSError, EOFError):  # killed, or cut:
                    self.converse()  # the next connection sends again what has no answer
        except BaseException as error:
            self.crash = error
            self.ledger.fault(f"{self.name}: {error!r}")

    def converse(self) -> None:
        again = list(self.unanswered)
        with Wire.open(self.loop.address) as wire:
            hello_id = self.take_id()
            wire.send(hello_id, "hello", {"version": 1, "session": self.session, "worker": self.name})
            welcome = wire.receive()
            if welcome.status == "draining":
                return
            assert welcome.status == "ok", welcome
            for request_id in again:
                verb, args, _, _ = self.unanswered[request_id]
                wire.send(request_id, verb, args)
            self.collect(wire, again=True)
            while self.loop.running and self.loop.gate.is_set():
                self.act()
                if not self.unanswered:
                    continue
                for request_id, (verb, args, _, _) in list(self.unanswered.items()):
                    wire.send(request_id, verb, args)
                if self.random.random() < 0.01:
                    self.ledger.mark("connection cut by the client")
                    wire.cut()
                    return
                self.collect(wire)

    def collect(self, wire: Wire, *, again: bool = False) -> None:
        """Read all answers. Requests that a stopping daemon did not take are for the next one."""
        refused = 0
        while len(self.unanswered) > refused:
            answer = wire.receive()
            told = self.ledger.tick()
            if answer.status == "draining":
                refused += 1
                self.ledger.mark("not taken by a stopping daemon")
                continue
            verb, _, finish, _ = self.unanswered.pop(answer.request_id)
            if again:
                kind = verb if verb in ("submit", "lease") else "ending"
                self.ledger.mark(f"{kind} sent again")
            finish(answer, told)
            self.ledger.answered_one()
        if refused:
            raise EOFError("the daemon stops")

    def take_id(self) -> int:
        self.next_id += 1
        return self.next_id

    def ask(self, verb: str, finish: Finish, **args: Any) -> None:
        """Line up one request; `finish` gets its answer, on whichever connection it comes."""
        self.unanswered[self.take_id()] = (verb, args, finish, self.ledger.tick())

    def act(self) -> None:
        """Line up some requests."""
        raise NotImplementedError


class Producer(Client):
    made = 0

    def act(self) -> None:
        for _ in range(self.random.randrange(1, 8)):
            if self.random.random() < 0.2:
                self.submit_many(self.random.randrange(1, 6))
            else:
                self.submit()

    def marker(self) -> str:
        self.made += 1
        marker = f"{self.name}-{self.made}+{self.loop.fill_bytes}"
        self.ledger.submitting([marker])
        return marker

    def submit(self) -> None:
        marker = self.marker()

        def finish(answer: Answer, told: int) -> None:
            assert answer.status == "ok", answer
            self.ledger.submitted(marker, answer.body["job_id"])

        self.ask("submit", finish, payload=payload_of(marker), metadata={"marker": marker})

    def submit_many(self, count: int) -> None:
        markers = [self.marker() for _ in range(count)]

        def finish(answer: Answer, told: int) -> None:
            assert answer.status == "ok", answer
            ids = [first + index for first, size, _ in answer.body["jobs"] for index in range(size)]
            for marker, job_id in zip(markers, ids, strict=True):
                self.ledger.submitted(marker, job_id)

        groups = [{"payloads": [payload_of(marker)], "metadata": {"marker": marker}} for marker in markers]
        self.ask("submit_many", finish, groups=groups)


class Worker(Client):
    def __init__(self, loop: "KillLoop", number: int) -> None:
        super().__init__(loop, number)
        self.held: deque[tuple[int, int, int]] = deque()  # (job id, token, kills before it was leased)
        self.spent: deque[tuple[int, int]] = deque(maxlen=50)  # (job id, token) of leases that ended
        self.spending: list[tuple[int, int]] = []

    def act(self) -> None:
        self.spent.extend(self.spending)
        self.spending = []
        if len(self.held) < 40:
            wait_ms = 50 if self.random.random() < 0.3 else 0
            self.ask(
                "lease", self.leased(self.ledger.tick()), count=self.random.randrange(1, 8), wait_ms=wait_ms
            )
        while self.held and self.random.random() < 0.8:
            self.end(*self.held.popleft())
        for job_id, token, _ in list(self.held)[:2]:
            self.each("extend", [(job_id, token)], self.ledger.extended)
        if self.spent and self.random.random() < 0.3:
            job_id, token = self.random.choice(self.spent)
            verb = self.random.choice(["ack", "fail", "release", "extend"])
            self.each(
                verb, [(job_id, token)], lambda job, tok, verdict: self.ledger.stale(job, tok, verb, verdict)
            )

    def leased(self, asked: int) -> Finish:
        def finish(answer: Answer, told: int) -> None:
            assert answer.status == "ok", answer
            for job in answer.body["jobs"]:
                self.ledger.leased(job, answer.body["token"], asked, told)
                self.held.append((job["job_id"], answer.body["token"], self.loop.kills))

        return finish

    def end(self, job_id: int, token: int, kills_before: int) -> None:
        if kills_before < self.loop.kills:
            self.ledger.mark("lease held over a kill and ended")
        how = self.random.choices(["ack", "fail", "release"], [6, 2, 2])[0]
        self.ledger.ending(job_id, token, how)
        self.each(how, [(job_id, token)], self.ended)

    def ended(self, job_id: int, token: int, verdict: str) -> None:
        self.ledger.ended(job_id, token, verdict)
        self.spending.append((job_id, token))

    def each(self, verb: str, held: list[tuple[int, int]], told_of: Callable[[int, int, str], None]) -> None:
        ((job_id, token),) = held

        def finish(answer: Answer, told: int) -> None:
            assert answer.status == "ok", answer
            ((first, count, verdict),) = answer.body["results"]
            assert (first, count) == (job_id, 1), answer
            told_of(job_id, token, verdict)

        if verb == "ack":
            self.ask(verb, finish, items=[[token, [[job_id, 1]], None]])
        else:
            extra = {"retry_in_ms": 0} if verb == "fail" else {}
            self.ask(verb, finish, items=[[token, [[job_id, 1]]]], **extra)


class Reader(Client):
    newest = 1

    def act(self) -> None:
        for _ in range(10):
            # Around the newest: jobs whose submit is only being answered, and some that do not exist yet.
            job_id = max(1, self.newest + self.random.randrange(-40, 20))
            self.ask("get", self.seen(job_id, self.ledger.tick()), job_id=job_id)
        if self.loop.snapshots:
            self.ask("snapshot", self.begun)

    def begun(self, answer: Answer, told: int) -> None:
        assert answer.status == "ok", answer

    def seen(self, job_id: int, asked: int) -> Finish:
        known = self.ledger.knows(job_id)

        def finish(answer: Answer, told: int) -> None:
            if answer.status == "ok":
                self.newest = max(self.newest, job_id)
                self.ledger.read(answer.body, asked)
            else:
                assert answer.status == "job_not_found", answer
                if known:
                    self.ledger.fault(f"{known} and a later read does not find it")

        return finish


class KillLoop:
    """See the file's card.

    Args:
        flags: of the daemon, beyond those that every such test needs.
        snapshots: readers ask for one all the time; each begins a new segment.
    """

    def __init__(
        self,
        data: Path,
        seed: int | str,
        *flags: str,
        producers: int,
        workers: int,
        readers: int,
        snapshots: bool = False,
    ) -> None:
        self.snapshots = snapshots
        self.ledger = Ledger()
        self.seed = seed
        self.data = data
        self.random = random.Random(seed)
        self.daemon = Daemon(data, "--unix", "off", "--segment-bytes", "1MiB", *flags)
        self.gate = threading.Event()  # open: the daemon serves
        self.running = True  # the clients make new requests
        self.over = False  # they give up what is not answered
        self.fill_bytes = 0  # of zeros behind the payload of a new job
        self.kills = 0
        self.address: tuple[str, int] = ("", 0)
        kinds = [Producer] * producers + [Worker] * workers + [Reader] * readers
        self.clients: list[Client] = [kind(self, number) for number, kind in enumerate(kinds)]

    def __enter__(self) -> Self:
        try:
            self.start_daemon()
            for client in self.clients:
                client.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.over = True
        self.daemon.kill()
        self.gate.set()

    def start_daemon(self) -> None:
        """Start, look at everything before the clients do, and let them in."""
        self.daemon.start()
        if self.daemon.logged("recovered")[-1]["snapshot_lsn"]:
            self.ledger.mark("started from a snapshot")
        self.address = self.daemon.address
        with self.daemon.client() as wire:
            self.ledger.check_listing(wire.listed(), settled=False)
        self.gate.set()

    def wait_for_work(self, ops: int) -> None:
        ledger = self.ledger
        with ledger.progress:
            goal = ledger.ops + ops
            happened = ledger.progress.wait_for(lambda: ledger.ops >= goal or ledger.faults, PATIENCE_S)
        assert happened, f"only {ops - (goal - ledger.ops)} of {ops} requests were answered between two kills"

    def kill(self) -> None:
        self.gate.clear()
        self.daemon.kill()
        self.killed()

    def killed(self) -> None:
        """Count a kill, whoever it came from; the gate is closed."""
        self.kills += 1
        if any(self.data.glob("*.snap.tmp")):
            self.ledger.mark("snapshot under way at a kill")
        self.ledger.mark("unanswered at a kill", sum(len(client.unanswered) for client in self.clients))

    def end(self) -> None:
        """Let every request be answered: nothing may be unknown any more. Then work off what is left."""
        self.running = False
        for client in self.clients:
            client.join(PATIENCE_S)
            assert not client.is_alive(), f"{client.name} hangs"
        with self.daemon.client() as wire:
            self.ledger.check_listing(wire.listed(), settled=True)
            for client in self.clients:
                if isinstance(client, Worker):
                    for job_id, token, _ in client.held:
                        self.ledger.ending(job_id, token, "ack")
                        results = wire.ask("ack", items=[[token, [[job_id, 1]], None]])["results"]
                        self.ledger.ended(job_id, token, results[0][2])
            while (grant := wire.ask("lease", count=1_000))["jobs"]:
                told = self.ledger.tick()
                for job in grant["jobs"]:
                    self.ledger.leased(job, grant["token"], told - 1, told)
                    self.ledger.ending(job["job_id"], grant["token"], "ack")
                ranges = [[job["job_id"], 1] for job in grant["jobs"]]
                for first, count, verdict in wire.ask("ack", items=[[grant["token"], ranges, None]])[
                    "results"
                ]:
                    for job_id in range(first, first + count):
                        self.ledger.ended(job_id, grant["token"], verdict)
            listed = wire.listed()
        self.ledger.check_listing(listed, settled=True)
        self.ledger.check_leases()
        assert {job["state"] for job in listed} <= {"done", "dead"}
