"""Fail stop, replay, and the state after each single change."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from jqd.core import commands as c
from jqd.core import leasing, model
from jqd.core.changes import AnyChange, Change, JobsDone, TimeAdvanced, decode_batch, encode_batch
from jqd.core.engine import DECISIONS, Batch, Engine, FailStop, ReplayFailed
from jqd.core.model import Now
from jqd.core.state import State
from jqd.errors import JobNotFound
from tests.support.core import ENGINE_MS, IDENTITY, Core, ids_of, parts_of, replayed

ROOT = Path(__file__).resolve().parents[2]


def workload() -> Core:
    """A bit of everything that leaves a fact."""
    core = Core()
    caller = core.hello(b"s" * 16)
    core.submit_jobs(12, queue="a", max_crashes=0, result_ttl_ms=2_000)
    core.submit(b"p", caller, queue="b", priority=7, metadata={"k": "v", "l": "w"})
    core.submit(queue="b", delay_ms=2_000)
    core.submit(queue="b", run_at_ms=core.wall_ms + 3_000)
    core.submit(queue="b", delivery="at_most_once")
    core.submit(queue="b", idempotency_key="k", idempotency_ttl_ms=1_000)
    core.submit(queue="late", expires_ms=1_000)
    core.do(c.Update(job_id=14, priority=2, payload=b"q"))
    core.do(c.SetQueue(queue="a", retention_ms=20_000))
    core.do(c.Pause(queue="c"))
    core.submit(b"", core.hello(b"t" * 16, worker="box"), queue="b")
    leased = core.lease("a", count=10, lease_ms=5_000, caller=caller)
    core.extend(leased.token, 2, 3, lease_ms=60_000, progress_percent=50)
    core.ack(leased.token, 1, 2, result=b"result")
    core.fail(leased.token, 4, error="no")
    core.fail(leased.token, 5, dead=True)
    core.release(leased.token, 6, delay_ms=100)
    core.do(c.Lease(queues=["a", "b"], count=9), caller, request_id=900)
    core.wait(5_000)
    core.requeue(5)
    core.restart()
    core.hello(b"s" * 16)
    core.lease("a", "b", count=3, lease_ms=1_000)
    core.wait(40_000)
    core.do(c.Cancel(ids=[(1, 19)], running=True))
    core.cancel(*range(1, 20))
    core.purge(*range(1, 20))
    core.wait(model.DAY_MS)
    core.wait(31 * model.DAY_MS)
    core.submit_jobs(3)
    return core


def test_workload_leaves_every_kind_of_fact_but_a_full_counter():
    kinds = {type(change) for batch in workload().log for change in decode_batch(batch.payload).changes}
    missing = {kind.__name__ for kind in get_args(AnyChange)} - {kind.__name__ for kind in kinds}
    assert missing == {"EpochRaised", "IdsSkipped"}


def test_state_after_every_change_is_whole_and_equal_live_and_replayed(monkeypatch):
    """Cut after each change: the prefix gives what the live daemon held at that LSN."""
    live: dict[int, str] = {}
    emit = Engine._emit

    def emit_and_look(self: Engine, change: Change) -> None:
        emit(self, change)
        self.state.check()
        live[self.state.lsn] = self.state.digest()

    monkeypatch.setattr(Engine, "_emit", emit_and_look)
    core = workload()
    assert sorted(live) == list(range(1, core.state.lsn + 1))
    engine = Engine(State(), IDENTITY)
    for batch in core.log:
        record = decode_batch(batch.payload)
        now = Now(record.engine_ms, record.wall_ms)
        for index, change in enumerate(record.changes):
            lsn = batch.first_lsn + index
            engine.replay(lsn, 1, encode_batch(now, [change]))
            engine.state.check()
            assert engine.state.digest() == live[lsn], f"LSN {lsn}: {change}"


def test_restart_at_every_record_gives_a_daemon_that_works():
    core = workload()
    for count in range(1, len(core.log) + 1):
        cut = Core()
        cut.log, cut.wall_ms = core.log[:count], core.wall_ms
        cut.restart()
        assert cut.submit() == cut.state.pages.next_id - 1
        cut.lease("a", "b", "default", count=100)
        cut.check()


_REPLAY = """
import hashlib, sys, msgspec
from jqd.core.changes import encode_part
from jqd.core.engine import Engine, Identity
from jqd.core.state import State
from tests.core.test_engine import workload

