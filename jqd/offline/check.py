"""What is in a log and what is wrong with it: for `jqctl wal stat` and `verify`, and before and after a repair.

Knows:         who can find fault with a log: recovery, a fact that cannot be applied, an index that disagrees.
Must not know: what could be done about it.

The verdict is not made here. The daemon's own recovery is run over an `Overlay`, where it may cut and write as it
likes, and whatever it refuses is the answer.
"""

import gc
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from jqd.core.changes import decode_batch
from jqd.core.engine import Engine, ReplayFailed
from jqd.core.model import JobState
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.errors import Corruption, UnsupportedFormat
from jqd.offline.files import Overlay
from jqd.offline.walk import Entry, Log
from jqd.storage.base import RecoveryReport
from jqd.storage.directory import WHAT_TO_DO
from jqd.storage.fs import FileSystem
from jqd.storage.store_file import StoreFile
from jqd.storage.wal import WalStore


class Problem(NamedTuple):
    """One thing that is wrong.

    kind: damaged      recovery refuses: bytes are damaged, missing or in the wrong place
          unsupported  recovery refuses: a newer jqd wrote this
          poison       a record is whole, but what it says cannot be applied
          invariant    recovery would start, and the state that comes out is inconsistent
    lsn:  the first that cannot be trusted, as far as that is known.
    """

    kind: str
    message: str
    file: str
    offset: int
    lsn: int | None


@dataclass
class Findings:
    """What a log holds, up to the first thing that is wrong.

    Attributes:
        engine: with the state at the end of the good part. A poison record may have been applied in part.
        recovery: what the daemon would say of its start; None: it would not.
        poison: the record that cannot be applied.
        kinds: changes by kind; only if they were asked for.
    """

    log: Log
    engine: Engine
    problems: list[Problem] = field(default_factory=list)
    recovery: RecoveryReport | None = None
    poison: Entry | None = None
    kinds: Counter[str] = field(default_factory=Counter)
    oldest_wall_ms: int | None = None
    newest_wall_ms: int | None = None

    @property
    def state(self) -> State:
        return self.engine.state

    @property
    def public_id(self) -> str | None:
        return self.log.store.public_id.hex() if isinstance(self.log.store, StoreFile) else None

    @property
    def is_clean(self) -> bool:
        """Whether the daemon was stopped, and did not just end."""
        return self.recovery is not None and self.recovery.clean

    def jobs_by_state(self) -> dict[str, int]:
        return {state.wire_name: self.state.counts()[state] for state in JobState}


def examine(fs: FileSystem, path: str, *, kinds: bool = False) -> Findings:
    """Read a log, apply it, and let recovery judge it.

    Args:    kinds: also count the changes by their kind.
    Raises:  DataDirUnusable: it cannot be read, or is not a data directory of jqd.
    """
    log = Log(fs, path)
    found = Findings(log, Engine(State(), Identity(server="", store_id="")))
    verdict = ask_recovery(fs, path)
    if isinstance(verdict, RecoveryReport):
        found.recovery = verdict
    else:
        kind = "unsupported" if isinstance(verdict, UnsupportedFormat) else "damaged"
        file, offset, lsn = path, 0, None
        if isinstance(verdict, Corruption):
            file, offset, lsn = verdict.file, verdict.offset, verdict.lsn
        message = str(verdict).removesuffix(f"; {WHAT_TO_DO}")
        found.problems.append(Problem(kind, message, file, offset, lsn))
    _apply(found, kinds=kinds)
    return found


def check_state(found: Findings) -> None:
    """Add what is wrong with the state that came out. O(all jobs of each queue)."""
    try:
        found.state.check()
    except AssertionError as error:
        message = f"LSN {found.state.lsn}: the state is inconsistent: {error}: a mistake in jqd, no damage"
        found.problems.append(Problem("invariant", message, found.log.path, 0, found.state.lsn))


def ask_recovery(fs: FileSystem, path: str) -> RecoveryReport | Corruption | UnsupportedFormat:
    """Return what recovery says of a log, or what it refuses it for. Nothing is changed."""
    try:
        store = WalStore(path, fs=Overlay(fs))
        for _ in store.load_snapshot():
            pass
        for _ in store.load():
            pass
    except (Corruption, UnsupportedFormat) as error:
        return error
    return store.recovery


def _apply(found: Findings, *, kinds: bool) -> None:
    is_collecting = gc.isenabled()
    gc.disable()  # as the daemon does: nothing is garbage, and looking for it would double the time
    try:
        for part in found.log.parts():
            found.engine.restore(part)
        for entry in found.log.entries():
            record = entry.record
            try:
                found.engine.replay(record.first_lsn, record.count, record.payload)
            except ReplayFailed as error:
                file = found.log.directory.path_of(found.log.segments[entry.segment_no].name)
                message = f"{file}: byte {entry.offset}: a record cannot be applied: {error}"
                found.poison = entry
                found.problems.append(Problem("poison", message, file, entry.offset, error.lsn))
                return
            if kinds:
                found.kinds.update(type(change).__name__ for change in decode_batch(record.payload).changes)
            found.newest_wall_ms = found.state.now.wall_ms
            if found.oldest_wall_ms is None:
                found.oldest_wall_ms = found.newest_wall_ms
    finally:
        if is_collecting:
            gc.enable()
