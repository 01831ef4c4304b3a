"""What clients asked of a daemon and were told, and whether both can be true: the oracle of the kill loop.

It knows nothing of jqd but its promises, keeps everything in dicts, and never looks at the disk. Every
request is noted when it is sent and when its reply came, with numbers of one counter: what was answered
before something else was asked, happened before it.

    submit   a marker in the job's metadata names it; a marker is on exactly one job once it was answered
    lease    tokens of a job only rise, and between two leases of a job stands the request of its holder
             that ended the first: nothing expires here, so a lease that ends by itself is a bug
    ack      answered ok: done for ever
    attempt  exactly one more after a fail, the same after a release, whatever was killed in between

Violations are collected, not raised: `faults` says all of them.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

# A job that failed this often is dead: the first try and three retries.
ERRORS_MAX = 3


def payload_of(marker: str) -> bytes:
    """Return the payload of the job that a marker names: a job's own, and as long as `+N` at its end says."""
    _, _, fill_bytes = marker.partition("+")
    return marker.encode() + bytes(int(fill_bytes or 0))


@dataclass
class Grant:
    """One lease of one job, and what its holder did with it."""

    token: int
    attempt: int
    asked: int
    told: int
    ending: str = ""  # ack, fail or release: what the holder asked for
    ending_asked: int = 0
    ended: bool = False  # and was told that it is done


@dataclass
class Record:
    """What is known of one job."""

    job_id: int
    marker: str
    grants: dict[int, Grant] = field(default_factory=dict)  # by token
    seen_done: int = 0  # when a read had shown it as done

    @property
    def newest(self) -> Grant | None:
        return self.grants[max(self.grants)] if self.grants else None

    @property
    def is_done(self) -> bool:
        return any(grant.ending == "ack" and grant.ended for grant in self.grants.values())

    @property
    def errors(self) -> int:
        return sum(grant.ending == "fail" for grant in self.grants.values())


