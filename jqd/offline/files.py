"""The file systems that the tools work on: one that keeps its writes to itself, one for an operator's hands.

Knows:         whose a new file is, how a running daemon is noticed, what a read error leaves readable.
Must not know: segments, frames, what a file is for.

    Overlay           over any other: reads go through, writes stay in memory. What the daemon does at its start can be
                      tried on it, and so can a repair, while nothing below is touched, not even a lock.
    OperatorFiles     the real one. What root makes in a directory of the daemon's user belongs to that user.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jqd.errors import DataDirLocked, DataDirUnusable
from jqd.storage.directory import LOCK_NAME
from jqd.storage.fs import FileSystem, RealFileSystem, open_error

# Around bytes that cannot be read the rest is read in pieces down to this size: the smallest sector of a disk.
_PIECE_BYTES: Final = 512
_READ_BYTES: Final = 8 << 20


class Overlay:
    """Implements `FileSystem` over `base`, which it only reads."""

    def __init__(self, base: FileSystem) -> None:
        self._base = base
        self._files: dict[str, bytearray | str | None] = {}  # by path; a path below: renamed; None: removed
        self._open: dict[int, bytearray] = {}
        self._next_handle = -2  # negative ones are ours; -1 stands for the lock

    def make_directory(self, path: str) -> None:
        """Do nothing: a directory is there as soon as a file is put into it."""

    def list_directory(self, path: str) -> list[str]:
        names = set(self._base.list_directory(path))
        for file, content in self._files.items():
            directory, _, name = file.rpartition("/")
            if directory == path.rstrip("/"):
                (names.discard if content is None else names.add)(name)
        return list(names)

    def sync_directory(self, path: str) -> None:
        """Nothing here outlives the process."""

    def lock(self, path: str) -> int | None:  # noqa: ARG002
        """Take no lock: nobody else sees what is written here."""
        return -1

    def create(self, path: str) -> int:
        content = self._files[path] = bytearray()
        return self._handle(content)

    def open(self, path: str) -> int:
        content = self._files.get(path, path)
        if content is None:
            raise FileNotFoundError(2, os.strerror(2), path)
        return self._base.open(content) if isinstance(content, str) else self._handle(content)

    def size_of(self, path: str) -> int:
        content = self._files.get(path, path)
        if content is None:
            raise FileNotFoundError(2, os.strerror(2), path)
        return self._base.size_of(content) if isinstance(content, str) else len(content)

    def read(self, handle: int, offset: int, count: int) -> bytes:
        if handle < 0:
            return bytes(self._open[handle][offset : offset + count])
        return self._base.read(handle, offset, count)

    def write(self, handle: int, data: bytes | memoryview) -> int:
        self._open[handle] += data
        return len(data)

    def sync(self, handle: int) -> None:
        """See `sync_directory`."""

    def close(self, handle: int) -> None:
        if handle >= 0:
            self._base.close(handle)
        elif handle != -1:
            del self._open[handle]

    def rename(self, old: str, new: str) -> None:
        self._files[new] = self._files.get(old, old)
        self._files[old] = None

    def unlink(self, path: str) -> None:
        self._files[path] = None

    def cut(self, handle: int, size: int) -> None:
        del self._open[handle][size:]

    def allocate(self, path: str, size: int) -> None:  # noqa: ARG002
        self._files[path] = bytearray()

    def free_bytes(self, path: str) -> int:
        return self._base.free_bytes(path)

    def random_bytes(self, count: int) -> bytes:
        return self._base.random_bytes(count)

    def _handle(self, content: bytearray) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle - 1
        self._open[handle] = content
        return handle


class OperatorFiles(RealFileSystem):
    """The real file system for whoever repairs `directory`, which may be root: see the file's card."""

    def __init__(self, directory: str) -> None:
        try:
            status = Path(directory).stat()
        except OSError as error:
            raise open_error(error, directory) from error
        self._owner = (status.st_uid, status.st_gid)

    def make_directory(self, path: str) -> None:
        super().make_directory(path)
        if os.geteuid() == 0:
            os.chown(path, *self._owner, follow_symlinks=False)

    def lock(self, path: str) -> int | None:
        return self._given_away(super().lock(path))

    def create(self, path: str) -> int:
        handle = super().create(path)
        self._given_away(handle)
        return handle

    def _given_away(self, handle: int | None) -> int | None:
        if handle is not None and os.geteuid() == 0:
            os.fchown(handle, *self._owner)
        return handle


@contextlib.contextmanager
def reading(directory: str) -> Iterator[tuple[FileSystem, bool]]:
    """Give the files of a data directory to somebody who only reads, and whether a daemon runs on it.

    Raises:
        DataDirUnusable: it cannot be read.
        DataDirLocked: a daemon removed a file before it was read.
    """
    files = OperatorFiles(directory)
    is_running = _is_locked(f"{directory}/{LOCK_NAME}")
    try:
        yield files, is_running
    except DataDirUnusable as error:
        if is_running and isinstance(error.__cause__, FileNotFoundError):
            raise DataDirLocked(f"{directory}: the daemon changed it meanwhile: try again") from error
        raise


def _is_locked(path: str) -> bool:
    """Tell whether a process holds this lock. Nothing is made or written; if it is free it is held for a moment.

    A daemon that starts in just that moment ends with exit code 75, and is started again.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise open_error(error, path) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def read_what_can_be_read(fs: FileSystem, path: str) -> tuple[bytes, list[int]]:
    """Return the content of a file, with zeros where the disk does not give it back, and where these pieces begin.

    Zeros are never good: each byte of a log is under a checksum.
    """
    parts: list[bytes] = []
    holes: list[int] = []
    offset, size = 0, _READ_BYTES
    handle = fs.open(path)
    try:
        while True:
            try:
                part = fs.read(handle, offset, size)
            except OSError:
                if size > _PIECE_BYTES:
                    size //= 2  # a failed read takes the disk seconds, so the bad piece is closed in on
                    continue
                holes.append(offset)
                part = bytes(_PIECE_BYTES)
            if not part:
                return b"".join(parts), holes
            parts.append(part)
            offset += len(part)
            size = min(size * 2, _READ_BYTES)
    finally:
        fs.close(handle)
