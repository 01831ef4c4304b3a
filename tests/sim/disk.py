"""The simulator's disk: what a power loss may leave of it, page by page, and faults that a plan asks for.

Knows:         what is durable, what is pending, and which remains of a pending write a real disk can show.
Must not know: what a file means, what the one who wrote it expects.

It is the disk of tests/support/faultfs.py with a finer end. What is pending when the power goes is lost in one of
three ways:

    PREFIX   operations are kept in the order in which they were asked for, over all files and directories, up to
             one of them; a write in part, from its beginning
    SUBSET   each unit is kept or lost by itself:
                 a name that was created, moved or removed      a rename within a directory is one unit
                 a page of 4 KiB                                lost: it is as it was, zeros where it was nothing
                 the new size                                   lost: the file ends behind its last kept page
                 that a file was emptied
    TORN     as SUBSET; and a page may be damaged: each of its sectors of 512 bytes is old, new, zeros or garbage

Bytes that a sync has covered are never damaged by a later write to the same sector: a log that is appended to could
not be kept otherwise (SQLite calls it "powersafe overwrite", and takes it for granted too).

    disk.arm(Fault.WRITE_FAILS, 3)      the third write from now fails
    disk.on_call = ...                  called before each call takes effect. A sync that takes long is a hook that
                                        lets time pass, and others act, while it is in "sync": nothing is durable
                                        before it returns, and it may raise Crash
    disk.sync_failure, .short_writes, .capacity_bytes       as in faultfs.py
    disk.flip(path, bit)                rot at rest
    disk.copy_of(path), .restore(...)   a backup, and its return

Sources: reliability.md 4.3; FoundationDB's AsyncFileNonDurable (pages kept, dropped or damaged); "All File Systems
Are Not Created Equal" (OSDI 2014).
"""

import errno
import os
from collections.abc import Callable, Iterator
from enum import Enum
from hashlib import blake2b
from itertools import chain
from typing import Final, Protocol

from tests.support.faultfs import (
    EFFECTS,
    SECTOR_BYTES,
    Crash,
    Directory,
    FaultDisk,
    File,
    SyncFailure,
    apply_write,
)

PAGE_BYTES: Final = 4_096


class Dice(Protocol):
    """Where chance comes from."""

    def below(self, limit: int, /) -> int:
        """Return one of 0 to limit - 1."""
        ...


class Loss(Enum):
    """How a power loss treats what is pending; see the file's card."""

    PREFIX = "prefix"
    SUBSET = "subset"
    TORN = "torn"


class Fault(Enum):
    """What can be asked of one call to come."""

    READ_FAILS = "a read: EIO"
    WRITE_FAILS = "a write: EIO, half of it may be in the page cache"
    SYNC_FAILS = "a sync of a file or a directory: EIO; sync_failure says what the page cache holds"
    NO_SPACE = "any call that takes space: ENOSPC"
    KILL = "the process ends before any call that changes something"


_HITS: Final = {
    Fault.READ_FAILS: frozenset({"read"}),
    Fault.WRITE_FAILS: frozenset({"write"}),
    Fault.SYNC_FAILS: frozenset({"sync", "sync_directory"}),
    Fault.NO_SPACE: frozenset({"write", "create", "rename", "make_directory", "allocate"}),
    Fault.KILL: EFFECTS,
}

# Asked for each thing that may go either way: what it is about, and how many ways there are. 0: it stays as it was,
# 1: it is kept; of a page 2: it is damaged; of a damaged sector 2: zeros, 3: garbage.
Choose = Callable[[str, int], int]

# A copy of a directory: contents by name, a dict for a directory in it.
Copy = dict[str, "bytes | Copy"]