class Ledger:
    """See the file's card. Any thread may call it."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.jobs: dict[int, Record] = {}
        self.asked_markers: set[str] = set()
        self.answered: dict[str, int] = {}  # marker -> job id
        self.ops = 0  # requests that were answered
        self.marks: dict[str, int] = {}  # rare situations, and how often each was met
        self.progress = threading.Condition()
        self._clock = 0
        self._shown: dict[
            int, str
        ] = {}  # jobs that a read has shown although nobody was told that they exist

    # --- what happened ------------------------------------------------------------------------

    def tick(self) -> int:
        with self.progress:
            self._clock += 1
            return self._clock

    def fault(self, text: str) -> None:
        with self.progress:
            self.faults.append(text)

    def mark(self, name: str, count: int = 1) -> None:
        with self.progress:
            self.marks[name] = self.marks.get(name, 0) + count

    def answered_one(self) -> None:
        with self.progress:
            self.ops += 1
            self.progress.notify_all()

    def submitting(self, markers: Iterable[str]) -> None:
        with self.progress:
            self.asked_markers.update(markers)

    def submitted(self, marker: str, job_id: int) -> None:
        with self.progress:
            known = self.answered.setdefault(marker, job_id)
            if known != job_id:
                self.faults.append(f"submit of {marker} was answered with job {known} and with job {job_id}")
            self._record(job_id, marker)

    def _record(self, job_id: int, marker: str) -> Record:
        record = self.jobs.get(job_id)
        if record is None:
            record = self.jobs[job_id] = Record(job_id, marker)
        if record.marker != marker:
            self.faults.append(f"job {job_id} is {record.marker} and {marker}")
        if marker not in self.asked_markers:
            self.faults.append(f"job {job_id}: nobody ever submitted {marker!r}")
        return record

    def leased(self, job: dict[str, Any], token: int, asked: int, told: int) -> None:
        """A reply handed out a job."""
        with self.progress:
            record = self._record(job["job_id"], job["metadata"]["marker"])
            if job["payload"] != payload_of(record.marker):
                self.faults.append(f"job {record.job_id}: the payload is not the one of {record.marker}")
            known = record.grants.get(token)
            if known is not None:
                self.faults.append(f"job {record.job_id}: token {token} was handed out twice")
                return
            record.grants[token] = Grant(token, job["attempt"], asked, told)

    def ending(self, job_id: int, token: int, how: str) -> None:
        """The holder is about to end its lease."""
        with self.progress:
            grant = self.jobs[job_id].grants[token]
            grant.ending = how
            self._clock += 1
            grant.ending_asked = self._clock

    def ended(self, job_id: int, token: int, verdict: str) -> None:
        """The holder was told what came of it."""
        with self.progress:
            grant = self.jobs[job_id].grants[token]
            grant.ended = verdict == "ok"
            if verdict != "ok":
                self.faults.append(
                    f"job {job_id}: {grant.ending} with token {token} was refused as {verdict}: nothing had ended "
                    f"that lease; all of them: {sorted(self.jobs[job_id].grants.values(), key=lambda g: g.token)}"
                )

    def extended(self, job_id: int, token: int, verdict: str) -> None:
        if verdict != "ok":
            self.fault(f"job {job_id}: a held lease {token} could not be extended: {verdict}")

    def stale(self, job_id: int, token: int, verb: str, verdict: str) -> None:
        """A token was tried that had ended before."""
        self.mark("stale token refused")
        if verdict != "lease_lost":
            self.fault(f"job {job_id}: {verb} with the ended token {token} was answered {verdict}")

    def read(self, job: dict[str, Any], asked: int) -> None:
        """A read showed a job."""
        with self.progress:
            job_id, marker = job["job_id"], job["metadata"]["marker"]
            shown = self._shown.setdefault(job_id, marker)
            if shown != marker:
                self.faults.append(f"job {job_id} was shown as {shown}, later as {marker}")
            record = self.jobs.get(job_id)
            if record is None:
                return  # its submit is not answered yet
            if job["state"] == "done":
                self._clock += 1
                record.seen_done = record.seen_done or self._clock
            elif record.seen_done and record.seen_done < asked:
                self.faults.append(f"job {job_id} was shown as done, later as {job['state']}")

    def knows(self, job_id: int) -> str:
        """Say since when a job must be there, or ""."""
        with self.progress:
            if job_id in self._shown:
                return f"job {job_id} was shown before"
            return f"job {job_id} was acknowledged" if job_id in self.jobs else ""

    # --- whether it can be true ---------------------------------------------------------------

    def check_listing(self, listed: list[dict[str, Any]], *, settled: bool) -> None:
        """Compare all that a daemon has with all that it ever said.

        Args:
            settled: every request was answered. Else some may be under way, with either outcome.
        """
        with self.progress:
            found: dict[int, dict[str, Any]] = {}
            markers: dict[str, int] = {}
            for job in listed:
                marker = job["metadata"]["marker"]
                if job["job_id"] in found:
                    self.fault(f"job {job['job_id']} is listed twice")
                found[job["job_id"]] = job
                if marker in markers:
                    self.fault(f"{marker} exists twice: jobs {markers[marker]} and {job['job_id']}")
                markers[marker] = job["job_id"]
                if marker not in self.asked_markers:
                    self.fault(f"job {job['job_id']}: nobody ever submitted {marker!r}")
                if settled and self.answered.get(marker) != job["job_id"]:
                    self.fault(
                        f"job {job['job_id']} is {marker}, which was answered as {self.answered.get(marker)}"
                    )
            for marker, job_id in self.answered.items():
                if markers.get(marker) != job_id:
                    self.fault(f"{marker} was acknowledged as job {job_id} and is now {markers.get(marker)}")
            for job_id in self._shown:
                if job_id not in found:
                    self.fault(f"job {job_id} was shown to a reader and is gone")
            for job_id, record in self.jobs.items():
                if job_id in found:
                    self._check_state(found[job_id], record)

    def _check_state(self, job: dict[str, Any], record: Record) -> None:
        state, newest = job["state"], record.newest
        where = f"job {record.job_id} is {state}, attempt {job['attempt']}; last known lease {newest}"
        if newest is None:
            # A lease may have been made whose reply nobody got yet.
            if state not in ("ready", "leased"):
                self.fault(where)
        elif not newest.ending:
            if state != "leased" or job["attempt"] != newest.attempt:
                self.fault(f"{where}: the lease of a live worker has ended")
        elif newest.ending == "ack":
            if state != "done" and (newest.ended or state != "leased"):
                self.fault(f"{where}: an acked job must stay done")
        elif newest.ended:
            should_be_dead = newest.ending == "fail" and record.errors > ERRORS_MAX
            if state == "done" or (state == "dead") != should_be_dead:
                self.fault(f"{where}: after {newest.ending} number {record.errors}")

    def check_leases(self) -> None:
        """Check the story of every job, from its first lease to its last."""
        for record in self.jobs.values():
            grants = [record.grants[token] for token in sorted(record.grants)]
            for earlier, later in pairwise(grants):
                self._check_pair(record.job_id, earlier, later)
            if grants and grants[0].attempt != 1:
                self.fault(f"job {record.job_id}: its first lease is attempt {grants[0].attempt}")

    def _check_pair(self, job_id: int, earlier: Grant, later: Grant) -> None:
        where = f"job {job_id}: {earlier}, then {later}"
        if later.told < earlier.asked:
            self.fault(f"{where}: a later lease has a lower token")
        if not earlier.ending or earlier.ending_asked > later.told:
            self.fault(f"{where}: handed out while a live worker had it")
        if earlier.ending == "ack":
            self.fault(f"{where}: handed out after its ack")
        if later.attempt != earlier.attempt + (earlier.ending == "fail"):
            self.fault(f"{where}: wrong number of the attempt")
