"""What was submitted: jobs that are alike in all that a list shows, and how many of them there can be.

Knows:         protocol.md "submit", "submit_many": what a job is where its submit does not say it.
Must not know: anything of jqd; which of them are known by name (book.py).

A pool is entered when its jobs are asked for, not when they are answered: an unanswered submit may show in any list.
"""

from collections.abc import Iterable

from tests.sim.rules.backoffs import plain
from tests.sim.rules.model import OF_QUEUE, SHOWN_DEFAULTS, Args, Known, Pool, Request
from tests.sim.rules.words import groups_of, payloads_of


class Pools:
    """All pools, by what tells their jobs apart.

    odd_leases: queues with jobs that ask for a lease time of their own.
    queue_jobs: by queue: jobs that there can have been.
    expiring:   queues with jobs that may expire.
    """

    def __init__(self, known: Known) -> None:
        self._clocks = known.clocks
        self.by_key: dict[tuple[object, ...], Pool] = {}
        self.odd_leases: set[str] = set()
        self.queue_jobs: dict[str, int] = {}
        self.expiring: set[str] = set()

    def rolled_back(self) -> None:
        """An older copy of the store was put back: its jobs may have any age."""
        for pool in self.by_key.values():
            pool.ids.clear()
            pool.lo_ms = 0

    def of(self, fields: Args, ms: int) -> Pool:
        """Return the pool of what a submit says; new ones are as old as a time."""
        shown = {name: fields.get(name) for name in SHOWN_DEFAULTS}
        for name, usual in SHOWN_DEFAULTS.items():
            if shown[name] is None and name not in OF_QUEUE:
                shown[name] = usual
        if shown["delivery"] == "at_most_once":
            shown["max_retries"] = 0
        shown["queue"] = fields.get("queue", "default")
        shown["dedupe_key"] = fields.get("dedupe_key")
        shown["retry"] = plain(fields.get("retry"))
        key = pool_key(shown)
        pool = self.by_key.get(key)
        if pool is None:
            pool = self.by_key[key] = Pool(shown, ms, fields)
        return pool

    def expect(self, request: Request, fields: Args, payloads: list[bytes]) -> None:
        """Jobs were asked for: there can be so many more of them."""
        pool = self.of(fields, request.lo_ms)
        pool.most += len(payloads)
        pool.payloads += [payload for payload in payloads if payload not in pool.payloads]
        pool.delay_ms = fields.get("delay_ms") or 0
        if fields.get("run_at_ms") and not pool.run_at_ms:
            pool.run_at_ms = fields["run_at_ms"]
            pool.date = self._clocks.watch(pool.run_at_ms)
        if fields.get("expires_at_ms") or fields.get("expires_ms"):
            at_ms = fields.get("expires_at_ms") or self._clocks.wall_ms + fields["expires_ms"]
            if pool.expiry is None or at_ms < pool.expiry.at_ms:
                pool.expiry = self._clocks.watch(at_ms)
            self.expiring.add(pool.shown["queue"])
        name = pool.shown["queue"]
        if pool.shown["lease_ms"] not in (None, SHOWN_DEFAULTS["lease_ms"]):
            self.odd_leases.add(name)
        self.queue_jobs[name] = self.queue_jobs.get(name, 0) + len(payloads)

    def set_back(self, request: Request) -> None:
        """The jobs of a submit may be as old as the time that its request has now."""
        groups = {"submit": [request.args], "submit_many": request.args.get("groups", ())}.get(
            request.verb, ()
        )
        for fields in groups:
            pool = self.of(fields, request.lo_ms)
            pool.lo_ms = min(pool.lo_ms, request.lo_ms)

    def expire_earlier(self, requests: Iterable[Request], wall_ms: int) -> None:
        """The wall clock was set back: what was asked before and is carried out now expires by the new one."""
        for request in requests:
            for fields in groups_of(request):
                if fields.get("expires_ms"):
                    pool = self.of(fields, request.lo_ms)
                    at_ms = wall_ms + fields["expires_ms"]
                    if (
                        pool.expiry is None or at_ms < pool.expiry.at_ms
                    ):  # it may have been carried out before
                        pool.expiry = self._clocks.watch(at_ms)

    def take_back(self, request: Request) -> None:
        """What a refused submit would have added does not come."""
        for fields in groups_of(request):
            self.of(fields, request.lo_ms).most -= len(payloads_of(fields))


def pool_key(shown: Args) -> tuple[object, ...]:
    """Return what jobs are told apart by: their task, which never changes; where they have none by all that is shown."""
    if shown["task"] is not None:
        return shown["queue"], shown["task"], shown["delivery"]
    metadata = shown["metadata"]
    return (
        shown["queue"],
        *(shown[name] for name in ("priority", "encoding", "task", "tenant", "group", "delivery")),
        None if metadata is None else tuple(sorted(metadata.items())),
    )
