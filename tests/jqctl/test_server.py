"""jqctl snapshot: it ends when the snapshot is made, or says that there will be none."""

import pytest

from jqctl import server
from jqd.core.commands import ServerStats, SnapshotBegun
from tests.support.shell import Shell


def figures(**process: int) -> ServerStats:
    return ServerStats(
        server="jqd test",
        store_id="0" * 32,
        epoch=1,
        engine_ms=1,
        wall_ms=1,
        uptime_ms=1,
        lsn=7,
        jobs={},
        queue_count=0,
        lease_count=0,
        parked_count=0,
        waiting_count=0,
        session_count=0,
        key_count=0,
        result_bytes=0,
        memory_bytes=0,
        ended_bytes=0,
        tenant_count=0,
        tenants={},
        process={"snapshot_bytes": 512, "log_bytes": 1_024, **process},
    )


@pytest.fixture
def readings(shell, monkeypatch) -> list[ServerStats]:
    """What the server's stats say, one after the other; nothing is waited for in between."""
    readings: list[ServerStats] = []
    shell.server.answers["snapshot"] = SnapshotBegun(lsn=7)
    shell.server.answers["stats"] = lambda _: readings.pop(0)
    monkeypatch.setattr(server, "wait", lambda _: None)
    return readings


def test_snapshot_ends_when_it_is_made(shell: Shell, readings):
    readings += [figures(snapshot_lsn=3, snapshot_under_way=1)] * 2
    readings += [figures(snapshot_lsn=9, snapshot_under_way=0)]
    assert shell.json("snapshot") == [
        {"lsn": 7, "snapshot_lsn": 9, "snapshot_bytes": 512, "log_bytes": 1_024}
    ]
    assert not readings


def test_snapshot_that_was_given_up_is_exit_code_1(shell: Shell, readings):
    readings += [figures(snapshot_lsn=3, snapshot_under_way=1), figures(snapshot_lsn=3, snapshot_under_way=0)]
    code, out, err = shell("snapshot")
    assert (code, out) == (1, "")
    assert err == "jqctl: the snapshot of LSN 7 was given up: the daemon's log says why\n"


def test_snapshot_need_not_be_waited_for(shell: Shell, readings):
    assert shell("snapshot", "--no-wait", "-o", "id") == (0, "7\n", "")
    assert not readings
