"""What a client has heard of a store, and whether a welcome contradicts it: the store was rolled back.

Knows:         runs of a daemon (store id, epoch, first LSN) and the highest LSN that was heard of each; which of
               two runs is the later one; when what was acknowledged is gone.
Must not know: bytes, connections, who is told.

A store goes back when an older backup of it is restored, when `jqctl wal repair --accept-loss` cuts the end of its
log, or when a power cut takes what `sync = "interval=..."` had acknowledged. Then jobs that were submitted are not
there, and finished ones run again. Clients can tell, since replies carry LSNs.

Why there is no false alarm:

1. **Every LSN that was heard is on disk.** A reply leaves when all facts that it rests on are durable (with
   sync=interval: when they are written, which outlives the daemon but not the power). So each run of a daemon
   begins behind it: heard in an earlier run -> LSN below `start_lsn` of a later one, always, whatever the order
   in which the two are heard. Parked replies say the LSN of their answer, not of their request.
2. **Which run is later**: epochs rise with each start. So two runs of a store can be compared by (1) alone.
   An epoch of the past proves nothing by itself: a connection may still deliver what the run before had said.
3. **Within a run** LSNs rise, but replies over several connections are heard in any order, and a welcome may be
   heard after replies that are younger than it. Therefore a welcome is compared only with what had been heard when
   its hello was sent (`mark()`): the server had said that before it read the hello, so no truthful welcome of that
   run, and none of a later one, is behind it. The same goes for a lower epoch, and for another store.

What is missed: a store that went back, and was started once more before this client connected again, if the later
run began beyond all that the client has heard; a repair that took the newest fact alone, whose LSN it gives to a fact
of its own; and whatever nobody of this process has heard.
Source: protocol.md "A store that went back".
"""

from collections import deque
from typing import Final, NamedTuple

from jqd.core.commands import Welcome

# A connection from so many runs ago has long been closed by its end of it.
_RUNS_MAX: Final = 8
_WHY: Final = "an older backup was restored, or acknowledged work was lost"


class Run:
    """One run of a daemon, as far as this client has heard of it."""

    __slots__ = ("epoch", "is_gone", "is_told", "seen_lsn", "start_lsn", "store_id")

    def __init__(self, welcome: Welcome, lsn: int) -> None:
        self.store_id = welcome.store_id
        self.epoch = welcome.epoch
        self.start_lsn = welcome.start_lsn  # of its first fact
        self.seen_lsn = lsn  # the highest that was heard; whoever hears one raises it
        self.is_gone = False  # that it, or the end of it, is no more has been said
        self.is_told = False  # what it says has been found to contradict something, and that has been said

    def is_same(self, other: "Run") -> bool:
        return (self.store_id, self.epoch, self.start_lsn) == (other.store_id, other.epoch, other.start_lsn)


class Mark(NamedTuple):
    """What had been heard at some moment."""

    run: Run
    lsn: int


class Rollback(NamedTuple):
    """A contradiction: what was heard, and what stands instead."""

    reason: str
    details: dict[str, str | int | bool]


class History:
    """What all connections of one client have heard of their store. `count`: how often it went back."""

    __slots__ = ("_runs", "count", "last", "newest")

    def __init__(self) -> None:
        # In the order in which they were first heard of: of these a connection may still deliver something.
        self._runs: deque[Run] = deque(maxlen=_RUNS_MAX)
        self.newest: Run | None = None
        self.count = 0
        self.last: Rollback | None = None

    def mark(self) -> Mark | None:
        """Return what has been heard by now: to be kept with a hello that is about to be sent."""
        return Mark(self.newest, self.newest.seen_lsn) if self.newest is not None else None

    def welcomed(self, welcome: Welcome, lsn: int, mark: Mark | None) -> Run:
        """Take in a welcome; a contradiction raises `count`.

        Args:
            lsn: of the reply.
            mark: of the moment when its hello was sent.
        Returns: the run that the replies of this connection belong to.
        """
        known = self.newest
        run = self._run_of(welcome, lsn)
        if known is None:
            self.newest = run
        elif run is known:
            if mark is not None and mark.run is known and lsn < mark.lsn:
                # Two copies were started in the same second.
                self.newest = run = Run(welcome, lsn)
                self._runs.remove(known)
                self._runs.append(run)
                self._went_back(known, mark.lsn, run)
        elif _is_later(run, known, mark):
            self.newest = run
            self._compare(known, run)
        else:
            self._compare(run, known)
        return run

    def _run_of(self, welcome: Welcome, lsn: int) -> Run:
        said = Run(welcome, lsn)
        for run in (self.newest, *self._runs):
            if run is not None and run.is_same(said):
                run.seen_lsn = max(run.seen_lsn, lsn)
                return run
        self._runs.append(said)
        return said

    def heard(self, run: Run) -> None:
        """Look again at a run that is not the newest: more of what it had said was heard."""
        assert self.newest is not None
        self._compare(run, self.newest)

    def _compare(self, earlier: Run, later: Run) -> None:
        if earlier.is_gone or later.is_told:
            return
        is_another = earlier.store_id != later.store_id
        if is_another or earlier.epoch >= later.epoch or earlier.seen_lsn >= later.start_lsn:
            self._went_back(earlier, earlier.seen_lsn, later)

    def _went_back(self, earlier: Run, seen_lsn: int, later: Run) -> None:
        earlier.is_gone = later.is_told = True
        self.count += 1
        if earlier.store_id != later.store_id:
            reason = (
                f"another store answers: {later.store_id}, epoch {later.epoch}, LSN {later.seen_lsn}; before it was "
                f"{earlier.store_id}, epoch {earlier.epoch}, LSN {seen_lsn}"
            )
        else:
            reason = (
                f"the store went back: LSN {seen_lsn} was there in epoch {earlier.epoch}, and epoch {later.epoch} "
                f"began at LSN {later.start_lsn} and is at {later.seen_lsn} ({_WHY})"
            )
        self.last = Rollback(
            reason,
            {
                "store_id": later.store_id,
                "epoch": later.epoch,
                "lsn": later.seen_lsn,
                "seen_store_id": earlier.store_id,
                "seen_epoch": earlier.epoch,
                "seen_lsn": seen_lsn,
            },
        )


def _is_later(run: Run, known: Run, mark: Mark | None) -> bool:
    """Tell whether a run that was just welcomed began after the newest one that is known."""
    if mark is not None and mark.run is known:
        return True  # its hello was sent when that one was known
    if run.store_id == known.store_id:
        return run.epoch > known.epoch
    return mark is None or mark.run.store_id != run.store_id
