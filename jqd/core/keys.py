"""Keys that submits were given, and the jobs that they stand for.

Knows:         how a key is named, which job has it, until when.
Must not know: when a key is given or given up (keyed.py and State decide), who asks.

Two kinds share one table, since they share its limit:

    dedupe key       d/tenant/queue/key   of a job that lives, due_ms None; or for a time, whatever the job does
    idempotency key  i/tenant/key         always for a time; content: what was submitted with it

Names of tenants, queues and keys have no slash, so no two keys are named alike. The table is cut into shards by a
hash of the name: a dict of a million entries would stop the loop for 26 ms when it grows, and a shard is what a
snapshot takes at a time.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from jqd.core.model import JobOptions
from jqd.core.ordered import TimerHeap

SHARDS: Final = 256


class Key(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """What a key stands for: `count` jobs from `job_id` on."""

    job_id: int
    count: int = 1
    due_ms: int | None = None  # by the engine clock; at this very ms it is over
    content: bytes = b""


def dedupe_name(options: JobOptions) -> str:
    """Return the name of a job's dedupe key; it must have one."""
    return f"d/{options.tenant}/{options.queue}/{options.dedupe_key}"


def idempotency_name(tenant: str, key: str) -> str:
    """Return the name of an idempotency key."""
    return f"i/{tenant}/{key}"


def tenant_of(name: str) -> str:
    """Return whose key it is."""
    return name.split("/", 2)[1]


def shard_of(name: str) -> int:
    """Return the shard that a name belongs to: the same in every process."""
    return hashlib.blake2b(name.encode(), digest_size=1).digest()[0]


class KeyTable:
    """See the file's card.

    timers: (due_ms, name) of the keys that have a time.
    """

    __slots__ = ("_shards", "count", "timers")

    def __init__(self) -> None:
        self._shards: list[dict[str, Key]] = [{} for _ in range(SHARDS)]
        self.count = 0
        self.timers: TimerHeap[str] = TimerHeap()

    def get(self, name: str) -> Key | None:
        return self._shards[shard_of(name)].get(name)

    def shard(self, number: int) -> dict[str, Key]:
        """Return the keys of one shard, not to be changed."""
        return self._shards[number]

    def put(self, name: str, key: Key) -> None:
        """Set a key, in the place of one that is over."""
        self.drop(name)
        self._shards[shard_of(name)][name] = key
        self.count += 1
        if key.due_ms is not None:
            self.timers.push(key.due_ms, name)

    def drop(self, name: str) -> None:
        """Forget a key, if it is there."""
        key = self._shards[shard_of(name)].pop(name, None)
        if key is None:
            return
        self.count -= 1
        if key.due_ms is not None:
            self.timers.discard(key.due_ms, name)

    def items(self) -> Iterator[tuple[str, Key]]:
        """Yield every key with its name, in no order."""
        for shard in filter(None, self._shards):
            yield from shard.items()
