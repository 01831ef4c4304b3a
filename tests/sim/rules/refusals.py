"""Errors: a request was refused, which changes nothing. Was there a reason?

Knows:         protocol.md "Errors", "Memory", and which of them leaves open whether an earlier copy of the request was
               carried out. Nothing is refused for memory or keys without need (I17).
Must not know: anything of jqd; the reasons of keys, room and changes (keys.py, submits.py, edits.py).
"""

from typing import Any, Final

from tests.sim.rules.book import Book
from tests.sim.rules.edits import Edits
from tests.sim.rules.keys import Keys
from tests.sim.rules.leases import Leases
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import Known, Request, Violation
from tests.sim.rules.pools import Pools
from tests.sim.rules.queues import Queues
from tests.sim.rules.reach import Reach
from tests.sim.rules.submits import Submits
from tests.sim.rules.words import has_changed

# An error that says nothing about whether an earlier copy of the request was carried out.
UNKNOWN_OUTCOME: Final = "position_lost"


class Refusals:
    """Judges what is not ok."""

    def __init__(
        self,
        known: Known,
        pools: Pools,
        book: Book,
        queues: Queues,
        loose: Loose,
        reach: Reach,
        edits: Edits,
        keys: Keys,
        submits: Submits,
        leases: Leases,
    ) -> None:
        self._known = known
        self._hit = known.hit
        self._pools = pools
        self._book = book
        self._queues = queues
        self._loose = loose
        self._reach = reach
        self._edits = edits
        self._keys = keys
        self._submits = submits
        self._leases = leases

    def on_error(self, request: Request, status: str, lsn: int, body: Any, ms: int) -> None:
        """A request was refused, which changes nothing."""
        if status == "internal":
            raise Violation("CODE", f"{request}: {body}")
        about = body.get("details") or {}
        if status == "overloaded" and "memory_bytes" not in about:
            if "KEYS_MAX" not in self._known.limits:
                raise Violation("I17", f"{request}: refused with {body}")
            self._hit("refused: too many keys")
        elif status != "draining":  # whether a request meets the end of a run is luck
            self._hit(f"refused: {status}")
        if status in ("storage_full", "busy", "queue_full") or "memory_bytes" in about:
            self._submits.full = status
        if "memory_bytes" in about:
            limit = self._known.limits.get("memory_soft_bytes")
            if limit is None or about["memory_bytes"] + about["added_bytes"] <= limit:
                raise Violation("I17", f"{request}: refused with {about}, limit {limit}")
        if status == UNKNOWN_OUTCOME:
            self._loose.given_up.append(request)
            self._leases.drop_suspicions(request.key)
            return
        if request.again is not None and has_changed(request, request.again[1]):
            raise Violation("I10", f"{request} was answered {request.again}, and then {status}")
        if request.sends > 1:
            self._loose.given_up.append(request)  # another copy may be carried out yet
            self._leases.drop_suspicions(request.key)
        else:
            self._loose.settle(request)
            self._pools.take_back(request)
            self._check_refusal(request, status, lsn, body, ms)
        self._loose.closed[request.key] = (status, body)
        if request.verb == "get" and status == "job_not_found":
            job = self._book.jobs.get(request.args["job_id"])
            if job is not None:
                self._reach.is_missing(job, lsn, ms, str(request))
        if status == "queue_not_found":
            name = request.args.get("queue") or request.args["filter"]["queue"]
            for job in self._book.jobs.values():
                if job.queue == name and job.state != "gone" and job.hi <= lsn:
                    self._reach.is_missing(job, lsn, ms, str(request))
            if name in self._queues.shelves:
                self._queues.not_there(name, self._queues.shelves[name], lsn, str(request))

    def _check_refusal(self, request: Request, status: str, lsn: int, body: Any, ms: int) -> None:
        """A request that was sent once was refused: was there a reason?"""
        if status == "queue_full":
            self._submits.on_full(request, lsn, body)
        elif status == "idempotency_conflict" and request.verb == "submit":
            self._keys.on_conflict(request, lsn, ms)
        elif status == "duplicate" and request.verb == "submit":
            self._keys.on_duplicate(request, request.args, body["details"]["job_id"], lsn, ms)
        elif request.verb == "update" and request.args["job_id"] in self._book.jobs:
            self._edits.refused(request, status, lsn, ms)
