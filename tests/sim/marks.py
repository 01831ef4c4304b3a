"""Rare situations by name: what a run of many plans must have met, or it proves less than it seems to.

Knows:         the name of each, what it means, who notices it.
Must not know: how a situation comes about, what is right in it.

A plan that finds nothing is only worth something if it went where things break. So whoever sees such a place says so
(`Marks.hit`), and `python -m tests.sim run` fails if one of them never came up in 1,000 plans or more. A name that is
not in the table is a mistake of whoever hit it.

    oracle   from requests and replies alone
    world    what the plan did, and what the daemon was doing at that moment (watch.py: seen from inside)
    shadow   what the log had when a run ended

Sources: reliability.md 4.5 ("sometimes" assertions of Antithesis and TigerBeetle).
"""

from typing import Final

_WORLD: Final = {
    # --- ends of a run ---
    "clean stop": "the daemon was told to stop, and did",
    "killed within a turn": "kill -9 when requests had changed memory and no record was made of it",
    "killed before a sync": "kill -9 when replies waited for the disk",
    "killed within a write of the log": "the end came inside a write of the commit thread",
    "killed within a sync of the log": "the end came inside its sync",
    "power loss with pending operations: prefix": "the disk kept what came first",
    "power loss with pending operations: subset": "the disk kept some of it, in no order",
    "power loss with pending operations: torn": "pages and sectors were kept apart",
    "power loss between a rename and the sync of its directory": "a file had its name only until then",
    "run without a durable fact of its own": "two ends with no new LSN in between",
    "snapshot under way at the end of the process": "its file was half written, or had no name yet",
    "exit 74": "a failed write or sync has ended the daemon",
    "older backup restored": "the store went back; tokens must not",
    # --- starts ---
    "recovered from a snapshot": "a start that did not read the log from its beginning",
    "fell back to the older of two snapshots": "the newest was damaged",
    "rot in a snapshot survived": "a bit of the newest snapshot had flipped",
    "torn tail cut": "the log ended in an unfinished write",
    "clean start": "the mark of a clean stop was believed",
    "crash during recovery": "the end came again before the daemon served",
    "start refused by a failing disk": "a write or sync failed in recovery",
    # --- the disk while it runs ---
    "disk fault armed: WRITE_FAILS": "one of the next writes fails",
    "disk fault armed: SYNC_FAILS": "one of the next syncs fails",
    "disk fault armed: NO_SPACE": "one of the next writes finds the disk full",
    "disk fault armed: KILL": "one of the next calls is the last one",
    "loop ran within a write of the log": "requests were carried out while the commit thread wrote",
    "loop ran within a sync of the log": "and while it synced",
    "replies wait for a slow disk": "time passed while a sync was under way",
    "turns wait behind each other for the disk": "three or more of them",
    "reserve given up at a full disk": "a write was repeated into the room of the reserve",
    "reserve taken again": "room came back",
    "log rotated": "a segment was full, or was ended for a snapshot",
    "log trimmed behind a snapshot": "segments that nobody needs were removed",
    "snapshot made": "written, read again, named",
    "change while a snapshot walks": "a job or session changed before the walk had come to it",
    # --- time ---
    "wall clock jumped": "forwards or backwards, from a second to ten years",
    "machine slept": "timers did not know, clocks did",
    "standstill while leases run": "the daemon was stopped",
    "leases judged by a clock that is behind": "after a standstill or a slow sync",
    # --- connections ---
    "reply lost on its way": "carried out, and its client does not know",
    "zombie connection heard after its client came back": "late bytes of a connection that nobody listens to",
    "half-closed connection answered": "a client had said that it will send nothing more",
    "garbage refused": "a stranger spoke",
    "replies that nobody reads": "the daemon stopped reading from who does not read",
    "two leases wait": "more than one was parked at a time",
    "leased jobs taken back unsent": "the connection of a grant was closed before its reply left",
}

_SHADOW: Final = {
    "turn lost in a crash": "what a turn did was not in the log that was recovered",
    "parked wait answered by a job's end": "it had found nothing when it came",
    "parked wait gave up": "nothing of what it asked for had ended when its time was over",
}