class SimDisk(FaultDisk):
    """See the file's card. Notes no calls: `calls` stays empty."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._armed: dict[Fault, int] = {}  # calls left

    def clone(self) -> "SimDisk":
        """Return an independent copy. What was armed stays armed here only."""
        twin = super().clone()
        assert isinstance(twin, SimDisk)
        twin._armed = {}
        return twin

    def reseed(self, seed: int) -> None:
        """Begin anew with what chance gives: garbage in torn sectors, random bytes, short writes."""
        self._seed, self._made_rng = seed, None

    # --- faults -------------------------------------------------------------------------------

    def arm(self, fault: Fault, number: int) -> None:
        """Let the `number`th call from now, counted from 1 among those that it can hit, meet a fault; once."""
        assert number >= 1
        self._armed[fault] = number

    def disarm(self) -> None:
        """Let nothing that was armed happen any more."""
        self._armed.clear()

    def flip(self, path: str, bit: int) -> None:
        """Rot: flip one bit of a file, on the disk and in the page cache."""
        file = self.file(path)
        file.cache[bit // 8] ^= 1 << bit % 8
        if bit // 8 < len(file.durable):
            file.durable[bit // 8] ^= 1 << bit % 8

    def exists(self, path: str) -> bool:
        """Tell whether something has this path, as processes see it."""
        try:
            directory, name = self._parent(path)
        except OSError:
            return False
        return name in directory.cache

    def copy_of(self, path: str) -> Copy:
        """Return a backup of a directory, as processes see it."""
        nodes = self._directory(path).cache.items()
        return {
            name: bytes(node.cache) if isinstance(node, File) else self.copy_of(f"{path}/{name}")
            for name, node in nodes
        }

    def restore(self, path: str, copy: Copy) -> None:
        """Put a backup in the place of a directory, durably. Nobody may have a file in it open."""
        parent, name = self._parent(path)
        parent.cache[name] = parent.durable[name] = _directory_of(copy)

    def _call(self, name: str, path: str) -> None:
        if self._dead:
            raise Crash
        for fault in list(self._armed):
            if name in _HITS[fault]:
                self._armed[fault] -= 1
                if not self._armed[fault]:
                    del self._armed[fault]
                    self._meet(fault, path)
        if self.on_call is not None:
            try:
                self.on_call(name, path)
            except Crash:
                self._dead = True
                raise

    def _meet(self, fault: Fault, path: str) -> None:
        if fault is Fault.KILL:
            self._dead = True
            raise Crash
        code = errno.ENOSPC if fault is Fault.NO_SPACE else errno.EIO
        raise OSError(code, os.strerror(code), path)

    # --- the end ------------------------------------------------------------------------------

    def crash(self, loss: Loss, dice: Dice) -> None:
        """The machine stops: what was pending is lost, kept, or torn."""
        if loss is Loss.PREFIX:
            sizes = [size for _, size in self.pending()]
            count = dice.below(len(sizes) + 1)
            self.crash_behind(count, dice.below(sizes[count] + 1) if count < len(sizes) else 0)
        elif loss is Loss.SUBSET:
            self.crash_by(lambda _, ways: dice.below(min(ways, 2)))
        else:
            self.crash_by(lambda _, ways: dice.below(ways))

    def pending(self) -> list[tuple[int, int]]:
        """Return (number, bytes) of each pending operation, in the order in which they were asked for."""
        files, directories = self._nodes()
        found = [(each[-1], len(each[1])) for file in files for each in file.pending]
        found += [(each[-1], 0) for directory in directories for each in directory.pending]
        return sorted(found)

    def crash_behind(self, count: int, part_bytes: int = 0) -> None:
        """The machine stops: the first `count` pending operations are kept, and so many bytes of the next one."""
        numbers = [number for number, _ in self.pending()]
        last = numbers[count - 1] if count else 0
        torn = numbers[count] if count < len(numbers) and part_bytes else None
        self.kill()
        files, directories = self._nodes()
        for file in files:
            if file.pending:
                durable = file.own().durable
                for offset, data, number in file.pending:
                    if number <= last:
                        apply_write(durable, offset, data)
                    elif number == torn:
                        apply_write(durable, offset, data[:part_bytes])
                file.pending.clear()
            _forget_cache(file)
        for directory in directories:
            for removed, added, node, number in directory.pending:
                if number <= last:
                    directory.durable.pop(removed, None)
                    if node is not None:
                        directory.durable[added] = node
            directory.pending.clear()
            directory.cache = dict(directory.durable)

    def last_write(self) -> tuple[int, bytes] | None:
        """Return offset and data of the pending operation that came last, if it is a write."""
        file = self._last_written()
        return file.pending[-1][:2] if file is not None else None

    def kill_within_write(self, part_bytes: int) -> None:
        """The process ends in the middle of its last write, of which so many bytes have reached the page cache."""
        file = self._last_written()
        assert file is not None
        offset, data, number = file.pending.pop()
        file.pending.append((offset, data[:part_bytes], number))
        del file.own().cache[offset + part_bytes :]
        self.kill()

    def fail_sync(self, path: str, policy: SyncFailure) -> None:
        """A sync of an open file fails, and the process ends."""
        file, _ = next(each for each in self._handles.values() if each[1] == path)
        self.sync_failure = policy
        self._lose_track(file)
        self.kill()

    def crash_by(self, choose: Choose) -> None:
        """The machine stops: `choose` says what becomes of each unit that is pending."""
        self.kill()
        self._lose_units(self.root, choose, set())

    def image(self) -> bytes:
        """Return a hash of all that is durable: two disks of one image start alike."""
        hashed = blake2b(digest_size=16)
        for path, content in _contents("", self.root):
            hashed.update(b"%s %d " % (path.encode(), len(content)))
            hashed.update(content)
        return hashed.digest()

    # --- inside -------------------------------------------------------------------------------

    def _nodes(self) -> tuple[list[File], list[Directory]]:
        """Return every node that can be reached now or could be after a power loss."""
        files: dict[int, File] = {}
        directories = {id(self.root): self.root}
        for directory in (queue := [self.root]):
            added = (node for _, _, node, _ in directory.pending if node is not None)
            for node in chain(directory.cache.values(), directory.durable.values(), added):
                if type(node) is File:
                    files[id(node)] = node
                elif id(node) not in directories:
                    assert isinstance(node, Directory)
                    directories[id(node)] = node
                    queue.append(node)
        return list(files.values()), queue

    def _last_written(self) -> File | None:
        numbers = [number for number, _ in self.pending()]
        return next((f for f in self._nodes()[0] if f.pending and f.pending[-1][2] == numbers[-1]), None)

    def _lose_units(self, directory: Directory, choose: Choose, seen: set[int]) -> None:
        names = dict(directory.durable)
        for removed, added, node, _ in directory.pending:
            if choose("name", 2):
                names.pop(removed, None)
                if node is not None:
                    names[added] = node
        directory.pending.clear()
        directory.durable, directory.cache = names, dict(names)
        for node in names.values():
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, Directory):
                self._lose_units(node, choose, seen)
            else:
                if node.pending:
                    node.own().durable = self._remains(node, choose)
                    node.pending.clear()
                _forget_cache(node)

    def _remains(self, file: File, choose: Choose) -> bytearray:
        """Return what is left of a file with pending writes."""
        writes = [(offset, data) for offset, data, _ in file.pending]
        was_emptied = any(offset < 0 for offset, _ in writes)
        remains = bytearray() if was_emptied and choose("emptied", 2) else bytearray(file.durable)
        old, new = bytes(remains), bytearray(remains)
        pages: dict[int, None] = {}
        for offset, data in writes:
            apply_write(new, offset, data)
            if data:
                pages |= dict.fromkeys(
                    range(offset // PAGE_BYTES, (offset + len(data) - 1) // PAGE_BYTES + 1)
                )
        for page in sorted(pages):
            start, end = page * PAGE_BYTES, min((page + 1) * PAGE_BYTES, len(new))
            kept = choose("page", 3)
            if kept == 1:
                apply_write(remains, start, new[start:end])
            elif kept == 2:
                for sector in range(start, end, SECTOR_BYTES):
                    self._damage(remains, old, new[sector : min(sector + SECTOR_BYTES, end)], sector, choose)
        if len(remains) < len(new) and choose("size", 2):
            remains.extend(bytes(len(new) - len(remains)))
        return remains

    def _damage(
        self, remains: bytearray, old: bytes, new: bytes | bytearray, start: int, choose: Choose
    ) -> None:
        """Write one sector as a disk may that loses power meanwhile."""
        durable = old[start : start + len(new)]
        match choose("sector", 4):
            case 0:
                return
            case 1:
                left = bytes(new)
            case 2:
                left = durable + bytes(len(new) - len(durable))
            case _:
                left = durable + self._rng.randbytes(len(new) - len(durable))
        apply_write(remains, start, left)


def _forget_cache(file: File) -> None:
    """What is not on the disk is gone from the page cache too."""
    if file.cache is not file.durable and file.cache != file.durable:
        file.own().cache = bytearray(file.durable)


def _contents(path: str, directory: Directory) -> Iterator[tuple[str, bytes | bytearray]]:
    for name, node in sorted(directory.durable.items()):
        if isinstance(node, File):
            yield f"{path}/{name}", node.durable
        else:
            yield f"{path}/{name}/", b""
            yield from _contents(f"{path}/{name}", node)


def _directory_of(copy: Copy) -> Directory:
    made = Directory()
    for name, content in copy.items():
        node = (
            _directory_of(content)
            if isinstance(content, dict)
            else File(bytearray(content), bytearray(content))
        )
        made.cache[name] = made.durable[name] = node
    return made
