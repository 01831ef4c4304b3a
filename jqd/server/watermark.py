"""Whether the disk has room for new jobs, and who says so.

Knows:         the setting low_space_bytes, what the last look at the disk found, what was promised since.
Must not know: how much room there is by itself, when to look (committer.py), sockets, jobs.

New jobs are refused (`storage_full`) while less than low_space_bytes are free, or while the reserve of
storage/reserve.py is given up and not back. Everything else goes on: ack, fail, release, extend, cancel,
requeue, purge and lease add no job. They add records, so they live on the margin, and at its end on the reserve.

A look is up to a second or a megabyte old, and what waits for the disk is not in it. So near the mark each
submit is counted: its bytes, with those that wait, must fit between what was free and the mark. A request
of 16 MiB on a disk with 10 MiB to spare is refused, and a small one is not.

Submits are taken again as soon as a look finds room: nobody has to restart anything.
"""

import sys
from collections.abc import Callable
from typing import Final

from jqd.core.model import SECOND_MS
from jqd.errors import StorageFull
from jqd.server.log import get_logger
from jqd.storage.base import Space

# What one turn can take before its bytes are counted among those that wait: see _TURN_BYTES_MAX of driver.py,
# and one frame of 16 MiB.
CLOSE_BYTES: Final = 32 << 20
# An ordinary batch and a new segment fit twice, or 100,000 acks.
RESERVE_BYTES_MAX: Final = 16 << 20

log = get_logger()


def reserve_bytes(low_space_bytes: int) -> int:
    """Return the size of the reserve that goes with a mark: on a small disk a small one."""
    return min(low_space_bytes, RESERVE_BYTES_MAX)


class Watermark:
    """See the file's card.

    Args:
        low_bytes: new jobs are taken while more than that is free.
        on_change: called with what an operator is to read: why new jobs are refused, or "".
    """

    def __init__(self, low_bytes: int, on_change: Callable[[str], object]) -> None:
        self._low_bytes = low_bytes
        self._on_change = on_change
        self._space: Space | None = None  # of a store that has no bound
        self._spare_bytes = sys.maxsize  # what new jobs may take, as of the last look
        self.admitted_bytes = 0  # of submits in the turn under way; the driver sets it back at its end
        self.ask_from_bytes = sys.maxsize  # with that many bytes waiting for the disk, each submit has to ask

    @property
    def is_full(self) -> bool:
        """Whether the last look found no room for new jobs."""
        return self._spare_bytes == 0

    def see(self, space: Space) -> None:
        """Take in what a look at the disk found; say so if it changes what is taken."""
        was_full = self.is_full
        was_lost = self._space is not None and self._space.reserve_is_lost
        self._space = space
        spare_bytes = 0 if space.reserve_is_lost else max(0, space.free_bytes - self._low_bytes)
        self._spare_bytes = spare_bytes
        self.ask_from_bytes = max(0, spare_bytes - CLOSE_BYTES)
        if self.is_full and (not was_full or (space.reserve_is_lost and not was_lost)):
            log.warning("storage_full", **self._about(space))
            self._on_change(f"new jobs are refused: {self._reason(space.free_bytes)}")
        elif was_full and not self.is_full:
            log.info("storage_available", **self._about(space))
            self._on_change("")

    def admit(self, request_bytes: int, waiting_bytes: int) -> None:
        """Take a submit of this size, or refuse it.

        Args:   waiting_bytes: what waits for the disk, without the turn under way.
        Raises: StorageFull.
        """
        promised_bytes = waiting_bytes + self.admitted_bytes
        if promised_bytes + request_bytes >= self._spare_bytes:
            assert self._space is not None, "a store without a bound has room for everything"
            free_bytes = max(0, self._space.free_bytes - promised_bytes)
            raise StorageFull(
                f"{self._reason(free_bytes)}; the request has {request_bytes} bytes",
                retry_after_ms=SECOND_MS,  # looks are as far apart while nothing is written
            )
        self.admitted_bytes += request_bytes

    def figures(self) -> dict[str, int]:
        """Return what `stats` shows."""
        if self._space is None:
            return {}
        return {
            "disk_free_bytes": self._space.free_bytes,
            "low_space_bytes": self._low_bytes,
            "storage_full": int(self.is_full),
        }

    def _about(self, space: Space) -> dict[str, int | bool]:
        return {
            "free_bytes": space.free_bytes,
            "limit_bytes": self._low_bytes,
            "reserve_is_lost": space.reserve_is_lost,
        }

    def _reason(self, free_bytes: int) -> str:
        assert self._space is not None
        lost = ", and the reserve for a full disk is used up" if self._space.reserve_is_lost else ""
        return f"{free_bytes} bytes are free on the disk: new jobs need {self._low_bytes} (low_space_bytes){lost}"