_ORACLE: Final = {
    # --- refusals ---
    "refused: busy": "too much waits for the disk",
    "refused: storage_full": "the disk is nearly full",
    "refused: overloaded": "memory is short",
    "refused: position_lost": "the answer of a retried request was forgotten",
    "refused: invalid_argument": "by its own words",
    "refused: wrong_state": "a filter meant nothing that the verb takes",
    "refused: job_not_found": "purged, forgotten, or never there",
    "refused: queue_not_found": "a queue without jobs",
    "job taken after storage_full": "room came back, and with it submits",
    "job taken after busy": "the disk has caught up",
    "job taken after overloaded": "jobs were finished or forgotten, and gave memory back",
    # --- sessions ---
    "request sent again": "over another connection, unanswered so far",
    "request answered in a later run than it was sent in": "a restart lay in between",
    "answer to a request sent again came from one of its tries": "and was that of one",
    "session silent for so long that it may be forgotten": "ten minutes or more",
    "retried lease found nothing left": "its jobs had gone elsewhere meanwhile",
    "retried lease told what is still held": "the grant of the first try",
    "outcome unknown for ever": "a client has given up",
    "unanswered submit found in a list": "a read settled it",
    # --- leases ---
    "stale token refused": "its job had been handed to somebody else since",
    "token of an earlier run accepted": "a worker spoke to the daemon that came after",
    "refused at the millisecond of the deadline": "the lease was over at that moment and not before",
    "accepted in the last millisecond of a lease": "by a millisecond it was not over",
    "heard after the deadline": "a standstill was forgiven",
    "lease ended by a restart counted as nothing": "it ran out, not extended since the start",
    "job handed out at the millisecond of its time": "a delay or a backoff was over",
    "job handed out in the millisecond in which a lease ran out": "to who waited or came just then",
    "dated job handed out though the wall clock is behind its date": "it had been there for a moment",
    "wall clock jumped over a date": "by more than a minute",
    "parked lease served": "it had found nothing when it came",
    "parked lease gave up": "nothing had come for it",
    "attempt given back and counted again": "a released job was handed out with the same number",
    "dead job came back": "requeued, and handed out",
    # --- ends of jobs ---
    "dead: retries": "it failed once too often",
    "dead: crashes": "its leases ran out once too often",
    "dead: refused": "acked with an error",
    "dead: abandoned": "at most once, and its lease ran out",
    "dead: killed": "failed for good",
    "at-most-once job lives through a crash": "it was held when the run ended",
    "job forgotten": "retention had come to it",
    "job expired": "nobody had started it in time",
    "job handed out in the last millisecond before its expiry": "and not later",
    # --- results and progress ---
    "result shown in its last millisecond": "a millisecond later it is not",
    "result gone at the millisecond of its end": "and shown until then",
    "result gone over the end of a run": "it was shown before, or acked with, in another run",
    "progress cleared by a hand-out": "the next holder has said nothing so far",
    # --- changed while it waits ---
    "job handed out as it was changed to": "by update, or by a further submit with its key",
    "ready job given another priority": "and so another place",
    "delayed job made ready by an update": "whatever its time had been",
    # --- keys ---
    "refused: duplicate": "a job has the dedupe key",
    "refused: idempotency_conflict": "the key was used with other content",
    "refused: too many keys": "of which each plan may have few",
    "dedupe key met: existing": "the job that was there was the answer",
    "dedupe key met: replace": "that job has become another one",
    "dedupe key met: debounce": "that job has got a new time too",
    "dedupe key met in the last millisecond of its time": "a job had it for a time, and no longer",
    "dedupe key used again behind the end of its job": "by a new job",
    "dead job not requeued: its key has another": "two would have lived",
    "submit answered by its idempotency key": "asked again, as a new request",
    "idempotency key used again behind its time": "for a new job",
    # --- queues ---
    "refused: queue_full": "the queue had as many jobs as it may",
    "job taken after queue_full": "there was room again",
    "queue paused over the end of a run": "nobody may get its jobs in the next one",
    "lease with weights: another queue came first than the first one named": "it was drawn",
    "list by a filter's text": "with something in it",
    "nothing found by a filter's text": "and nothing was meant",
    # --- cancel of running jobs, clients that are gone ---
    "running job marked": "it ends as soon as its worker lets go of it",
    "running jobs marked by a filter": "whoever holds them",
    "holder told by an event that its job is to end": "unasked",
    "marked job held over the end of a run": "it has to end in the next one",
    "marked job ended by its holder: release": "cancelled, and not ready again",
    "marked job ended by its holder: fail": "cancelled, and not tried again",
    "marked job acked all the same": "done",
    "lease ended with the connections of its holder": "who asked for it, and did not come back",
    "client that is to lose its leases came back in time": "and kept them",
}

MARKS: Final = {**_WORLD, **_SHADOW, **_ORACLE}


class Marks:
    """How often each situation came up."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(MARKS, 0)

    def hit(self, name: str) -> None:
        """Say that a situation has come up. Raises KeyError: it is none of the table."""
        self.counts[name] += 1
