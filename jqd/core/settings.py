"""What holds for a job: its own option, or else its queue's setting, or else jqd's default.

Knows:         which default stands behind which option.
Must not know: which command asks, the wire.
"""

from jqd.core import backoff, model
from jqd.core.model import Job, RetryPolicy
from jqd.core.state import State


def max_retries(job: Job, state: State) -> int:
    """Return how many errors a job survives."""
    limit = job.options.max_retries
    if limit is None:
        limit = state.queues[job.options.queue].settings.max_retries
    return model.MAX_RETRIES_DEFAULT if limit is None else limit


def max_crashes(job: Job, state: State) -> int:
    """Return how many crashes a job survives."""
    limit = job.options.max_crashes
    if limit is None:
        limit = state.queues[job.options.queue].settings.max_crashes
    return model.MAX_CRASHES_DEFAULT if limit is None else limit


def retry_policy(job: Job, state: State) -> RetryPolicy:
    """Return how long a job waits after a failure."""
    return job.options.retry or state.queues[job.options.queue].settings.retry or backoff.DEFAULT


def lease_ms(job: Job, state: State) -> int:
    """Return the lease time of a job where the lease command names none."""
    own_ms = job.options.lease_ms
    return own_ms or state.queues[job.options.queue].settings.lease_ms or model.LEASE_MS_DEFAULT
