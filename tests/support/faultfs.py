"""A disk in memory that forgets what was not synced, and fails or stops at any call.

It stands in for `jqd.storage.fs.RealFileSystem`. What it models, as cruel as POSIX allows:

- The content of a file and its name become durable apart: `sync` keeps bytes and size, `sync_directory`
  keeps names. Until then a power loss may keep any subset, in any order, and tear each write.
- `kill` is the end of the process: the page cache stays, locks and handles go.
- A failed sync leaves the page cache in one of the three states that real file systems leave it in.

    disk = FaultDisk()
    disk.on_call = ...              called before each call with (name, path); may raise OSError or Crash
    disk.capacity_bytes = 100_000   from then on it can be full: calls raise ENOSPC, or take a part of a write
    disk.power_loss(DROP)           also KEEP, or tear(random.Random(seed))
"""

import copy
import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

# Calls that change something; the others are `list_directory`, `open`, `size_of`, `read`, `close`, `free_bytes`,
# `random_bytes`.
EFFECTS = frozenset(
    {
        *("make_directory", "lock", "create", "write", "sync", "sync_directory", "rename", "unlink"),
        *("cut", "allocate"),
    }
)

SECTOR_BYTES = 512


class Crash(BaseException):
    """The process or the machine stops here. No code under test may catch it."""


class SyncFailure(Enum):
    """What the page cache holds after a sync that failed (Rebello et al., 2020)."""

    REPORTED_ONCE = "the pages stay dirty, the next sync writes them"
    KEPT_IN_CACHE = "the pages are marked clean: reads show them, the disk never gets them"
    REVERTED = "the pages are dropped: reads show what the disk has"


Fate = Callable[[], float]


def DROP() -> float:  # noqa: N802 - a value in the eyes of its users
    """Nothing unsynced survives."""
    return 0.0


def KEEP() -> float:  # noqa: N802
    """Everything unsynced survives."""
    return 1.0


def tear(rng: random.Random) -> Fate:
    """Each pending operation survives, is lost, or (a write) survives in part."""
    return lambda: rng.choice((0.0, 0.0, 1.0, 1.0, rng.random()))


@dataclass(slots=True)
class File:
    cache: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    # What is not durable yet: (offset, data, number); offset -1: the file was emptied. Numbers rise over the disk.
    pending: list[tuple[int, bytes, int]] = field(default_factory=list)
    shares: bool = False  # cache and durable are another disk's too, until one of the two writes to them

    def own(self) -> "File":
        """Return this file, free to be changed in place."""
        if self.shares:
            self.cache, self.durable, self.shares = bytearray(self.cache), bytearray(self.durable), False
        return self

    def twin(self) -> "File":
        """Return an independent copy, whose bytes are not copied before one of the two changes them."""
        self.shares = True
        return File(self.cache, self.durable, list(self.pending), True)


@dataclass(slots=True)
class Directory:
    cache: dict[str, "File | Directory"] = field(default_factory=dict)
    durable: dict[str, "File | Directory"] = field(default_factory=dict)
    # Names that went and came: (removed, added, what has the added one, number).
    pending: list[tuple[str, str, "File | Directory | None", int]] = field(default_factory=list)


@lru_cache(maxsize=1_024)
def _names_in(path: str) -> tuple[str, ...]:
    return tuple(filter(None, path.split("/")))


