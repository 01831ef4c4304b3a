"""Time in which workers could not be heard or answered: no lease is charged for it.

Knows:         when the loop should have run and when its oldest reply began to wait for the disk.
Must not know: leases, jobs, sockets.

    what stood still                     how it shows
    the loop: SIGSTOP, a paused VM,      its timer is late (CLOCK_BOOTTIME also counts the time in which the
    a suspended laptop                   machine slept)
    the disk: a sync takes its time      the oldest turn that waits for it does so for long

A heartbeat that came in time lies in a socket nobody read, or its worker waits for the answer to the one
before. So from then on leases are judged by a clock that is behind by as long as that, and by SLACK_MS for the
sockets to be read: each lease has the time left that it had. For a disk that stands still there is nobody to
hand the jobs to either, since that would have to be on the disk.

This ends after as long as the standstill was, at the latest after RESTART_GRACE_MS, as after a restart: a
lease that began meanwhile ends that much late if its worker dies. Each standstill has an end of its own: small ones
that follow do not prolong a large one, or a machine that stutters would never end a lease.

Sources: reliability.md fault rows 16 and 17.
"""

from typing import Final

from jqd.core.model import RESTART_GRACE_MS, SECOND_MS

# Less than that is a busy machine. With the loop's timer, which runs at least every half second while there are
# leases, every standstill of a second is seen.
STANDSTILL_MS: Final = SECOND_MS // 2
# For all that arrived meanwhile to be read, and for what the loop stood still before its timer was due.
SLACK_MS: Final = 2 * SECOND_MS


class Standstill:
    """See the file's card. All times are those of the engine clock."""

    def __init__(self) -> None:
        # (lag_ms, until_ms) of standstills whose forgiveness may not be over.
        self._forgiven: list[tuple[int, int]] = []

    def see(self, now_ms: int, since_ms: int) -> int:
        """Take in that something should have happened at `since_ms` and did not until now, if it is before now.

        Returns: how long that stood still; 0: it did not.
        """
        stood_ms = now_ms - since_ms
        if stood_ms <= STANDSTILL_MS:
            return 0
        lag_ms = stood_ms + SLACK_MS
        until_ms = now_ms + min(lag_ms, RESTART_GRACE_MS)
        # What forgives no more, and for no longer, than this goes: the list stays short, since each has an end.
        self._forgiven = [
            other
            for other in self._forgiven
            if other[1] > now_ms and (other[0] > lag_ms or other[1] > until_ms)
        ]
        self._forgiven.append((lag_ms, until_ms))
        return stood_ms

    def lag_ms(self, now_ms: int) -> int:
        """Return how far the clock of the leases is behind."""
        return max((lag_ms for lag_ms, until_ms in self._forgiven if now_ms < until_ms), default=0)
