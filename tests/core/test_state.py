"""The containers: pages that thin out, the invariant check, and what a change must not do."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqd.core import commands as c
from jqd.core import model
from jqd.core.commands import to_ranges
from jqd.core.model import JobState
from jqd.core.pages import PAGE_JOBS
from jqd.core.state import State
from tests.support.core import Core


@given(st.lists(st.integers(1, 40), unique=True))
def test_ranges_say_the_same_ids_in_the_same_order(ids):
    ranges = to_ranges(ids)
    assert [job_id for first, count in ranges for job_id in range(first, first + count)] == ids
    assert all(one[0] + one[1] != two[0] for one, two in pairwise(ranges)), "not packed"


@pytest.mark.parametrize(
    ("ids", "ranges"),
    [
        ([], []),
        ([7], [(7, 1)]),
        ([1, 2, 3], [(1, 3)]),
        ([3, 2], [(3, 1), (2, 1)]),
        ([1, 3, 2, 4], [(1, 1), (3, 1), (2, 1), (4, 1)]),
    ],
)
def test_ranges(ids, ranges):
    assert to_ranges(ids) == ranges


def forget(core: Core, first: int, last: int) -> None:
    """Purge the jobs first..last."""
    for start in range(first, last + 1, 10_000):
        core.do(c.Purge(ids=[(start, min(10_000, last + 1 - start))]))


@pytest.fixture
def full(core: Core) -> Core:
    """Two full pages and the beginning of a third."""
    core.submit_jobs(10_000)
    return core


def test_page_that_thins_out_keeps_its_jobs(full):
    forget(full, 5_000, 8_100)
    kept = [job_id for job_id in (4_096, 4_999, 8_101, 8_191) if full.state.job(job_id)]
    assert kept == [4_096, 4_999, 8_101, 8_191]
    forget(full, 4_097, 4_999)
    assert full.states(4_096, 4_097, 8_150) == ["ready", "gone", "ready"]
    full.state.check()
    assert [job.id for job in full.state.pages.jobs_from(4_090)][:9] == [*range(4_090, 4_097), 8_101, 8_102]
    assert full.do(c.Cancel(ids=[(4_095, 3), (8_190, 4)])).results == [
        (4_095, 2, "ok"),
        (4_097, 1, "job_not_found"),
        (8_190, 4, "ok"),
    ]
    forget(full, 8_101, 8_180)
    assert full.states(4_096, 8_180, 8_181) == ["cancelled", "gone", "ready"]


def test_page_that_is_empty_is_gone_and_its_ids_are_unknown(full):
    forget(full, 4_096, 8_191)
    assert full.states(4_095, 4_096, 8_191, 8_192) == ["ready", "gone", "gone", "ready"]
    assert [job.id for job in full.state.pages.jobs_from(4_095)][:2] == [4_095, 8_192]
    forget(full, 1, 4_095)
    assert full.state.pages.numbers() == [2]
    full.state.check()
    assert full.lease_ids() == [8_192]


def test_sparse_page_that_becomes_empty_is_gone(full):
    forget(full, 4_100, 8_191)
    forget(full, 4_096, 4_099)
    assert full.states(4_096, 8_192) == ["gone", "ready"]


def test_newest_page_still_fills_however_few_jobs_are_left_in_it(core):
    core.submit_jobs(3_000)
    forget(core, 1, 3_000)
    assert core.submit_jobs(2_000) == list(range(3_001, 5_001))
    assert core.states(3_000, 3_001, 5_000) == ["gone", "ready", "ready"]


def test_page_that_was_thin_when_the_next_began_is_thinned_out_then(core):
    core.submit_jobs(PAGE_JOBS - 2)
    forget(core, 1, PAGE_JOBS - 3)
    core.submit_jobs(5)
    assert core.states(PAGE_JOBS - 3, PAGE_JOBS - 2, PAGE_JOBS - 1, PAGE_JOBS) == [
        "gone",
        "ready",
        "ready",
        "ready",
    ]


def test_page_that_was_empty_when_the_next_began_is_gone_then(core):
    core.submit_jobs(PAGE_JOBS - 1)
    forget(core, 1, PAGE_JOBS - 1)
    core.submit()
    assert core.state.pages.numbers() == [1]
    core.state.check()


def test_bulk_over_a_page_boundary(full):
    leased = full.lease(count=10_000)
    assert full.ack(leased.token, *range(4_000, 8_300)) == [(4_000, 4_300, "ok")]
    assert full.states(3_999, 4_000, 8_299, 8_300) == ["leased", "done", "done", "leased"]


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 9_000), st.integers(1, 3_000)), max_size=6))
def test_jobs_are_what_was_not_forgotten_whatever_the_pages(cuts):
    core = Core()
    core.submit_jobs(9_000)
    left = set(range(1, 9_001))
    for first, count in cuts:
        core.do(c.Purge(ids=[(first, count)]))
        left -= set(range(first, first + count))
    assert [job.id for job in core.state.pages.jobs_from(0)] == sorted(left)
    assert [job.id for job in core.state.pages.jobs_from(5_000)] == sorted(
        job_id for job_id in left if job_id >= 5_000
    )
    core.state.check()


# --- states -------------------------------------------------------------------------------------


def test_every_state_has_its_name_and_its_ways_out():
    assert [state.wire_name for state in JobState] == list(model.STATE_NAMES)
    assert set(model.TRANSITIONS) == set(JobState)
    assert {state for state, ways in model.TRANSITIONS.items() if not ways} == {
        JobState.DONE,
        JobState.CANCELLED,
        JobState.EXPIRED,
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda state, now: state.finish([(1, 1)], JobState.DONE, now),  # ready -> done
        lambda state, now: state.revive([(1, 1)], now),
        lambda state, now: state.finish([(9, 1)], JobState.CANCELLED, now),
        lambda state, now: state.add_jobs(9, model.JobOptions(), [b""], None, now),
        lambda state, now: state.forget([(1, 2)]),
        lambda state, now: state.lease_jobs(model.Lease(1, 2, 3, [(2, 1)], 0, "", None), now),
    ],
)
def test_change_that_the_state_does_not_allow_is_an_assertion(change):
    core = Core()
    core.submit()
    core.submit(delay_ms=5)
    core.purge(1)
    core.submit()
    with pytest.raises((AssertionError, AttributeError)):
        change(core.state, core.now)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.queues["default"].counts.__setitem__(1, 9),
        lambda state: state.queues["default"].ready.put_back(0, 9),
        lambda state: state.queues["default"].finished.append(1),
        lambda state: state.queues["default"].dead.update({1: None}),
        lambda state: state.queues["default"].__setattr__("finished_due_ms", 5),
        lambda state: state.queues["default"].__setattr__("dead_due_ms", 5),
        lambda state: state.lease_timers.push(5, 9),
        lambda state: state.delay_timers.push(5, 9),
        lambda state: state.date_timers.push(5, 9),
        lambda state: state.job(1).__setattr__("payload", None),
        lambda state: state.job(1).__setattr__("state", JobState.DONE),
        lambda state: state.job(1).__setattr__("due", model.Due(5, False)),
        lambda state: state.job(1).__setattr__("lease", model.Lease(1, 2, 3, [(1, 1)], 1, "", None)),
        lambda state: state.__setattr__("result_bytes", 5),
        lambda state: state.leases.__setitem__(1, {0: model.Lease(1, 2, 3, [(1, 1)], 1, "", None)}),
    ],
)
def test_check_finds_an_index_that_disagrees(spoil):
    core = Core()
    core.submit()
    core.state.check()
    spoil(core.state)
    with pytest.raises(AssertionError):
        core.state.check()


def test_empty_state_is_whole():
    state = State()
    state.check()
    assert state.counts() == [0] * len(JobState)
    assert state.digest() == State().digest()
