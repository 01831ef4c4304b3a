"""Wait, in real time and with a bound, for what another thread or process brings about."""

import time
from collections.abc import Callable

PATIENCE_S = 20.0


def happens(condition: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    """Return when the condition holds; fail when it does not in time."""
    ends_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends_at, f"it did not happen within {within_s:g} s"
        time.sleep(0.01)
