"""A lease of several queues with weights: shares, and that nobody starves."""

import pytest

from jqd.core import commands as c
from jqd.errors import InvalidArgument
from tests.support.core import Core


def served(core: Core, count: int, **weights: int) -> dict[str, int]:
    """Lease so often, one job each; return from which queue how many came."""
    came = dict.fromkeys(weights, 0)
    for _ in range(count):
        leased = core.do(c.Lease(queues=list(weights), weights=list(weights.values())))
        came[leased.jobs[0].queue] += 1
    return came


@pytest.fixture
def full(core: Core) -> Core:
    for queue in ("a", "b", "c"):
        core.submit_jobs(1_000, queue=queue)
    return core


def test_each_queue_is_served_by_its_weight(full):
    came = served(full, 800, a=5, b=2, c=1)
    assert abs(came["a"] - 500) <= 5 and abs(came["b"] - 200) <= 5 and abs(came["c"] - 100) <= 5


def test_the_share_of_an_empty_queue_goes_to_the_others_by_their_weights(full):
    full.do(c.Pause(queue="a"))
    came = served(full, 400, a=5, b=3, c=1)
    assert came["a"] == 0 and abs(came["b"] - 300) <= 5


def test_every_short_run_of_leases_has_its_shares(full):
    for _ in range(20):
        came = served(full, 8, a=3, b=1)
        assert 1 <= came["b"] <= 3


def test_what_the_first_does_not_have_comes_from_the_others(core):
    core.submit_jobs(2, queue="a")
    core.submit_jobs(3, queue="b")
    leased = core.do(c.Lease(queues=["a", "b", "none"], weights=[1, 1, 9], count=9))
    assert sorted(job.job_id for job in leased.jobs) == [1, 2, 3, 4, 5]


def test_a_queue_that_is_named_twice_counts_once_with_its_first_weight(full):
    came = {"a": 0, "b": 0}
    for _ in range(400):
        leased = full.do(c.Lease(queues=["a", "b", "a"], weights=[1, 3, 900]))
        came[leased.jobs[0].queue] += 1
    assert abs(came["a"] - 100) <= 5


def test_without_jobs_nothing_is_drawn(core):
    assert core.do(c.Lease(queues=["a", "b"], weights=[1, 1])).jobs == []


def test_a_waiting_lease_keeps_its_weights(core):
    assert core.do(c.Lease(queues=["a", "b"], weights=[1, 1], wait_ms=1_000)) is None
    core.submit(queue="b")
    ((_, _, leased),) = core.answers
    assert [job.queue for job in leased.jobs] == ["b"]


@pytest.mark.parametrize("weights", [[1], [1, 1, 1]])
def test_each_queue_needs_a_weight(core, weights):
    with pytest.raises(
        InvalidArgument, match=f"weights = {len(weights)} items for 2 queues: give one for each"
    ):
        core.do(c.Lease(queues=["a", "b"], weights=weights))
