"""Who holds memory besides the state, and when all of it is too much.

Knows:         the soft and the hard limit, what a look at the connections found, what an operator is told.
Must not know: what the state counts (core/memory.py), how much there is (machine.py), sockets, when to look (driver.py).

The soft limit is the core's: it refuses what would add to the state beyond it, exactly. The hard limit is for all that is
counted together: the state, what connections hold (parts of requests, replies that nobody reads), and records that
wait for the disk. Beyond it no connection is taken, and those that hold large parts of requests are ended. What is left
above it is for the interpreter, for what one turn needs while it runs, and for memory that is free but in pieces.
"""

from collections.abc import Callable
from typing import Final

from jqd.core.model import SECOND_MS
from jqd.errors import Overloaded
from jqd.server.log import get_logger

# What a connection costs while nothing is under way on it: its objects here and in the loop. An estimate: 700 of them
# made a daemon grow by 1 KiB each where memory was left over from before, the objects take up to 9 KiB.
CONNECTION_BYTES: Final = 10 << 10
# Beyond the hard limit a connection that holds less of a request than this is let alone.
PART_BYTES_MIN: Final = 256 << 10
# Connections are taken again when that share of the hard limit is free: it would go on and off with every request.
# And so long it is said that jobs are refused.
_FREE_SHARE: Final = 20
# The driver looks after so many bytes came, and after so many ms: a look costs some 0.3 us a connection.
LOOK_AFTER_BYTES: Final = 4 << 20
LOOK_AFTER_MS: Final = 1 * SECOND_MS
LOOK_AFTER_MS_WHEN_FULL: Final = 100

log = get_logger()


class MemoryGuard:
    """See the file's card.

    Args:
        on_change: called with what an operator is to read: what is refused and why, or "".
    """

    def __init__(self, soft_bytes: int, hard_bytes: int, on_change: Callable[[str], object]) -> None:
        self._soft_bytes = soft_bytes
        self._hard_bytes = hard_bytes
        self._on_change = on_change
        self._state_bytes = 0  # as of the last look,
        self._held_bytes = 0  # as this
        self._is_short = False
        self.is_full = False  # the hard limit was passed, and not enough is free again

    def see(self, state_bytes: int, held_bytes: int) -> int:
        """Take in what a look found; say so if it changes what is refused.

        Args:    held_bytes: of connections, and of what waits for the disk.
        Returns: bytes above the hard limit, 0 if there are none.
        """
        self._state_bytes, self._held_bytes = state_bytes, held_bytes
        before = (self._is_short, self.is_full)
        taken_bytes = state_bytes + held_bytes
        limit = self._soft_bytes - self._soft_bytes // _FREE_SHARE if self._is_short else self._soft_bytes
        self._is_short = state_bytes >= limit
        limit = self._hard_bytes - self._hard_bytes // _FREE_SHARE if self.is_full else self._hard_bytes
        self.is_full = taken_bytes > limit
        if (self._is_short, self.is_full) != before:
            self._tell(before)
        return max(0, taken_bytes - self._hard_bytes)

    def _tell(self, before: tuple[bool, bool]) -> None:
        about = {"state_bytes": self._state_bytes, "held_bytes": self._held_bytes}
        if self.is_full:
            log.warning("memory_full", limit_bytes=self._hard_bytes, **about)
            self._on_change(f"new connections are refused: {self._reason()}")
        elif self._is_short:
            log.warning("memory_short", limit_bytes=self._soft_bytes, **about)
            self._on_change(
                f"new jobs are refused: they take {self._state_bytes} bytes of memory (memory_soft_bytes = {self._soft_bytes})"
            )
        else:
            log.info("memory_available", was_full=before[1], **about)
            self._on_change("")

    def refusal(self) -> Overloaded:
        """Return the error of what is refused beyond the hard limit."""
        return Overloaded(
            self._reason(),
            retry_after_ms=SECOND_MS,
            details={
                "memory_bytes": self._state_bytes + self._held_bytes,
                "memory_hard_bytes": self._hard_bytes,
            },
        )

    def _reason(self) -> str:
        taken_bytes = self._state_bytes + self._held_bytes
        return f"memory = {taken_bytes} bytes, with what connections hold: the limit is {self._hard_bytes}"

    def figures(self) -> dict[str, int]:
        """Return what `stats` shows."""
        return {
            "memory_soft_bytes": self._soft_bytes,
            "memory_hard_bytes": self._hard_bytes,
            "held_bytes": self._held_bytes,
            "memory_full": int(self.is_full),
        }
