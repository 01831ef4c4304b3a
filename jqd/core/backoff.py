"""How long a job waits before its next attempt.

Knows:         the default policy and its jitter, in integers.
Must not know: why the attempt ended, clocks, random numbers.

Jitter is a hash of job id and attempt: it spreads jobs that failed together, and a replayed or
simulated run gives the same figure. Source: design "retry policy"; splitmix64 (public domain,
Sebastiano Vigna) as the hash.
"""

from typing import Final

from jqd.core.model import HOUR_MS, SECOND_MS

BASE_MS: Final = 1 * SECOND_MS
CAP_MS: Final = 1 * HOUR_MS
JITTER_PERCENT: Final = 20
_U64: Final = (1 << 64) - 1


def retry_delay_ms(failure_count: int, job_id: int, attempt: int) -> int:
    """Return the delay before the next attempt: BASE_MS x 2^(n-1), at most CAP_MS, +- JITTER_PERCENT.

    Args:
        failure_count: n, from 1: errors (or crashes that wait) of this job so far.
    """
    doublings = min(failure_count - 1, CAP_MS.bit_length())
    delay_ms = min(BASE_MS << doublings, CAP_MS)
    spread_ms = delay_ms * JITTER_PERCENT // 100
    return delay_ms - spread_ms + _mix(job_id ^ attempt << 60) % (2 * spread_ms + 1)


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _U64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _U64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _U64
    return value ^ value >> 31
