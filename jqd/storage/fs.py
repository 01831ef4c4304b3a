"""The only door from storage to the operating system, and the only place that reads errno.

Knows:         files, directories, descriptors, errno.
Must not know: frames, segments, recovery.

Tests and the simulator put their own `FileSystem` in its place, so it has no call that storage can do
without. Its methods raise OSError; `write_error` and `open_error` turn that into jqd's errors.

Sources: open(2), fdatasync(2), flock(2), posix_fallocate(3), statvfs(3); reliability.md fault table rows 8 to 14 and 28.
"""

# Paths are str from end to end, as the operating system takes them: pathlib would only wrap them.
# ruff: noqa: PTH102, PTH104, PTH108, PTH116, PTH208

import errno
import fcntl
import os
from typing import Protocol

from jqd.errors import Corruption, DataDirUnusable, DiskFull, StorageError, WriteFailed

FILE_MODE = 0o600  # jobs carry secrets of their users: nobody but the daemon's user reads them
DIRECTORY_MODE = 0o700

# No symbolic link is followed: a link planted in the data directory must not lead writes elsewhere.
# Nothing is inherited by child processes, or the lock would outlive the daemon.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNUSABLE = frozenset(
    {
        errno.EACCES,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


class FileSystem(Protocol):
    """What storage asks of an operating system. Paths are str, handles are ints."""

    def make_directory(self, path: str) -> None:
        """Create a directory for its owner only; one that exists is fine."""
        ...

    def list_directory(self, path: str) -> list[str]:
        """Return the names in a directory, in no order."""
        ...

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable: created, renamed and removed ones."""
        ...

    def lock(self, path: str) -> int | None:
        """Create and lock a file until the handle is closed; None if another holds it."""
        ...

    def create(self, path: str) -> int:
        """Open an empty file for writing; one that exists loses its content."""
        ...

    def open(self, path: str) -> int:
        """Open a file for reading."""
        ...

    def size_of(self, path: str) -> int:
        """Return the size of a file in bytes."""
        ...

    def read(self, handle: int, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; empty at the end of the file."""
        ...

    def write(self, handle: int, data: bytes | memoryview) -> int:
        """Write at the end of what was written so far; return how many bytes were taken, >= 1."""
        ...

    def sync(self, handle: int) -> None:
        """Make the content and size of a file durable, not its name."""
        ...

    def close(self, handle: int) -> None:
        """Give a handle back."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, at once, replacing what had that name."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a name."""
        ...

    def cut(self, handle: int, size: int) -> None:
        """Take back what a failed write may have left: the file has `size` bytes, and is written on from there."""
        ...

    def allocate(self, path: str, size: int) -> None:
        """Give a file, made if it does not exist, room for `size` bytes that nobody else can take."""
        ...

    def free_bytes(self, path: str) -> int:
        """Return how much this user may still write to the file system that `path` is on."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """Return bytes that nobody can guess."""
        ...


class RealFileSystem:
    """Linux."""

    def make_directory(self, path: str) -> None:
        try:
            os.mkdir(path, DIRECTORY_MODE)
        except FileExistsError:
            return  # if it is no directory, listing it will say so

    def list_directory(self, path: str) -> list[str]:
        return os.listdir(path)

    def sync_directory(self, path: str) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def lock(self, path: str) -> int | None:
        # flock, not a POSIX record lock: that one is lost when any descriptor of the file is closed.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, FILE_MODE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        return handle

    def create(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, FILE_MODE)

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | _FLAGS)

    def size_of(self, path: str) -> int:
        return os.stat(path, follow_symlinks=False).st_size

    def read(self, handle: int, offset: int, count: int) -> bytes:
        return os.pread(handle, count, offset)

    def write(self, handle: int, data: bytes | memoryview) -> int:
        return os.write(handle, data)

    def sync(self, handle: int) -> None:
        # fdatasync also writes a changed size; what it leaves out are times that nobody reads.
        os.fdatasync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def cut(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)
        os.lseek(handle, size, os.SEEK_SET)

    def allocate(self, path: str, size: int) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | _FLAGS, FILE_MODE)
        try:
            os.posix_fallocate(handle, 0, size)
        finally:
            os.close(handle)

    def free_bytes(self, path: str) -> int:
        about = os.statvfs(path)
        return about.f_bavail * about.f_frsize

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)


def is_full(error: OSError) -> bool:
    """Tell whether a call failed for want of space, on the disk or in a quota."""
    return error.errno in _NO_SPACE


def write_error(error: OSError, path: str) -> StorageError:
    """Return what a failed write, sync, create or rename under `path` means for the daemon."""
    leaf = DiskFull if is_full(error) else WriteFailed
    return leaf(f"{error.filename or path}: {_reason(error)}")


def open_error(error: OSError, path: str) -> StorageError:
    """As `write_error`, for the first steps into the data directory, where the setting may be wrong.

    Later the same errno is a fault: EROFS in a running daemon is a disk that the kernel gave up.
    """
    if error.errno in _UNUSABLE:
        return DataDirUnusable(f"data directory {path} cannot be used: {_reason(error)}")
    return write_error(error, path)


def read_error(error: OSError, path: str, offset: int, what_to_do: str) -> StorageError:
    """Return what it means that bytes of an open file cannot be read: they are as good as damaged."""
    message = f"{path}: the bytes from {offset} cannot be read: {_reason(error)}; {what_to_do}"
    return Corruption(message, file=path, offset=offset)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
