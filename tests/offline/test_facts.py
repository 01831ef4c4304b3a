"""Which jobs a fact names, held against what applying it does."""

from typing import get_args

import pytest

from jqd.core import changes
from jqd.core.changes import AnyChange, AnyImage, decode_batch
from jqd.core.model import JobOptions, JobState, QueueSettings
from jqd.core.state import State
from jqd.offline.facts import KINDS, jobs_of
from jqd.storage.base import Record
from tests.offline.history import applied, life, signatures

NAME_NO_JOB = {
    changes.DaemonStarted,
    changes.TimeAdvanced,
    changes.SessionOpened,
    changes.SessionsForgotten,
    changes.RequestsAnswered,
    changes.EpochRaised,
    changes.SubmitRemembered,
    changes.KeysForgotten,
    changes.QueueSet,
    changes.IdsSkipped,
}


def samples() -> dict[type, changes.Change]:
    found: dict[type, changes.Change] = {
        type(change): change for batch in life().log for change in decode_batch(batch.payload).changes
    }
    return found | {
        changes.SessionsForgotten: changes.SessionsForgotten([b"s"]),
        changes.EpochRaised: changes.EpochRaised(9),
        changes.SubmitRemembered: changes.SubmitRemembered("default", "k", 1, 1, b"", 5),
        changes.KeysForgotten: changes.KeysForgotten(["i/default/k"]),
        changes.JobsExpired: changes.JobsExpired([(1, 2)]),
        changes.JobsCancelMarked: changes.JobsCancelMarked([(1, 2)]),
        changes.ProgressReported: changes.ProgressReported([(1, 2)], 40),
        changes.ResultsForgotten: changes.ResultsForgotten([(1, 2)]),
        changes.JobUpdated: changes.JobUpdated(1, JobState.READY),
        changes.QueueSet: changes.QueueSet("q", QueueSettings(paused=True)),
        changes.IdsSkipped: changes.IdsSkipped(9),
    }


def test_every_kind_of_fact_is_known_by_its_name():
    assert set(KINDS.values()) == {*get_args(AnyChange), *get_args(AnyImage)}
    assert KINDS["JobsDone"] is changes.JobsDone


@pytest.mark.parametrize("kind", get_args(AnyChange), ids=lambda kind: kind.__name__)
def test_fact_names_jobs_unless_it_is_known_to_name_none(kind):
    assert bool(jobs_of(samples()[kind])) == (kind not in NAME_NO_JOB)


def test_named_jobs_are_those_that_change_and_states_are_those_they_come_to():
    state, seen = State(), 0
    for batch in life().log:
        before = signatures(state)
        for change, _ in applied(state, Record(batch.first_lsn, batch.count, batch.payload)):
            after = signatures(state)
            moved = {
                job_id for job_id in before.keys() | after.keys() if before.get(job_id) != after.get(job_id)
            }
            if type(change) not in NAME_NO_JOB:
                named = {
                    job_id: word
                    for first, count, word in jobs_of(change)
                    for job_id in range(first, first + count)
                }
                assert named.keys() == moved, change
                for job_id, word in named.items():
                    job = state.job(job_id)
                    assert word == ("forgotten" if job is None else job.state.wire_name)
                seen += 1
            before = after
    assert seen > 10


def test_delayed_and_ready_are_told_apart():
    facts = [
        changes.JobsSubmitted(1, JobOptions(), [b""], due_wall_ms=5),
        changes.JobsReleased([(1, 2)], due_ms=5),
        changes.JobsRetried([(1, 0), (2, 5)], "error"),
        changes.JobUpdated(1, JobState.READY),
        changes.JobUpdated(1, JobState.DELAYED),
        changes.JobsExpired([(1, 2)]),
        changes.JobsCancelMarked([(1, 2)]),
    ]
    assert [jobs_of(fact) for fact in facts] == [
        [(1, 1, "delayed")],
        [(1, 2, "delayed")],
        [(1, 1, "ready"), (2, 1, "delayed")],
        [(1, 1, "ready")],
        [(1, 1, "delayed")],
        [(1, 2, "expired")],
        [(1, 2, "leased")],
    ]
