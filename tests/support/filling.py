"""Ways to fill a daemon's memory, ordinary and hostile, over the wire: each until it is refused.

    filled(client, shape)       submit until `overloaded`; returns how many jobs were taken
    drained(client)             lease and ack all that is ready; returns how many there were

Knows:         protocol.md, and which shapes take more memory than bytes on the wire.
Must not know: what the daemon counts for them.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.support.rawclient import RawClient, Refused

Group = dict[str, Any]
Shape = Callable[[int], list[Group]]

REFUSED: Final = ("overloaded", "busy")


def alike(size: int, count: int) -> Shape:
    """Payloads of one size, a request of which has `count`."""
    return lambda n: [{"queue": "q", "payloads": [bytes([n % 256]) * size] * count}]


def name(n: int, length: int = 128) -> str:
    return f"{n:x}".rjust(length, "_")


def with_metadata(n: int) -> list[Group]:
    """As many keys and characters that are wide in memory as may be."""
    metadata = {f"{key:x}☹": "x" * 55 + "☹" for key in range(64)}
    return [{"queue": "q", "payloads": [b""], "metadata": {**metadata, "0☹": f"{n}-{k}"}} for k in range(200)]


def with_own_options(n: int) -> list[Group]:
    """No two jobs with the same options."""
    delays = tuple(range(32))
    return [
        {
            "queue": "q",
            "payloads": [b""],
            "task": name(n * 1_000 + k),
            "group": name(n * 1_000 + k + 1),
            "priority": (n * 1_000 + k) % 65_000 - 32_000,
            "retry": {"kind": "list", "delays_ms": [n * 1_000 + k, *delays[1:]]},
        }
        for k in range(500)
    ]


def with_own_queue(n: int) -> list[Group]:
    return [{"queue": name(n * 1_000 + k), "payloads": [b""]} for k in range(1_000)]


def with_keys(n: int) -> list[Group]:
    """Two keys a job, and a tenant for each."""
    return [
        {
            "queue": "q",
            "payloads": [b""],
            "tenant": name(n * 1_000 + k),
            "dedupe_key": name(n * 1_000 + k),
            "idempotency_key": name(n * 1_000 + k),
        }
        for k in range(1_000)
    ]


def with_times(n: int) -> list[Group]:
    """Each at a time of its own, and none of them is shared."""
    return [
        {
            "queue": "q",
            "payloads": [b""],
            "delay_ms": 10_000_000 + n * 1_000 + k,
            "expires_ms": 100_000_000 + k,
        }
        for k in range(1_000)
    ]


SHAPES: Final[dict[str, Shape]] = {
    "100 bytes": alike(100, 10_000),
    "1 KiB": alike(1 << 10, 5_000),
    "100 KiB": alike(100 << 10, 50),
    "1 MiB": alike(1 << 20, 8),
    "metadata": with_metadata,
    "options": with_own_options,
    "queues": with_own_queue,
    "keys": with_keys,
    "times": with_times,
}


def requests(shape: Shape) -> Iterator[list[Group]]:
    n = 0
    while True:
        yield shape(n)
        n += 1


def filled(client: RawClient, shape: Shape, *, limit: int = 10_000_000) -> int:
    """Submit until it is refused because memory is short."""
    count = 0
    for groups in requests(shape):
        try:
            for _, more, _ in client.call("submit_many", groups=groups)["jobs"]:
                count += more
        except Refused as refusal:
            assert refusal.code in REFUSED, refusal
            if refusal.code == "overloaded":
                assert "memory" in str(refusal)
                return count
        assert count < limit, "nobody refuses"
    raise AssertionError


def drained(client: RawClient, queues: list[str] | None = None, **ack: Any) -> int:
    """Lease and ack until nothing is ready."""
    count = 0
    while True:
        leased = client.call("lease", queues=queues or ["q"], count=2_000)
        if not leased["jobs"]:
            return count
        ids = [[job["job_id"], 1] for job in leased["jobs"]]
        client.call("ack", items=[[leased["token"], ids, None]], **ack)
        count += len(ids)
