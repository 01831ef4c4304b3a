"""A start of the daemon as far as the disk is concerned: what jqd.server.daemon.recover does, without a word.

Knows:         the store, the engine, in which order one is read into the other.
Must not know: what was wrong with the disk, what is expected of it.
"""

from typing import Final

from jqd.core.engine import Engine
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.storage.fs import FileSystem
from jqd.storage.wal import WalStore
from tests.storage.logs import DATA

IDENTITY: Final = Identity(server="jqd test", store_id="")


def recovered(fs: FileSystem, **options: int) -> tuple[Engine, WalStore]:
    """Return an engine with all that the store has, and the store, ready to be written to.

    Args:   options: of WalStore.
    Raises: what WalStore raises; ReplayFailed: a record that the store vouches for cannot be applied.
    """
    store = WalStore(DATA, fs=fs, **options)
    engine = Engine(State(), IDENTITY)
    for part in store.load_snapshot():
        engine.restore(part)
    for record in store.load():
        engine.replay(record.first_lsn, record.count, record.payload)
    return engine, store
