"""Requests that may have been carried out, and what they may have done to a job.

Knows:         protocol.md "Sessions and retries", "Bulk actions", "Filters": what each verb can do to which jobs while
               nobody has its answer, or where its answer does not say when it was carried out.
Must not know: anything of jqd; which states follow (reach.py), what an answer says (the verbs' files).

A request that was sent and not yet answered, or never will be, is *loose*: it may have been carried out at any moment
since, or not at all. One that was answered may *linger* on a job: it acted before or after what else is known of it.
"""

from collections.abc import Iterable

from tests.sim.rules.book import Book
from tests.sim.rules.idempotency import IdempotencyKey
from tests.sim.rules.meanings import meaning
from tests.sim.rules.model import Args, Job, Key, Known, Request
from tests.sim.rules.pools import Pools
from tests.sim.rules.queues import Queues
from tests.sim.rules.words import (
    acts_on_holder,
    dedupe_of,
    edit_of,
    groups_of,
    ids_in,
    named_by,
    payloads_of,
    queue_swept,
)


class Loose:
    """All requests that are not done with.

    open:         not answered yet.
    given_up:     never to be answered, and yet perhaps carried out.
    closed:       what was answered: status, body.
    named:        by job id, with the token that they show; those that linger too.
    leases:       by queue.
    sweeps:       cancel, requeue and purge by a filter.
    swept:        answered, but not for which jobs: verb, queue, and the LSN at or before which it was carried out.
    ikeys:        by idempotency key, what is known of it.
    key_submits:  by queue and dedupe key: what may change who has it.
    result_bytes: of all results that were sent.
    refused:      jobs that somebody wanted to ack with an error,
    killed:       or to fail for good.
    """

    def __init__(self, known: Known, pools: Pools, book: Book, queues: Queues) -> None:
        self._known = known
        self._clocks = known.clocks
        self._pools = pools
        self._book = book
        self._queues = queues
        self.open: dict[Key, Request] = {}
        self.given_up: list[Request] = []
        self.closed: dict[Key, tuple[str, object]] = {}
        self.named: dict[int, list[tuple[Request, int]]] = {}
        self.leases: dict[str, dict[Key, Request]] = {}
        self.sweeps: dict[Key, Request] = {}
        self.swept: list[tuple[str, str | None, int]] = []
        self.ikeys: dict[str, IdempotencyKey] = {}
        self.key_submits: dict[tuple[str, str], dict[Key, Request]] = {}
        self.result_bytes = 0
        self.refused: set[int] = set()
        self.killed: set[int] = set()

    def rolled_back(self) -> None:
        """An older copy of the store was put back."""
        self.swept.clear()
        for ikey in self.ikeys.values():
            ikey.uses, ikey.doubt_lsn = [], 0.5  # anything of the copy, and nothing behind it
        for request in self.open.values():
            request.floor = request.lo_ms = 0
            request.sends += 1  # in the copy it may have been carried out already

    def loosen(self, request: Request) -> None:
        """A request was sent: from now on it may be carried out."""
        verb, args = request.verb, request.args
        request.is_loose = True
        if verb in ("submit", "submit_many"):
            for fields in groups_of(request):
                self._pools.expect(request, fields, payloads_of(fields))
                if fields.get("idempotency_key") is not None:
                    self.ikey(fields).loose.add(request.key)
                if fields.get("dedupe_key") is not None:
                    self.key_submits.setdefault(dedupe_of(fields), {})[request.key] = request
                    if fields.get("dedupe") in ("replace", "debounce"):
                        given = self._book.payloads.setdefault(dedupe_of(fields), [])
                        given.append((request, payloads_of(fields)[0]))
        elif verb == "update":
            self.named.setdefault(args["job_id"], []).append((request, 0))
            if args.get("payload") is not None:
                self._book.payloads.setdefault(args["job_id"], []).append((request, args["payload"]))
            if args.get("run_at_ms"):
                self._clocks.watch(args["run_at_ms"])
        elif verb in ("set_queue", "pause", "resume"):
            self._queues.of(args["queue"]).loosen(request)
            if args.get("lease_ms") is not None:
                self._pools.odd_leases.add(args["queue"])
        elif verb == "lease":
            for name in args.get("queues", ("default",)):
                self.leases.setdefault(name, {})[request.key] = request
        elif verb in ("ack", "fail", "release", "extend"):
            for job_id, token in named_by(args):
                self.named.setdefault(job_id, []).append((request, token))
            if verb == "ack":
                self._note_ack(args)
            elif verb == "fail" and args.get("dead"):
                self.killed.update(job_id for job_id, _ in named_by(args))
        elif verb in ("cancel", "requeue", "purge") and not args.get("dry_run"):
            if args.get("ids"):
                for job_id in ids_in(args["ids"]):
                    self.named.setdefault(job_id, []).append((request, 0))
            else:
                self.sweeps[request.key] = request

    def _note_ack(self, args: Args) -> None:
        if args.get("result_error") is not None:
            self.refused.update(job_id for job_id, _ in named_by(args))
        for _, ranges, result in args["items"]:
            if result is not None:
                self.result_bytes += len(result) * sum(count for _, count in ranges)

    def settle(self, request: Request) -> None:
        """A request is loose no longer."""
        if not request.is_loose:
            return
        request.is_loose = False
        verb, args, key = request.verb, request.args, request.key
        if verb in ("submit", "submit_many"):
            for fields in groups_of(request):
                if fields.get("idempotency_key") is not None:
                    ikey = self.ikey(fields)
                    ikey.loose.discard(key)
                    if request in self.given_up:  # whatever it did lies at or before what is known now
                        ikey.doubt_lsn = max(ikey.doubt_lsn, self._known.seen)
                if fields.get("dedupe_key") is not None:
                    self.key_submits[dedupe_of(fields)].pop(key, None)
                    self._is_known(request, dedupe_of(fields))
        elif verb == "update":
            self._unname(request, (args["job_id"],))
            self._is_known(request, args["job_id"])
        elif verb in ("set_queue", "pause", "resume"):
            self._queues.of(args["queue"]).settle(
                request, self._known.seen if request in self.given_up else 0
            )
        elif verb == "lease":
            for name in args.get("queues", ("default",)):
                self.leases[name].pop(key, None)
        elif verb in ("ack", "fail", "release", "extend"):
            self._unname(request, (job_id for job_id, _ in named_by(args)))
        elif verb in ("cancel", "requeue", "purge"):
            if args.get("ids"):
                self._unname(request, ids_in(args["ids"]))
            else:
                self.sweeps.pop(key, None)

    def _is_known(self, request: Request, place: object) -> None:
        """What has become of a request is known, if it was sent once and answered: so is the payload that it gave."""
        if place in self._book.payloads and request.sends == 1 and request not in self.given_up:
            self._book.payloads[place] = [
                each for each in self._book.payloads[place] if each[0] is not request
            ]

    def _unname(self, request: Request, ids: Iterable[int]) -> None:
        for job_id in ids:
            left = [each for each in self.named.get(job_id, ()) if each[0] is not request]
            if left:
                self.named[job_id] = left
            else:
                self.named.pop(job_id, None)

    def linger(self, request: Request, job_id: int, token: int, lsn: int) -> None:
        """An answered request acted on a job, before or after what else is known of it."""
        request.lsn = lsn
        self.named.setdefault(job_id, []).append((request, token))

    def double(self, request: Request) -> None:
        """A copy of a request was sent that the daemon need not recognise: both may be carried out."""
        twin = Request(request.key, request.verb, request.args, request.floor, request.lo_ms, self._known.run)
        twin.key = (b"twin", len(self.given_up) << 20 | self._known.run)
        self.loosen(twin)
        self.given_up.append(twin)

    def clear_up(self, lsn: int) -> None:
        """All is known at an LSN: what runs that have ended may have done is in it.

        But for jobs of a submit that is still to be answered: they may have come and been purged before.
        """
        submits = [
            request.floor for request in self.open.values() if request.verb in ("submit", "submit_many")
        ]
        for request in self.given_up:
            if request.run < self._known.run and not (submits and request.verb == "purge"):
                self.settle(request)
        lsn = min([lsn, *submits])
        self.given_up = [request for request in self.given_up if request.is_loose]
        self.swept = [each for each in self.swept if each[2] > lsn]
        for job_id, named in list(self.named.items()):
            left = [each for each in named if not 0 < each[0].lsn <= lsn]
            if left:
                self.named[job_id] = left
            else:
                del self.named[job_id]

    def ikey(self, fields: Args) -> IdempotencyKey:
        """Return what is known of the idempotency key that a submit has."""
        return self.ikeys.setdefault(fields["idempotency_key"], IdempotencyKey())

    # --- what they may have done --------------------------------------------------------------

    def verbs_on(self, job: Job) -> set[str]:
        """Return the verbs of loose requests that may have acted on a job since it was seen."""
        verbs: set[str] = set()
        named = self.named.get(job.id)
        if named is not None:
            for request, token in named:
                if request.lsn and request.lsn <= job.lo:
                    continue
                if not token or not job.token or token >= job.token:
                    verbs.update(request.acts)
                    if request.verb in ("submit", "submit_many"):  # whose key has met the job
                        verbs.update(acts_on_holder(request, job))
        for request in self.sweeps.values():
            if queue_swept(request.args) in (None, job.queue) and self._may_mean(request.args, job):
                verbs.update(request.acts)
        if job.pool.shown["dedupe_key"] is not None:
            for request in self.key_submits.get((job.queue, job.pool.shown["dedupe_key"]), {}).values():
                verbs.update(acts_on_holder(request, job))
        for verb, queue, lsn in self.swept:
            if lsn > job.lo and queue in (None, job.queue):
                verbs.add(verb)
        if self.leases.get(job.queue):
            verbs.add("lease")
        return verbs

    def _may_mean(self, args: Args, job: Job) -> bool:
        """Tell whether a filter with a `where` can mean a job, by what of it does not change by itself."""
        where = (args.get("filter") or {}).get("where")
        if where is None:
            return True
        facts = {"queue": job.queue, "task": job.pool.shown["task"] or ""}
        if not self.edits_on(job):
            facts.update(priority=job.content["priority"], metadata=job.content["metadata"] or {})
        return meaning(where)(facts) is not False

    def edits_on(self, job: Job) -> list[tuple[Request, Args]]:
        """Return the loose requests that may change what a job is, each with what it says."""
        found = [
            (request, edit_of(request.args, update=True))
            for request, _ in self.named.get(job.id, ())
            if request.verb == "update" and not (request.lsn and request.lsn <= job.shown_lsn)
        ]
        key = job.pool.shown["dedupe_key"]
        if key is not None:
            found += [
                (request, edit_of(fields))
                for request in self.key_submits.get((job.queue, key), {}).values()
                for fields in groups_of(request)
                if fields.get("dedupe") in ("replace", "debounce") and fields.get("dedupe_key") == key
            ]
            found += [
                (request, edit_of(fields))
                for request, _ in self.named.get(job.id, ())
                if request.verb in ("submit", "submit_many") and request.lsn > job.shown_lsn
                for fields in groups_of(request)
                if fields.get("dedupe") in ("replace", "debounce") and fields.get("dedupe_key") == key
            ]
        return found
