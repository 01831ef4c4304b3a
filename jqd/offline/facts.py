"""What a fact says about which jobs: for whoever reads the log without applying it.

Knows:         which fields of a change name jobs, in which state it leaves them.
Must not know: State, files, how a fact is shown.

A wide fact (TimeAdvanced) names no job: which ones it moved follows from the state alone.
"""

from typing import Final, get_args

from jqd.core import changes
from jqd.core.changes import AnyChange, AnyImage, Change

KINDS: Final[dict[str, type[Change]]] = {
    kind.__name__: kind for kind in (*get_args(AnyChange), *get_args(AnyImage))
}

# Facts that name jobs by `ranges`, all in one state behind it. A test knows the facts that name none.
_STATES: Final[dict[type[Change], str]] = {
    changes.JobsLeased: "leased",
    changes.LeasesExtended: "leased",
    changes.JobsDone: "done",
    changes.JobsDied: "dead",
    changes.JobsCancelled: "cancelled",
    changes.JobsRequeued: "ready",
    changes.JobsForgotten: "forgotten",
    changes.JobsExpired: "expired",
    changes.JobsCancelMarked: "leased",
    changes.ProgressReported: "leased",
    changes.ResultsForgotten: "done",
}


def jobs_of(change: Change) -> list[tuple[int, int, str]]:
    """Return (first id, count, state behind it) for the jobs that a fact names."""
    match change:
        case changes.JobsSubmitted():
            waits = change.due_engine_ms is not None or change.due_wall_ms is not None
            return [(change.first_id, len(change.payloads), "delayed" if waits else "ready")]
        case changes.JobUpdated():
            return [(change.id, 1, change.state.wire_name)]
        case changes.ReadyJobsRestored():
            return [(change.first_id, len(change.payloads), "ready")]
        case changes.JobsRestored():
            return [(job.id, 1, job.state.wire_name) for job in change.jobs]
        case changes.JobsRetried():
            return [(job_id, 1, "delayed" if due_ms else "ready") for job_id, due_ms in change.jobs]
        case changes.JobsReleased():
            state = "delayed" if change.due_ms else "ready"
            return [(first, count, state) for first, count in change.ranges]
        case _ if type(change) in _STATES:
            ranges: changes.Ranges = change.ranges  # type: ignore[attr-defined]  # these have it
            return [(first, count, _STATES[type(change)]) for first, count in ranges]
        case _:
            return []
