"""The data directory: its lock, the names in it, and replacing a file as a whole.

Knows:         which name holds what, in what order a file becomes durable.
Must not know: what stands in a segment, which segment is needed.

    lock                        held from the first step to the last; empty
    store                       who this log is (store_file.py)
    0000000000000001.wal ...    segments, their numbers without a hole; from 1, or from where the older snapshot ends
    00000000000003e8.snap       snapshots, named by their LSN: the newest two
    *.tmp                       half-made files; worth nothing, removed after a good start
    reserve                     space set aside for a full disk (reserve.py); no content
    quarantine/                 copies of torn tails that recovery cut, damaged snapshots; never read, never removed

Any other name is left alone.

Every file but the lock is made in the same order: written under its name + `.tmp`, synced, renamed,
directory synced. So a name always stands for a whole file, after a power loss at any point.

Sources: reliability.md 2.1 and fault table rows 13, 14, 28; ALICE (OSDI 2014); etcd wal/wal.go cut.
"""

import re
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from copy import copy
from posixpath import dirname

from jqd.errors import Corruption, DataDirLocked, UnsupportedFormat
from jqd.storage.fs import FileSystem, open_error, read_error
from jqd.storage.record import STORE_ID_BYTES
from jqd.storage.segment import segment_name, segment_number, write_all
from jqd.storage.store_file import (
    PUBLIC_ID_BYTES,
    STORE_FORMAT,
    Newer,
    StoreFile,
    decode_store_file,
    encode_store_file,
)

LOCK_NAME = "lock"
STORE_NAME = "store"
QUARANTINE_NAME = "quarantine"
TMP_SUFFIX = ".tmp"

# One read call; larger ones gain nothing, and a file's size need not be asked for.
_READ_BYTES = 8 * 1024 * 1024

WHAT_TO_DO = (
    "nothing was changed: `jqctl wal verify DIR` says more; keep a copy of the directory, then restore a backup "
    "into it or look at what `jqctl wal repair DIR` would cut"
)


_SNAPSHOT_NAME = re.compile(r"([0-9a-f]{16})\.snap")


def snapshot_name(lsn: int) -> str:
    """Return the name of a snapshot's file: names sort like LSNs."""
    return f"{lsn:016x}.snap"


def snapshot_lsn(name: str) -> int | None:
    """Return the LSN in a snapshot's name, or None if the name is none."""
    match = _SNAPSHOT_NAME.fullmatch(name)
    return int(match[1], 16) if match else None


