"""When a retry may be ready: the delay of each policy, and how far jitter may take it.

Knows:         the tables of protocol.md "Retry policies", as a client reads them.
Must not know: anything of jqd; which policy holds for a job (attempts.py).
"""

from fractions import Fraction
from math import ceil
from typing import Any, Final

HOUR_MS: Final = 3_600_000


def plain(policy: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a policy without what is said with its default, so that equal ones are equal."""
    if policy is None:
        return None
    said = {
        name: list(value) if name == "delays_ms" else value
        for name, value in policy.items()
        if value is not None
    }
    return {name: value for name, value in said.items() if (name, value) != ("kind", "exponential")}


def delay_ms(policy: dict[str, Any] | None, failures: int) -> int:
    """Return the delay behind so many failures, without jitter."""
    policy = policy or {}
    base_ms, cap_ms = policy.get("base_ms") or 1_000, policy.get("cap_ms") or HOUR_MS
    match policy.get("kind", "exponential"):
        case "list":
            delays: list[int] = policy["delays_ms"]
            return delays[min(failures, len(delays)) - 1]
        case "fixed":
            return int(base_ms)
        case "linear":
            return int(min(base_ms * failures, cap_ms))
    growth = Fraction(policy.get("factor_percent") or 200, 100) ** (failures - 1)
    return int(min(Fraction(base_ms) * growth, Fraction(cap_ms)))


def window_ms(policy: dict[str, Any] | None, failures: int) -> tuple[int, int]:
    """Return the shortest and the longest delay behind so many failures (1: the first)."""
    whole_ms = delay_ms(policy, failures)
    percent = (policy or {}).get("jitter_percent")
    spread_ms = Fraction(whole_ms * (20 if percent is None else percent), 100)
    return ceil(whole_ms - spread_ms), int(whole_ms + spread_ms)