def digests(engine):
    dump, parts = engine.begin_dump(), hashlib.sha256()
    while images := dump.take_slice():
        parts.update(encode_part(images))
    return [engine.state.digest(), parts.hexdigest()]

log, parts = msgspec.msgpack.decode(open(sys.argv[1], "rb").read())
replayed, restored = (Engine(State(), Identity("", "")) for _ in range(2))
for record in log:
    replayed.replay(*record)
for part in parts:
    restored.restore(part)
lived = hashlib.sha256(b"".join(batch.payload for batch in workload().log)).hexdigest()
print(msgspec.json.encode([digests(replayed), digests(restored), lived]).decode())
"""


def test_nothing_depends_on_the_seed_of_hashes(tmp_path):
    """Interpreters with other hash seeds come to the same state, by the log and by a snapshot, and to the same snapshot
    of it; living through the same, they write the same log.
    """
    core = workload()
    log = [(batch.first_lsn, batch.count, batch.payload) for batch in core.log]
    parts = parts_of(core.engine.begin_dump())
    (tmp_path / "log").write_bytes(msgspec.msgpack.encode((log, parts)))
    facts = hashlib.sha256(b"".join(batch.payload for batch in core.log)).hexdigest()
    said = [core.state.digest(), hashlib.sha256(b"".join(parts)).hexdigest()]
    assert len(parts) > 1 and len(log) > 20
    for seed in ("0", "1", "4711"):
        got = subprocess.run(
            [sys.executable, "-c", _REPLAY, tmp_path / "log"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert msgspec.json.decode(got.stdout) == [said, said, facts], seed


def test_two_live_runs_write_the_same_log():
    assert [batch.payload for batch in workload().log] == [batch.payload for batch in workload().log]


# --- turns --------------------------------------------------------------------------------------


def test_turn_without_changes_has_no_record(core):
    core.engine.finish_turn(core.now)
    assert core.engine.take_batch() is None


def test_record_numbers_its_changes_and_carries_the_clocks(core):
    core.execute(c.Submit())
    core.execute(c.Submit())
    assert core.engine.has_changes
    batch = core.engine.take_batch()
    core.log.append(batch)
    assert (batch.first_lsn, batch.count) == (2, 2)
    record = decode_batch(batch.payload)
    assert (record.engine_ms, record.wall_ms) == (core.engine_ms, core.wall_ms)
    assert not core.engine.has_changes


def test_record_is_never_larger_than_the_bound_that_the_driver_asks_for():
    core = Core()
    caller = core.hello(b"s" * 16, worker="w" * 128)
    core.submit_jobs(10_000)
    assert core.engine.added_bytes_max == 0, "nothing of a turn that is over"
    leased = core.execute(c.Lease(count=10_000), caller)
    core.execute(c.Extend(items=[(leased.token, [(1, 5_000)])]), caller)
    core.execute(c.Fail(items=[(leased.token, [(1, 10_000)])], error="e" * 4_096), caller)
    core.engine.finish_turn(core.now)
    bound = core.engine.added_bytes_max
    batch = core.engine.take_batch()
    assert 0 < len(batch.payload) <= bound
    assert core.engine.added_bytes_max == 0


def test_change_without_an_apply_is_no_change():
    with pytest.raises(NotImplementedError):
        Change().apply(State(), Now(0, 0))


# --- fail stop ----------------------------------------------------------------------------------


def change_then_raise(command, state, caller, now, emit):
    emit(TimeAdvanced(1))
    raise KeyError("a bug")


def raise_at_once(command, state, caller, now, emit):
    raise KeyError("a bug")


def refuse(command, state, caller, now, emit):
    raise JobNotFound("none")


def test_failure_after_the_first_change_stops_the_process(monkeypatch):
    core = Core()
    monkeypatch.setitem(DECISIONS, c.Get, change_then_raise)
    with pytest.raises(FailStop, match=r"get failed after its first change: KeyError\('a bug'\)") as stop:
        core.execute(c.Get(job_id=1))
    assert isinstance(stop.value.__cause__, KeyError)


@pytest.mark.parametrize(("decision", "error"), [(raise_at_once, KeyError), (refuse, JobNotFound)])
def test_failure_before_the_first_change_changes_nothing(core, monkeypatch, decision, error):
    monkeypatch.setitem(DECISIONS, c.Get, decision)
    core.execute(c.Submit())
    digest = core.state.digest()
    with pytest.raises(error):
        core.execute(c.Get(job_id=1))
    assert core.state.digest() == digest
    assert core.execute(c.Submit()).job_id == 2


def test_change_that_cannot_be_applied_stops_the_process(monkeypatch):
    core = Core()
    core.submit()
    token, _ = core.held()
    monkeypatch.setattr(State, "finish", lambda *_: 1 // 0)
    with pytest.raises(FailStop, match="ack failed after its first change: ZeroDivisionError"):
        core.ack(token, 1)


def test_failure_while_jobs_expire_before_a_lease_stops_the_process(monkeypatch):
    core = Core()
    core.submit(expires_ms=1_000)
    core.move(1_000)
    monkeypatch.setattr(State, "finish", lambda *_: 1 // 0)
    with pytest.raises(FailStop, match="expiry of jobs failed after its first change: ZeroDivisionError"):
        core.execute(c.Lease())


def test_run_of_submits_that_cannot_be_applied_stops_the_process(monkeypatch):
    core = Core()
    monkeypatch.setattr(State, "add_jobs", lambda *_: 1 // 0)
    with pytest.raises(FailStop, match="submit failed after its first change: ZeroDivisionError"):
        core.submit_run([(1, c.Submit()), (2, c.Submit())])


def test_answer_that_cannot_be_kept_stops_the_process(monkeypatch):
    core = Core()
    caller = core.hello(b"s" * 16)
    monkeypatch.setattr(Engine, "_remember", lambda *_: 1 // 0)
    with pytest.raises(FailStop, match="submit failed after its first change"):
        core.do(c.Submit(), caller)


def test_failure_while_a_parked_lease_is_served_stops_the_process(monkeypatch):
    core = Core()
    core.do(c.Lease(wait_ms=9))
    core.execute(c.Submit())
    monkeypatch.setattr(leasing, "_leased_job", lambda _: 1 // 0)
    with pytest.raises(FailStop, match="lease failed after its first change"):
        core.turn()


# --- replay -------------------------------------------------------------------------------------


def record(*changes: Change) -> bytes:
    return encode_batch(Now(ENGINE_MS, 0), list(changes))


@pytest.mark.parametrize(
    ("payload", "count", "reason"),
    [
        (b"", 1, "not a record of this version"),
        (b"\x93\x01\x02\x91\x92\xcc\xc8\x01", 1, "not a record of this version"),
        (b"\x93\x01\x02\x91\x93\x02\x01\x01", 1, "not a record of this version"),
        (b"\x93\x01\x02\x91\x93\x0d\xc4\x01\x01\xa1\xff", 1, "not a record of this version"),
        (record(TimeAdvanced(1)), 2, "1 of 2 changes after LSN 3"),
        (record(TimeAdvanced(1), JobsDone([(9, 1)])), 2, "JobsDone was refused: AssertionError"),
    ],
)
def test_record_that_cannot_be_applied_is_named_by_its_lsn(core, payload, count, reason):
    core.submit_jobs(1)
    core.submit_jobs(1)
    engine = Engine(replayed(core.log), IDENTITY)
    with pytest.raises(ReplayFailed, match=reason) as failure:
        engine.replay(4, count, payload)
    assert failure.value.lsn == (5 if "refused" in reason else 4)
    assert str(failure.value).startswith(f"LSN {failure.value.lsn}: ")


@pytest.mark.parametrize("first_lsn", [1, 3, 5])
def test_record_out_of_sequence_is_refused(core, first_lsn):
    engine = Engine(replayed(core.log), IDENTITY)
    with pytest.raises(ReplayFailed, match="1 of 1 changes after LSN 1"):
        engine.replay(first_lsn, 1, record(TimeAdvanced(1)))


def test_replay_wakes_nobody(core):
    core.submit()
    assert replayed(core.log).woken == {}


def test_batch_is_what_the_store_keeps(core):
    assert core.log == [Batch(1, 1, core.log[0].payload)]
    assert ids_of(core.lease()) == []
