"""The facts that are printed are the facts that were written."""

import pytest

from jqd.core.changes import decode_batch
from jqd.errors import Corruption
from jqd.offline.dump import Fact, Wanted, facts
from jqd.offline.walk import Log
from jqd.storage.base import Record
from tests.offline.history import made
from tests.storage.logs import DATA, opened, segment
from tests.support.faultfs import FaultDisk

HISTORY = made(clean=False)
ALL = [
    (record.first_lsn + index, change)
    for record in HISTORY.records
    for index, change in enumerate(decode_batch(record.payload).changes)
]


def dumped(*, disk: FaultDisk = HISTORY.disk, **wanted) -> list[Fact]:
    return list(facts(Log(disk, DATA), Wanted(**wanted)))


def test_every_fact_comes_once_with_its_place_and_clocks():
    found = dumped()
    assert [(fact.lsn, fact.change) for fact in found] == ALL
    places = {
        record.first_lsn: (int(name[:16], 16), offset)
        for name, offset, _, record in HISTORY.frames()
        if record is not None
    }
    for fact in found:
        first = max(lsn for lsn in places if lsn <= fact.lsn)
        assert (fact.segment, fact.offset) == places[first]
        assert fact.kind == type(fact.change).__name__
    batch = decode_batch(HISTORY.records[-1].payload)
    assert (found[-1].engine_ms, found[-1].wall_ms) == (batch.engine_ms, batch.wall_ms)


@pytest.mark.parametrize(("first", "last"), [(1, 1), (3, 9), (7, 8), (20, None), (99, None)])
def test_from_and_to_lsn_cut_within_records_too(first, last):
    expected = [lsn for lsn, _ in ALL if first <= lsn <= (last or 99)]
    assert [fact.lsn for fact in dumped(from_lsn=first, to_lsn=last)] == expected


def test_nothing_is_read_behind_the_last_lsn_that_is_wanted():
    disk = HISTORY.disk.clone()
    disk.remove(segment(3))
    log = Log(disk, DATA)
    assert list(facts(log, Wanted(to_lsn=2)))
    assert log.stop is None


def test_facts_of_a_job_are_those_that_moved_it():
    for job_id in range(1, 12):
        expected = [
            record.first_lsn
            for record, touched in zip(HISTORY.records, HISTORY.touched, strict=True)
            if job_id in touched
        ]
        found = [fact.lsn for fact in dumped(job_id=job_id)]
        assert [max(r.first_lsn for r in HISTORY.records if r.first_lsn <= lsn) for lsn in found] == expected
        assert found


@pytest.mark.parametrize("queue", ["mail", "bulk", "none"])
def test_facts_of_a_queue_are_those_of_its_jobs(queue):
    jobs = {
        job.id
        for count in range(len(HISTORY.records) + 1)
        for job in HISTORY.state(count).pages.jobs_from(0)
        if job.options.queue == queue
    }
    expected = sorted({fact.lsn for job_id in jobs for fact in dumped(job_id=job_id)})
    assert [fact.lsn for fact in dumped(queue=queue)] == expected
    assert [fact.lsn for fact in dumped(queue=queue, from_lsn=9)] == [lsn for lsn in expected if lsn >= 9]
    assert bool(expected) is (queue != "none")


def test_facts_of_a_kind():
    found = dumped(kinds=["JobsDone", "JobsDied"])
    assert [fact.kind for fact in found] == ["JobsDone", "JobsDied", "JobsDone"]


def test_facts_before_damage_come_and_then_the_log_says_where_it_stopped():
    disk = HISTORY.disk.clone()
    disk.remove(segment(3))
    log = Log(disk, DATA)
    found = list(facts(log, Wanted()))
    assert found and found == dumped()[: len(found)]
    assert log.stop[:3] == (3, 0, None)
    disk = HISTORY.disk.clone()
    disk.remove(segment(4))
    log = Log(disk, DATA)
    assert [fact.lsn for fact in facts(log, Wanted())] == [lsn for lsn, _ in ALL][:-1]
    assert log.stop[:3] == (4, 0, None)


def test_record_of_another_version_is_named():
    disk = HISTORY.disk.clone()
    store = opened(disk)
    store.append([Record(ALL[-1][0] + 1, 1, b"?")])
    store.close()
    with pytest.raises(Corruption, match="not a record of this version") as refused:
        dumped(disk=disk)
    assert (refused.value.file, refused.value.offset, refused.value.lsn) == (segment(5), 68, ALL[-1][0] + 1)
