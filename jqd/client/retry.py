"""When to try again to reach a server that is away.

Knows:         the waits between attempts, and when it is time to give up.
Must not know: clocks, chance, sockets: what has passed and a random number come in as arguments.

Only a lost connection is tried again. An error reply, `busy` with its `retry_after_ms` included, goes
to the caller: whether the same thing should be asked again is for the caller to say.
"""

from msgspec import Struct


class Backoff(Struct, frozen=True, kw_only=True):
    """Waits that double up to a cap, each cut by chance, so that clients do not come back in step.

    Args:
        first_ms: before the second attempt; the first one comes at once.
        cap_ms: the longest wait. A daemon is away for some seconds in a restart.
        jitter: the part of each wait that chance may take away, 0 to 1.
        give_up_ms: after the loss of the connection; what waits then ends in ConnectionLost.
    """

    first_ms: int = 50
    cap_ms: int = 2_000
    jitter: float = 0.5
    give_up_ms: int = 60_000

    def wait_ms(self, failures: int, passed_ms: int, chance: float) -> int | None:
        """Return how long to wait after the `failures`-th failed attempt in a row (from 1).

        Args:
            passed_ms: since the connection was lost.
            chance: a random number, 0 <= chance < 1.
        Returns: milliseconds, or None: give up.
        """
        if passed_ms >= self.give_up_ms:
            return None
        # The exponent is capped before it is used: 2^1000 would be a large number to make for nothing.
        full = min(self.cap_ms, self.first_ms << min(failures - 1, 32))
        return min(round(full * (1 - self.jitter * chance)), self.give_up_ms - passed_ms)
