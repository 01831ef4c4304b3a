"""What the clocks have said, and the dates that somebody named: has the wall clock come to them?

Knows:         protocol.md "Clocks": there are two. A date that the wall clock has come to once counts as reached, since
               what was due then may have been done; whether a jump back takes it away is not asked.
Must not know: anything of jqd; what follows for jobs (reach.py).
"""

from bisect import insort
from collections.abc import Callable
from typing import Final

MINUTE_MS: Final = 60_000


class Date:
    """A date that somebody named: has the wall clock stood there, or behind it, since?"""

    __slots__ = ("at_ms", "is_reached")

    def __init__(self, at_ms: int, *, is_reached: bool) -> None:
        self.at_ms, self.is_reached = at_ms, is_reached


class Clocks:
    """Both clocks, as they stood when something was last told.

    ms:          by the engine clock.
    wall_max_ms: the latest that the wall clock has shown.
    dates_by_ms: the newest of each.
    """

    def __init__(self, hit: Callable[[str], object]) -> None:
        self._hit = hit
        self.ms = self.wall_ms = self.wall_max_ms = 0
        self._dates: list[tuple[int, int, Date]] = []  # (ms, number, date): the wall clock was not there yet
        self._date_count = 0
        self.dates_by_ms: dict[int, Date] = {}

    def tick(self, wall_ms: int) -> None:
        """Note what the wall clock says; to be told before and after each jump."""
        self.wall_max_ms = max(self.wall_max_ms, wall_ms)
        self.wall_ms = wall_ms
        dates = self._dates
        if dates and wall_ms >= dates[0][0] + MINUTE_MS:
            self._hit("wall clock jumped over a date")
        while dates and dates[0][0] <= wall_ms:
            dates.pop(0)[2].is_reached = True

    def watch(self, at_ms: int) -> Date:
        """Return a date of which is known from now on whether the wall clock has come to it."""
        date = self.dates_by_ms[at_ms] = Date(at_ms, is_reached=at_ms <= self.wall_ms)
        if not date.is_reached:
            self._date_count += 1
            insort(self._dates, (at_ms, self._date_count, date))
        return date
