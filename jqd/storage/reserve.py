"""Space that is set aside: a file that is given up when a write finds the disk full, so that it can be repeated.

Knows:         which calls may be repeated after they failed for want of space, and how.
Must not know: segments, records, who may still write when space is low (server/watermark.py).

`Reserve` stands between storage and the operating system. New jobs are refused long before the disk is
full, but the margin is anybody's: another program can fill it. What is then still to be written is how
jobs end: acks, failures, cancels, the clean mark of a stop. For them stands the file `reserve`, filled with
nothing, in the data directory.

    a call finds no space (ENOSPC, EDQUOT)   what is done
    write                                    give the reserve up, cut the file to what was written before
                                             this call, write again
    create, rename, make_directory           give the reserve up, call again
    sync, sync_directory                     nothing: the failure is final, as every failed sync
    any of them without a reserve            nothing: the failure is final

**Why a write may be repeated and a sync may not.** A sync that failed may have thrown away pages that the
kernel had accepted, and a second one would say nothing about them. A write that failed accepted nothing that
anybody relies on: no reply leaves before a later sync of the same bytes, and that sync is made once. What a
failed write may have left behind its start is cut before the bytes are written again, so that a frame
stands in the file once. A crash in between leaves half a frame at the end: a torn tail, like any other.

**Giving up** removes the file and syncs the directory: the blocks of a removed file are free for others only
when the removal is committed (ext4, XFS). If that sync fails, it is a failed sync, and final.

beanstalkd sets room aside for the end of each job when it takes it. Here one record ends many jobs, and nobody
knows before how many heartbeats and retries come first, so there is one reserve for all.

The file is allocated, not written, and not synced: after a power loss it may be short. The next start
allocates it again. Where a file system cannot set blocks aside (ZFS), or shares them between files, the
reserve is worth less than it says, and a full disk ends the daemon as without it: exit 74, nothing lost.

Sources: reliability.md fault row 9; beanstalkd walg.c walresvput; posix_fallocate(3), write(2).
"""

from collections.abc import Callable
from posixpath import dirname
from typing import TypeVar

from jqd.storage.fs import FileSystem, is_full

RESERVE_NAME = "reserve"

_Result = TypeVar("_Result")


class Reserve:
    """A `FileSystem` that has something to give up. Calls that it does not name go to `fs` as they are.

    Args:
        path: of the file, in the data directory.
        size: its bytes; 0: there is none, and every failure is final.
    """

    def __init__(self, fs: FileSystem, path: str, size: int) -> None:
        self._fs = fs
        self._path = path
        self._sizes: dict[int, int] = {}  # handle of a file being written -> bytes written to it
        self.size = size
        self.is_held = False
        self.list_directory = fs.list_directory
        self.sync_directory = fs.sync_directory
        self.lock = fs.lock
        self.open = fs.open
        self.size_of = fs.size_of
        self.read = fs.read
        self.sync = fs.sync
        self.unlink = fs.unlink
        self.cut = fs.cut
        self.allocate = fs.allocate
        self.free_bytes = fs.free_bytes
        self.random_bytes = fs.random_bytes

    # --- the reserve --------------------------------------------------------------------------

    def find(self) -> None:
        """Note whether an earlier run left a reserve. For the owner of the lock, before anything is written."""
        if self.size:
            self.is_held = RESERVE_NAME in self._fs.list_directory(dirname(self._path))

    def take(self) -> None:
        """Allocate the reserve, unless that would take what the log itself is about to need."""
        if not self.size:
            return
        if not self.is_held and self._fs.free_bytes(dirname(self._path)) < 2 * self.size:
            return
        self.is_held = True  # as much as there is of it
        try:
            self._fs.allocate(self._path, self.size)
        except OSError as error:
            self._give_up(error)

    @property
    def is_lost(self) -> bool:
        """Whether there ought to be a reserve and is none."""
        return self.size > 0 and not self.is_held

    def _give_up(self, error: OSError) -> None:
        """Make room after a call that found none; raise its error if that is not what it is about."""
        if not is_full(error) or not self.is_held:
            raise error
        self.is_held = False
        self._fs.unlink(self._path)
        self._fs.sync_directory(dirname(self._path))

    def _repeat(self, call: Callable[[], _Result]) -> _Result:
        try:
            return call()
        except OSError as error:
            self._give_up(error)
        return call()

    # --- calls that need space ----------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        self._repeat(lambda: self._fs.make_directory(path))

    def create(self, path: str) -> int:
        handle = self._repeat(lambda: self._fs.create(path))
        self._sizes[handle] = 0
        return handle

    def write(self, handle: int, data: bytes | memoryview) -> int:
        size = self._sizes[handle]
        try:
            taken = self._fs.write(handle, data)
        except OSError as error:
            self._give_up(error)
            self._fs.cut(handle, size)
            taken = self._fs.write(handle, data)
        self._sizes[handle] = size + taken
        return taken

    def rename(self, old: str, new: str) -> None:
        self._repeat(lambda: self._fs.rename(old, new))

    def close(self, handle: int) -> None:
        self._sizes.pop(handle, None)
        self._fs.close(handle)