class Directory:
    """A data directory that this process has locked.

    Raises:
        DataDirUnusable: it cannot be made, entered or written.
        DataDirLocked: another process has it. Nothing in it was touched.
    """

    def __init__(self, fs: FileSystem, path: str) -> None:
        self._fs = fs
        self.path = path
        try:
            fs.make_directory(path)
            lock = fs.lock(self.path_of(LOCK_NAME))
        except OSError as error:
            raise open_error(error, path) from error
        if lock is None:
            raise DataDirLocked(f"data directory {path} is in use by another jqd")
        self._lock = lock

    def path_of(self, name: str) -> str:
        """Return the path of a name in the directory."""
        return f"{self.path}/{name}"

    def through(self, fs: FileSystem) -> "Directory":
        """Return the same directory, reached through another file system; the lock stays with this one."""
        twin = copy(self)
        twin._fs = fs
        return twin

    def unlock(self) -> None:
        """Let others have the directory."""
        self._fs.close(self._lock)

    def segment_numbers(self) -> list[int]:
        """Return the numbers of the segments that exist, rising."""
        numbers = map(segment_number, self._fs.list_directory(self.path))
        return sorted(number for number in numbers if number is not None)

    def snapshot_lsns(self) -> list[int]:
        """Return the LSNs of the snapshots that exist, falling."""
        lsns = map(snapshot_lsn, self._fs.list_directory(self.path))
        return sorted((lsn for lsn in lsns if lsn is not None), reverse=True)

    def read(self, name: str) -> bytes:
        """Return the whole content of a file; Corruption if the disk does not give it back."""
        path = self.path_of(name)
        handle = self._fs.open(path)
        parts = []
        offset = 0
        try:
            while part := self._fs.read(handle, offset, _READ_BYTES):
                parts.append(part)
                offset += len(part)
        except OSError as error:
            raise read_error(error, path, offset, WHAT_TO_DO) from error
        finally:
            self._fs.close(handle)
        return b"".join(parts)

    def temporary_path_of(self, name: str) -> str:
        """Return where `name` stands until it is published."""
        return self.path_of(name) + TMP_SUFFIX

    def create(self, name: str) -> int:
        """Open a temporary file for what will be `name` once it is synced and published."""
        return self._fs.create(self.temporary_path_of(name))

    def remove_temporary(self, name: str) -> None:
        """Remove what was to become `name`; it may have become it already."""
        self._unlink(self.temporary_path_of(name))

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, durably, in the order given: none of them before the one before it.

        When a call fails it can be repeated: files that are gone are fine.
        """
        for name in names:
            self._unlink(self.path_of(name))
            self._fs.sync_directory(self.path)

    def _unlink(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.unlink(path)

    def replace(self, name: str, data: bytes) -> None:
        """Make `data` the content of a file, durably: after a crash it is the old or the new one."""
        handle = self.create(name)
        try:
            write_all(self._fs, handle, data)
            self._fs.sync(handle)
        finally:
            self._fs.close(handle)
        self.publish(name)

    def publish(self, name: str) -> None:
        """Give a synced temporary file its name, durably."""
        path = self.path_of(name)
        self._fs.rename(path + TMP_SUFFIX, path)
        self._fs.sync_directory(dirname(path))

    def quarantine(self, segment_no: int, offset: int, tail: bytes) -> str:
        """Keep a copy of bytes that are about to be cut; return its path.

        The name tells where they stood. A crash between copy and cut leads to the same name again, so
        that crash loops do not fill the disk.
        """
        self._make_quarantine()
        name = f"{QUARANTINE_NAME}/{segment_no:016x}-{offset}.torn"
        self.replace(name, tail)
        return self.path_of(name)

    def size_of(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return self._fs.size_of(self.path_of(name))

    def move_to_quarantine(self, name: str) -> None:
        """Put away a file that is damaged: nobody but an operator may remove what cannot be read.

        Nor may another one of its name replace it: it gets a number. The same file again is no other one: a crash
        in the middle of the move can leave it at both places, and crash loops must not fill the disk.
        """
        self._make_quarantine()
        kept = f"{QUARANTINE_NAME}/{name}"
        number = 1
        while self._exists(kept) and not self._is_same(name, kept):
            number += 1
            kept = f"{QUARANTINE_NAME}/{name}.{number}"
        self._fs.rename(self.path_of(name), self.path_of(kept))
        self._fs.sync_directory(self.path_of(QUARANTINE_NAME))
        self._fs.sync_directory(self.path)

    def _exists(self, name: str) -> bool:
        try:
            self.size_of(name)
        except FileNotFoundError:
            return False
        return True

    def _is_same(self, name: str, other: str) -> bool:
        """Tell whether two files have the same content. What cannot be read is like nothing else."""
        if self.size_of(name) != self.size_of(other):
            return False
        with ExitStack() as stack:
            handles = []
            for each in (name, other):
                handles.append(handle := self._fs.open(self.path_of(each)))
                stack.callback(self._fs.close, handle)
            offset = 0
            try:
                while True:
                    part, twin = (self._fs.read(handle, offset, _READ_BYTES) for handle in handles)
                    if part != twin or not part:
                        return part == twin
                    offset += len(part)
            except OSError:
                return False

    def _make_quarantine(self) -> None:
        # Durable before anything is in it: what is moved into it leaves its old place for good.
        self._fs.make_directory(self.path_of(QUARANTINE_NAME))
        self._fs.sync_directory(self.path)

    def remove_temporary_files(self) -> None:
        """Remove what interrupted starts, rotations and snapshots left behind."""
        for name in self._fs.list_directory(self.path):
            final = name.removesuffix(TMP_SUFFIX)
            ours = final == STORE_NAME or segment_number(final) is not None or snapshot_lsn(final) is not None
            if final != name and ours:
                self._fs.unlink(self.path_of(name))

    def open_store_file(self) -> StoreFile:
        """Return what the file `store` says; make a new store if the directory holds none."""
        path = self.path_of(STORE_NAME)
        if STORE_NAME not in self._fs.list_directory(self.path):
            held = [segment_name(number) for number in self.segment_numbers()]
            held += [snapshot_name(lsn) for lsn in self.snapshot_lsns()]
            if held:
                message = f"{path} is missing, but {held[0]} exists; {WHAT_TO_DO}"
                raise Corruption(message, file=path, offset=0)
            return self._create_store()
        store = decode_store_file(self.read(STORE_NAME))
        if isinstance(store, Newer):
            raise UnsupportedFormat(f"{path} has format {store.format}, this jqd knows {STORE_FORMAT}")
        if store is None:
            raise Corruption(f"{path} is damaged; {WHAT_TO_DO}", file=path, offset=0)
        return store

    def write_store_file(self, store: StoreFile) -> None:
        """Replace the file `store`."""
        self.replace(STORE_NAME, encode_store_file(store))

    def _create_store(self) -> StoreFile:
        # A crash may have come between making the directory and syncing its parent, so this is done
        # whenever there is no store yet, and never again.
        self._fs.sync_directory(dirname(self.path.rstrip("/")) or ".")
        store = StoreFile(self._fs.random_bytes(STORE_ID_BYTES), self._fs.random_bytes(PUBLIC_ID_BYTES))
        self.write_store_file(store)
        return store
