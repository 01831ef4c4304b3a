"""What the clocks have said, and the dates that somebody named: has the wall clock come to them?

Knows:         protocol.md "Clocks": a date is reached once the wall clock stands there, and stays so when it is set back.
Must not know: anything of jqd; what follows for jobs (oracle.py).
"""


class Date:
    """A date that somebody named: has the wall clock stood there, or behind it, since?"""

    __slots__ = ("at_ms", "is_reached")

    def __init__(self, at_ms: int, *, is_reached: bool) -> None:
        self.at_ms, self.is_reached = at_ms, is_reached
