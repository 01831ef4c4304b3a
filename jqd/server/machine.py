"""How much memory the machine gives to this process.

Knows:         cgroups, RLIMIT_AS and RAM, and what threads reserve.
Must not know: what jqd takes of it (memory.py), settings.

The process may have the least of: `memory.max` of its cgroup and of those around it (version 1: `memory.limit_in_bytes`),
RAM, and RLIMIT_AS less what is mapped for the program itself: libraries and stacks count there, and no job is in them.

Sources: cgroups(7), getrlimit(2), mallopt(3); the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Of libraries that are loaded behind this look, and of the stacks of three threads. Measured: 45 MiB.
MAPPED_LATER_BYTES: Final = 48 << 20
# A cgroup of version 1 says "no limit" by a number near 2^63.
_NO_LIMIT_FROM: Final = 1 << 60
_M_ARENA_MAX: Final = -8


def find_memory(root: Path = Path("/")) -> tuple[int, str]:
    """Return the bytes that this process may have, and what sets them: RAM, RLIMIT_AS or a file of a cgroup.

    Args: root: of /proc and /sys; a test's own.
    """
    found = [(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "RAM")]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append((max(1, limit - _mapped_bytes() - MAPPED_LATER_BYTES), "RLIMIT_AS"))
    found += _cgroup_limits(root)
    return min(found)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _cgroup_limits(root: Path) -> Iterator[tuple[int, str]]:
    """Yield the limits of the process's cgroup and those around it, with the files that say so."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        place = top / path.lstrip("/")
        for directory in (place, *place.parents):
            limit = _number(directory / name)
            if limit is not None and limit < _NO_LIMIT_FROM:
                yield limit, f"/{(directory / name).relative_to(root)}"
            if directory == top:
                break


def _number(file: Path) -> int | None:
    """Return the number that a file holds; None: it is not there, or says `max`."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def spare_address_space() -> None:
    """Where the address space is limited, let all threads share one arena: each of their own reserves 64 MiB of it.

    Before the first thread is made. A C library without arenas has nothing to share.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
