"""What is not described anew is what a list would show."""

from collections.abc import Callable

import pytest

from jqd.core import commands as c
from tests.sim.listing import Listing
from tests.support.core import Core


def shown(core: Core, listing: Listing) -> list[c.JobInfo]:
    return [each.info for each in listing.of(core.state, core.now)]


def listed(core: Core) -> list[c.JobInfo]:
    found: list[c.JobInfo] = core.do(c.ListJobs(limit=500)).jobs
    return found


def fail_again(core: Core, job_id: int) -> None:
    core.fail(*core.held(), error="another")


def die(core: Core, job_id: int) -> None:
    core.fail(*core.held(), error="last", dead=True)


MOVES: list[Callable[[Core, int], object]] = [
    fail_again,
    die,
    lambda core, job_id: core.lease(),
    lambda core, job_id: core.cancel(job_id),
    lambda core, job_id: core.purge(job_id),
    lambda core, job_id: core.do(c.Update(job_id=job_id, priority=3)),
    lambda core, job_id: core.do(c.SetQueue(queue="default", max_crashes=77)),
    lambda core, job_id: core.restart(down_ms=5),
]


@pytest.mark.parametrize("move", MOVES)
def test_job_that_moved_is_described_anew(move):
    core, listing = Core(), Listing()
    job_id = core.submit(b"x", max_retries=9)
    core.fail(*core.held(), error="first", retry_in_ms=0)
    core.submit(delay_ms=60_000, priority=-1)
    assert shown(core, listing) == listed(core)
    move(core, job_id)
    assert shown(core, listing) == listed(core)
    core.wait(10_000)
    assert shown(core, listing) == listed(core)


def test_dead_job_that_is_revived_and_dies_again_is_described_anew():
    core, listing = Core(), Listing()
    job_id = core.submit()
    die(core, job_id)
    assert shown(core, listing) == listed(core)
    core.requeue(job_id)
    assert shown(core, listing) == listed(core)
    die(core, job_id)
    assert shown(core, listing) == listed(core)


def test_job_that_stays_as_it_was_keeps_its_description_over_a_restart():
    core, listing = Core(), Listing()
    core.submit(b"x")
    core.ack(*core.held(), result=b"r")
    (before,) = listing.of(core.state, core.now)
    core.restart()
    (after,) = listing.of(core.state, core.now)
    assert after is before


def test_what_changes_in_place_is_noticed():
    core, listing = Core(), Listing()
    job_id = core.submit()
    die(core, job_id)
    assert shown(core, listing) == listed(core)
    outcome = core.job(job_id).outcome
    assert outcome is not None
    outcome.error = "other"
    assert shown(core, listing) == listed(core)
