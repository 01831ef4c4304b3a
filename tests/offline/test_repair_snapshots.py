"""Repairs of logs that begin with a snapshot."""

import random
from copy import copy

import pytest

from jqctl.facts import to_record
from jqctl.output import to_json
from jqd.core.engine import Engine
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.offline.check import ask_recovery, examine
from jqd.offline.dump import Wanted, facts
from jqd.offline.files import Overlay
from jqd.offline.repair import repair
from jqd.offline.walk import Log
from jqd.storage.base import RecoveryReport
from jqd.storage.wal import WalStore
from tests.offline.history import History, made, snapshot
from tests.offline.test_repair import damaged, delete, flip, listing, repeat_file, shorten, swap_files, zero
from tests.storage.logs import DATA
from tests.support.faultfs import DROP, FaultDisk

PLAIN = made(clean=True)
SNAPPED_AT = (6, 13)  # records


def with_snapshots(*, clean: bool) -> History:
    disk = FaultDisk()
    store = WalStore(DATA, fs=disk, segment_bytes=400)
    list(store.load())
    for number, record in enumerate(PLAIN.records, 1):
        store.append([record])
        store.sync()
        if number in SNAPPED_AT:
            snapshot(store, PLAIN.state(number))
    if clean:
        store.close()
    disk.kill()
    return History(disk, PLAIN.records, disk.listing(DATA), PLAIN.touched)


CLEAN = with_snapshots(clean=True)
KILLED = with_snapshots(clean=False)


def loaded(disk: FaultDisk) -> State:
    """Return the state that a daemon would start with."""
    engine = Engine(State(), Identity(server="", store_id=""))
    store = WalStore(DATA, fs=Overlay(disk))
    for part in store.load_snapshot():
        engine.restore(part)
    for record in store.load():
        engine.replay(record.first_lsn, record.count, record.payload)
    disk.kill()
    return engine.state


def facts_of(state: State) -> str:
    """Return a digest of all but the numbers that a repair raises behind what it leaves: LSN and next id."""
    twin = copy(state)
    twin.pages = copy(state.pages)
    twin.lsn = twin.pages.next_id = 0
    return twin.digest()


def test_log_that_begins_with_a_snapshot_is_read_from_it():
    assert len([name for name in CLEAN.files if name.endswith(".snap")]) == 2
    assert "0000000000000001.wal" not in CLEAN.files
    found = examine(CLEAN.disk.clone(), DATA)
    assert found.problems == []
    assert found.state.digest() == PLAIN.state(len(PLAIN.records)).digest()
    assert found.log.base.lsn == PLAIN.records[SNAPPED_AT[1] - 1].last_lsn


@pytest.mark.parametrize("history", [CLEAN, KILLED], ids=["clean", "killed"])
@pytest.mark.parametrize(
    "damage", [flip, shorten, delete, swap_files, repeat_file, zero], ids=lambda each: each.__name__
)
def test_repair_keeps_the_longest_good_part_and_says_what_goes(history, damage):
    states = {facts_of(PLAIN.state(count)): count for count in range(len(PLAIN.records) + 1)}
    needed = 0
    for seed in range(60):
        rng = random.Random(seed)
        files = {name: data for name, data in history.files.items() if name != "lock"}
        damage(files, rng)
        if rng.random() < 0.5:
            flip(files, rng)
        disk = damaged(history, files)
        before = listing(disk)
        dry = repair(disk, DATA, accept_loss=False)
        assert listing(disk) == before
        if not dry.steps:
            assert isinstance(ask_recovery(disk, DATA), RecoveryReport)
            continue
        needed += 1
        done = repair(disk, DATA, accept_loss=True)
        assert done.is_done and done.loss == dry.loss
        disk.power_loss(DROP)
        state = loaded(disk)
        assert state.pages.next_id >= PLAIN.state(len(PLAIN.records)).pages.next_id
        kept = states[facts_of(state)]
        assert done.loss.first_lsn == state.lsn + (state.pages.next_id == PLAIN.state(kept).pages.next_id)
        whole = [
            count
            for count, name in zip(
                SNAPPED_AT, sorted(n for n in history.files if n.endswith(".snap")), strict=True
            )
            if files.get(name) == history.files[name]
        ]
        assert kept >= max(whole, default=0)
        assert repair(disk, DATA, accept_loss=True).steps == []
    assert needed > 5


def test_dump_begins_with_the_facts_of_the_snapshot():
    log = Log(CLEAN.disk.clone(), DATA)
    found = list(facts(log, Wanted()))
    images = [fact for fact in found if fact.segment is None]
    state = State()
    for fact in images:
        fact.change.apply(state, state.now)
    assert state.digest() == PLAIN.state(SNAPPED_AT[1]).digest()
    assert {fact.lsn for fact in images} == {log.base.lsn}
    assert [fact.lsn for fact in found[len(images) :]] == list(
        range(log.base.lsn + 1, PLAIN.records[-1].last_lsn + 1)
    )
    for queue in ("mail", "bulk"):
        lsns = [fact.lsn for fact in facts(log, Wanted(queue=queue)) if fact.lsn > log.base.lsn]
        plain = [fact.lsn for fact in facts(Log(PLAIN.disk.clone(), DATA), Wanted(queue=queue))]
        assert lsns == [lsn for lsn in plain if lsn > log.base.lsn]
    for fact in images:
        to_json(to_record({"lsn": fact.lsn}, fact.change))