class FaultDisk:
    """Implements `jqd.storage.fs.FileSystem`."""

    def __init__(self, seed: int = 0) -> None:
        self.root = Directory()
        self.on_call: Callable[[str, str], None] | None = None
        self.sync_failure = SyncFailure.REPORTED_ONCE
        self.short_writes = False
        self.capacity_bytes: int | None = None
        self.calls: list[tuple[str, str]] = []
        self._handles: dict[int, tuple[File, str]] = {}
        self._locks: dict[str, int] = {}
        self._next_handle = 3
        self._pending_count = 0  # operations that ever became pending
        self._seed = seed
        self._clone_count = 0
        self._made_rng: random.Random | None = None
        self._dead = False

    # --- what tests do ------------------------------------------------------------------------

    def kill(self) -> None:
        """The process ends; the machine goes on, and so does `on_call`."""
        self._handles.clear()
        self._locks.clear()
        self._dead = False

    def power_loss(self, fate: Fate) -> None:
        """The machine stops; `fate` says for each unsynced operation how much of it is kept, 0 to 1."""
        self.kill()
        self._lose(self.root, fate)

    def clone(self) -> "FaultDisk":
        """Return an independent copy, with chances of its own; no file's bytes are copied before they change."""
        twin = copy.copy(self)
        twins: dict[int, File | Directory] = {}  # by the id of what they are of: a file can have two names
        root = _twin_of(self.root, twins)
        assert isinstance(root, Directory)
        twin.root = root
        twin.on_call = None
        twin.calls = list(self.calls)
        twin._handles = {
            handle: (_file_twin_of(file, twins), path) for handle, (file, path) in self._handles.items()
        }
        twin._locks = dict(self._locks)
        self._clone_count += 1
        twin._seed = self._seed * 1_000_003 + self._clone_count
        twin._clone_count = 0
        twin._made_rng = None
        return twin

    def state(self) -> object:
        """Return all that is on the disk or under way to it, hashable: two disks of one state behave alike."""
        return _state_of(self.root, {})

    def file(self, path: str) -> File:
        """Return the file at `path`, as processes see it; it may be changed in place."""
        return self._file(path).own()

    def _file(self, path: str) -> File:
        directory, name = self._parent(path)
        found = directory.cache.get(name)
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if isinstance(found, Directory):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return found

    def content(self, path: str) -> bytes:
        """Return the bytes at `path`, as processes see them."""
        return bytes(self._file(path).cache)

    def overwrite(self, path: str, data: bytes) -> None:
        """Damage: put other bytes, durably, where a file is or is to be."""
        directory, name = self._parent(path)
        file = File(bytearray(data), bytearray(data))
        directory.cache[name] = directory.durable[name] = file

    def used_bytes(self) -> int:
        """Return what all files take, as processes see them."""
        return self._used_bytes(self.root)

    @property
    def open_paths(self) -> list[str]:
        """Return the path of each open handle, the lock's too."""
        return sorted(path for _, path in self._handles.values())

    def remove(self, path: str) -> None:
        """Damage: remove a file durably."""
        directory, name = self._parent(path)
        del directory.cache[name]
        directory.durable.pop(name, None)

    def listing(self, path: str) -> dict[str, bytes]:
        """Return names and contents of the files in a directory."""
        directory = self._directory(path)
        return {name: bytes(f.cache) for name, f in directory.cache.items() if isinstance(f, File)}

    def sizes(self, path: str) -> dict[str, int]:
        """Return names and bytes of the files in a directory."""
        directory = self._directory(path)
        return {name: len(f.cache) for name, f in directory.cache.items() if isinstance(f, File)}

    # --- the calls ----------------------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        self._call("make_directory", path)
        directory, name = self._parent(path)
        if name not in directory.cache:
            self._link(directory, "", name, Directory())

    def list_directory(self, path: str) -> list[str]:
        self._call("list_directory", path)
        return list(self._directory(path).cache)

    def sync_directory(self, path: str) -> None:
        self._call("sync_directory", path)
        directory = self._directory(path)
        directory.durable = dict(directory.cache)
        directory.pending.clear()

    def lock(self, path: str) -> int | None:
        self._call("lock", path)
        if path in self._locks:
            return None
        handle = self._open(self._made(path), path)
        self._locks[path] = handle
        return handle

    def create(self, path: str) -> int:
        self._call("create", path)
        file = self._made(path)
        if file.cache:
            file.own().cache.clear()
            file.pending.append((-1, b"", self._number()))
        return self._open(file, path)

    def open(self, path: str) -> int:
        self._call("open", path)
        return self._open(self._file(path), path)

    def size_of(self, path: str) -> int:
        self._call("size_of", path)
        return len(self._file(path).cache)

    def read(self, handle: int, offset: int, count: int) -> bytes:
        file, path = self._handles[handle]
        self._call("read", path)
        return bytes(file.cache[offset : offset + count])

    def write(self, handle: int, data: bytes | memoryview) -> int:
        file, path = self._handles[handle]
        taken = bytes(data)
        if self.short_writes and len(taken) > 1:
            taken = taken[: self._rng.randrange(1, len(taken))]
        try:
            self._call("write", path)
        except BaseException:
            # A large write is stopped between pages: half of it has reached the page cache.
            self._append(file, taken[: len(taken) // 2])
            raise
        if self.capacity_bytes is not None:
            taken = taken[: self.free_bytes(path)]
            if not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self._append(file, taken)
        return len(taken)

    def sync(self, handle: int) -> None:
        file, path = self._handles[handle]
        try:
            self._call("sync", path)
        except OSError:
            self._lose_track(file)
            raise
        if file.pending:
            durable = file.own().durable
            for offset, data, _ in file.pending:
                apply_write(durable, offset, data)
            file.pending.clear()

    def _lose_track(self, file: File) -> None:
        """A sync of this file has failed."""
        if self.sync_failure is not SyncFailure.REPORTED_ONCE:
            file.pending.clear()
        if self.sync_failure is SyncFailure.REVERTED:
            file.own().cache = bytearray(file.durable)

    def close(self, handle: int) -> None:
        # A double close must not pass: on a real system it closes somebody else's file.
        _, path = self._handles.pop(handle) if not self._dead else (None, "")
        if self._locks.get(path) == handle:
            del self._locks[path]

    def rename(self, old: str, new: str) -> None:
        self._call("rename", new)
        directory, old_name = self._parent(old)
        to, new_name = self._parent(new)
        node = directory.cache[old_name]
        if directory is to:
            self._link(directory, old_name, new_name, node)
            return
        # Each directory keeps its own half: after a power loss both names may be there, or neither.
        self._link(to, "", new_name, node)
        self._unlink(directory, old_name)

    def unlink(self, path: str) -> None:
        self._call("unlink", path)
        directory, name = self._parent(path)
        if name not in directory.cache:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._unlink(directory, name)

    def cut(self, handle: int, size: int) -> None:
        file, path = self._handles[handle]
        self._call("cut", path)
        assert size <= len(file.cache), "cut makes no file longer"
        del file.own().cache[size:]
        # What lies behind the cut is as if it had never been written; it was not synced.
        was_emptied = any(offset < 0 for offset, _, _ in file.pending)
        assert len(file.durable) <= size or was_emptied, "synced bytes are never cut"
        file.pending = [
            (offset, data[: max(0, size - offset)], number)
            for offset, data, number in file.pending
            if offset < size
        ]

    def allocate(self, path: str, size: int) -> None:
        self._call("allocate", path)
        file = self._made(path)
        missing = size - len(file.cache)
        if self.capacity_bytes is not None and missing > self.free_bytes(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if missing > 0:
            self._append(file, bytes(missing))

    def free_bytes(self, path: str) -> int:
        self._call("free_bytes", path)
        if self.capacity_bytes is None:
            return 1 << 50
        return max(0, self.capacity_bytes - self._used_bytes(self.root))

    def random_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    # --- inside -------------------------------------------------------------------------------

    @property
    def _rng(self) -> random.Random:
        # Made when it is first needed: it costs as much as a clone.
        if self._made_rng is None:
            self._made_rng = random.Random(self._seed)
        return self._made_rng

    def _call(self, name: str, path: str) -> None:
        if self._dead:
            raise Crash
        self.calls.append((name, path))
        if self.on_call is not None:
            try:
                self.on_call(name, path)
            except Crash:
                self._dead = True
                raise

    def _number(self) -> int:
        self._pending_count += 1
        return self._pending_count

    def _parent(self, path: str) -> tuple[Directory, str]:
        *parent, name = _names_in(path) or ("",)
        return self._walk(parent, path), name

    def _directory(self, path: str) -> Directory:
        return self._walk(_names_in(path), path)

    def _walk(self, names: Sequence[str], path: str) -> Directory:
        found: File | Directory = self.root
        for name in names:
            if not isinstance(found, Directory):
                break
            if name not in found.cache:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            found = found.cache[name]
        if not isinstance(found, Directory):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return found

    def _link(self, directory: Directory, removed: str, added: str, node: File | Directory) -> None:
        directory.cache.pop(removed, None)
        directory.cache[added] = node
        directory.pending.append((removed, added, node, self._number()))

    def _used_bytes(self, directory: Directory) -> int:
        nodes = directory.cache.values()
        return sum(len(n.cache) if isinstance(n, File) else self._used_bytes(n) for n in nodes)

    def _unlink(self, directory: Directory, name: str) -> None:
        del directory.cache[name]
        directory.pending.append((name, "", None, self._number()))

    def _made(self, path: str) -> File:
        directory, name = self._parent(path)
        if name not in directory.cache:
            self._link(directory, "", name, File())
        return self._file(path)

    def _open(self, file: File, path: str) -> int:
        self._next_handle += 1
        self._handles[self._next_handle] = (file, path)
        return self._next_handle

    def _append(self, file: File, data: bytes) -> None:
        file.pending.append((len(file.cache), data, self._number()))
        file.own().cache += data

    def _lose(self, directory: Directory, fate: Fate) -> None:
        names = dict(directory.durable)
        for removed, added, node, _ in directory.pending:
            if fate() >= 0.5:
                names.pop(removed, None)
                if node is not None:
                    names[added] = node
        directory.pending.clear()
        directory.durable = names
        directory.cache = dict(names)
        seen: set[int] = set()
        for node in names.values():
            if isinstance(node, Directory):
                self._lose(node, fate)
            elif id(node) not in seen:
                seen.add(id(node))
                self._lose_pages(node, fate)

    def _lose_pages(self, file: File, fate: Fate) -> None:
        file.own()
        for offset, data, _ in file.pending:
            kept = fate()
            if kept == 1.0:
                apply_write(file.durable, offset, data)
            elif kept > 0.0:
                apply_write(file.durable, offset, self._torn(data, kept))
        file.pending.clear()
        file.cache = bytearray(file.durable)

    def _torn(self, data: bytes, kept: float) -> bytes:
        """Cut a write short, or fill a part of it with zeros or garbage as sectors may be."""
        cut = int(len(data) * kept)
        match self._rng.randrange(4):
            case 0:
                return data[:cut]
            case 1:
                return data[:cut] + bytes(len(data) - cut)
            case 2:
                return data[:cut] + self._rng.randbytes(len(data) - cut)
            case _:
                # The end is there, the beginning is not.
                return bytes(cut) + data[cut:]


def _twin_of(node: "File | Directory", twins: dict[int, "File | Directory"]) -> "File | Directory":
    """Copy a file or a tree of them; a node that was copied before keeps its one copy."""
    if isinstance(node, File):
        return _file_twin_of(node, twins)
    if id(node) in twins:
        return twins[id(node)]
    twins[id(node)] = twin = Directory()
    twin.cache = {name: _twin_of(each, twins) for name, each in node.cache.items()}
    twin.durable = {name: _twin_of(each, twins) for name, each in node.durable.items()}
    twin.pending = [
        (removed, added, each and _twin_of(each, twins), number)
        for removed, added, each, number in node.pending
    ]
    return twin


def _file_twin_of(file: File, twins: dict[int, "File | Directory"]) -> File:
    twin = twins.get(id(file))
    if twin is None:
        twins[id(file)] = twin = file.twin()
    assert isinstance(twin, File)
    return twin


def _state_of(node: "File | Directory | None", seen: dict[int, int]) -> object:
    if node is None:
        return None
    if id(node) in seen:
        return seen[id(node)]
    seen[id(node)] = len(seen)
    if isinstance(node, File):
        return bytes(node.cache), bytes(node.durable), tuple(pending[:2] for pending in node.pending)
    return (
        tuple((name, _state_of(each, seen)) for name, each in sorted(node.cache.items(), key=_first)),
        tuple((name, _state_of(each, seen)) for name, each in sorted(node.durable.items(), key=_first)),
        tuple((removed, added, _state_of(each, seen)) for removed, added, each, _ in node.pending),
    )


def _first(pair: "tuple[str, File | Directory]") -> str:
    return pair[0]


def apply_write(content: bytearray, offset: int, data: bytes | bytearray) -> None:
    """Do a pending write."""
    if offset < 0:
        content.clear()
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def crash_at(disk: FaultDisk, number: int) -> Callable[[str, str], None]:
    """Let the `number`th effect from now, counted from 1, be the one that does not happen; return `on_call`."""
    left = number

    def count(name: str, path: str) -> None:
        nonlocal left
        if name in EFFECTS:
            left -= 1
            if left == 0:
                raise Crash

    disk.on_call = count
    return count


def fail_at(
    disk: FaultDisk, number: int, code: int, names: frozenset[str] = EFFECTS
) -> Callable[[str, str], None]:
    """Let the `number`th call among `names` fail with an errno; calls after it succeed. Return `on_call`."""
    left = number

    def count(name: str, path: str) -> None:
        nonlocal left
        if name in names:
            left -= 1
            if left == 0:
                raise OSError(code, os.strerror(code), path)

    disk.on_call = count
    return count
