"""What the tools say of a log is what recovery says of it, and nothing is touched to find out."""

import random
from itertools import pairwise

import pytest

from jqd.core.state import State
from jqd.errors import Corruption, UnsupportedFormat
from jqd.offline.check import ask_recovery, check_state, examine
from jqd.storage.base import RecoveryReport
from tests.offline.history import made
from tests.storage.logs import DATA, opened, records, write
from tests.support.faultfs import EFFECTS, FaultDisk

CLEAN = made(clean=True)
KILLED = made(clean=False)


@pytest.mark.parametrize("history", [CLEAN, KILLED], ids=["clean", "killed"])
def test_good_log_is_good_and_counted(history):
    found = examine(history.disk, DATA, kinds=True)
    check_state(found)
    assert found.problems == []
    assert found.is_clean is (history is CLEAN)
    state = history.state(len(history.records))
    assert found.state.digest() == state.digest()
    assert found.public_id == opened(history.disk.clone()).public_id
    assert found.kinds.total() == state.lsn
    assert found.jobs_by_state() == {
        "delayed": 1, "ready": 6, "leased": 0, "done": 2, "dead": 0, "cancelled": 1, "expired": 0,
    }  # fmt: skip
    assert (found.oldest_wall_ms, found.newest_wall_ms) == (1_700_000_000_000, state.now.wall_ms)
    segments = list(found.log.segments.values())
    assert [each.size_bytes for each in segments] == [len(history.files[name]) for name in history.segments]
    assert sum(each.records for each in segments) == len(history.records)
    assert (segments[0].first_lsn, segments[-1].last_lsn) == (1, state.lsn)
    assert all(one.last_lsn + 1 == other.first_lsn for one, other in pairwise(segments))


@pytest.mark.parametrize("history", [CLEAN, KILLED], ids=["clean", "killed"])
def test_each_single_flipped_byte_is_judged_as_recovery_judges_it(history):
    rng = random.Random(7)
    for name in [*history.segments, "store"]:
        for offset in range(rng.randrange(5), len(history.files[name]), 5):
            disk = history.disk.clone()
            data = bytearray(history.files[name])
            data[offset] ^= 1 << rng.randrange(8)
            disk.overwrite(f"{DATA}/{name}", bytes(data))
            found = examine(disk, DATA)
            try:
                recovery = opened(disk).recovery
            except (Corruption, UnsupportedFormat) as refused:
                (problem,) = found.problems
                assert str(refused).startswith(problem.message)
            else:
                assert found.problems == []
                assert found.recovery.torn_bytes == recovery.torn_bytes
                assert found.state.lsn == recovery.last_lsn


def test_nothing_is_written_and_no_lock_taken():
    for history in (CLEAN, KILLED):
        disk = history.disk.clone()
        disk.calls.clear()
        examine(disk, DATA)
        assert not {name for name, _ in disk.calls} & EFFECTS


def test_log_of_a_running_daemon_is_read_as_far_as_it_goes():
    disk = FaultDisk()
    store = write(disk, records(0))
    for record in records(6):
        store.append([record])
        verdict = ask_recovery(disk, DATA)
        assert isinstance(verdict, RecoveryReport)
        assert (verdict.last_lsn, verdict.clean) == (record.last_lsn, False)
        store.sync()
    store.close()


def test_state_that_contradicts_itself_is_a_problem(monkeypatch):
    def broken(self):
        raise AssertionError("two is three")

    monkeypatch.setattr(State, "check", broken)
    found = examine(CLEAN.disk, DATA)
    check_state(found)
    (problem,) = found.problems
    assert problem.kind == "invariant"
    assert "two is three" in problem.message
