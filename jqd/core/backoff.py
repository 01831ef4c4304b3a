"""How long a job waits before its next attempt.

Knows:         the retry policies and their jitter, in integers.
Must not know: why the attempt ended, which policy holds (settings.py), clocks, random numbers.

With n the failures so far, from 1, and each step rounded down to a millisecond:

    exponential  base x (factor / 100 %)^(n-1), at most cap
    linear       base x n, at most cap
    fixed        base
    list         the nth of the delays, or the last one

and then a jitter of as many percent to either side. It is a hash of job id and attempt: it spreads jobs that
failed together, and a replayed or simulated run gives the same figure. Source: design "retry policy";
splitmix64 (public domain, Sebastiano Vigna) as the hash.
"""

from typing import Final

from jqd.core.model import (
    RETRY_BASE_MS_DEFAULT,
    RETRY_CAP_MS_DEFAULT,
    RETRY_FACTOR_PERCENT_DEFAULT,
    RETRY_JITTER_PERCENT_DEFAULT,
    RetryKind,
    RetryPolicy,
)
from jqd.errors import InvalidArgument

DEFAULT: Final = RetryPolicy()
_U64: Final = (1 << 64) - 1
# What may be said of a policy of each kind.
FIELDS: Final[dict[RetryKind, tuple[str, ...]]] = {
    "exponential": ("base_ms", "factor_percent", "cap_ms", "jitter_percent"),
    "linear": ("base_ms", "cap_ms", "jitter_percent"),
    "fixed": ("base_ms", "jitter_percent"),
    "list": ("delays_ms", "jitter_percent"),
}


def check_policy(field: str, policy: RetryPolicy) -> None:
    """Refuse a policy that says what its kind does not know, or that begins above its cap.

    Args:   field: what the caller calls it, for the message.
    Raises: InvalidArgument.
    """
    known = FIELDS[policy.kind]
    for name in RetryPolicy.__struct_fields__[1:]:
        value = getattr(policy, name)
        if value is not None and name not in known:
            shown = list(value) if isinstance(value, tuple) else value
            raise InvalidArgument(
                f"{field}.{name} = {shown}: a policy of kind {policy.kind!r} takes {' '.join(known)}"
            )
    if policy.kind == "list" and policy.delays_ms is None:
        raise InvalidArgument(f"{field}.delays_ms is missing: a policy of kind 'list' needs it")
    if "cap_ms" in known:
        base_ms, cap_ms = _base_ms(policy), _cap_ms(policy)
        if base_ms > cap_ms:
            raise InvalidArgument(f"{field}.base_ms = {base_ms}: it is above cap_ms, which is {cap_ms}")


def retry_delay_ms(failure_count: int, job_id: int, attempt: int, policy: RetryPolicy = DEFAULT) -> int:
    """Return the delay before the next attempt, jitter included.

    Args:
        failure_count: n, from 1: errors (or crashes that wait) of this job so far.
        policy: one that check_policy() takes.
    """
    delay_ms = _delay_ms(failure_count, policy)
    percent = policy.jitter_percent
    spread_ms = delay_ms * (RETRY_JITTER_PERCENT_DEFAULT if percent is None else percent) // 100
    return delay_ms - spread_ms + _mix(job_id ^ attempt << 60) % (2 * spread_ms + 1)


def _delay_ms(failure_count: int, policy: RetryPolicy) -> int:
    match policy.kind:
        case "exponential":
            factor = policy.factor_percent or RETRY_FACTOR_PERCENT_DEFAULT
            steps = failure_count - 1
            delay_ms: int = _base_ms(policy) * factor**steps // 100**steps
            return min(delay_ms, _cap_ms(policy))
        case "linear":
            return min(_base_ms(policy) * failure_count, _cap_ms(policy))
        case "fixed":
            return _base_ms(policy)
    assert policy.delays_ms is not None, "check_policy() takes no list without delays"
    return policy.delays_ms[min(failure_count, len(policy.delays_ms)) - 1]


def _base_ms(policy: RetryPolicy) -> int:
    return policy.base_ms or RETRY_BASE_MS_DEFAULT


def _cap_ms(policy: RetryPolicy) -> int:
    return policy.cap_ms or RETRY_CAP_MS_DEFAULT


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _U64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _U64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _U64
    return value ^ value >> 31
