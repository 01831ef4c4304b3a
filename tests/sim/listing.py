"""All jobs of an engine as a list shows them, put together anew only where a job is another than at the last look.

Knows:         that what a list shows of a job follows from the job, the settings of its queue and, while the job is
               leased or delayed or has a result for a time, the time (jqd/core/reading.py).
Must not know: what is right.

Each start of a daemon is looked through job by job. Most jobs ended long before, and have to come back just as they
were: one comparison says so, where a list of all of them makes three descriptions of each. The shipped list itself is
what clients ask for, and what a look inside (world.py) compares whole.
"""

from typing import Any, NamedTuple

import msgspec
from msgspec import structs

from jqd.core.commands import JobInfo
from jqd.core.model import Job, JobState, Now, QueueSettings
from jqd.core.reading import job_info
from jqd.core.state import State

# What is shown of these moves by itself.
TIMED = (JobState.LEASED, JobState.DELAYED)


class Shown(NamedTuple):
    """A job that was looked at: as it was, by which settings, and how it was shown, for jqd's eyes and for others'."""

    job: Job
    settings: QueueSettings
    info: JobInfo
    plain: dict[str, Any]


class Listing:
    """What was shown last, over all starts of the daemon."""

    def __init__(self) -> None:
        self._shown: dict[int, Shown] = {}

    def of(self, state: State, now: Now) -> list[Shown]:
        """Return every job, in order of their ids. Who gets a description must not change it."""
        known, found = self._shown, []
        for job in state.pages.jobs_from(0):
            settings = state.queues[job.options.queue].settings
            shown = known.get(job.id)
            is_timed = job.state in TIMED or job.result_due_ms is not None
            if shown is None or is_timed or shown.job != job or shown.settings != settings:
                info = job_info(job, state, now)
                plain = msgspec.to_builtins(info, builtin_types=(bytes,))
                shown = known[job.id] = Shown(_kept(job), settings, info, plain)
            found.append(shown)
        return found


def _kept(job: Job) -> Job:
    """Return a job that stays as it is when the engine goes on."""
    outcome = job.outcome
    return structs.replace(job, lease=None, outcome=None if outcome is None else structs.replace(outcome))
