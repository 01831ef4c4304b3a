"""What the daemon decides at its start and its end; tests/e2e/test_daemon.py has the process."""

import errno
import os
import time
from itertools import count

import pytest

from jqd.core.changes import DaemonStarted, JobsDone, encode_batch
from jqd.core.model import DAY_MS, Now
from jqd.errors import ConfigurationError, Corruption, DiskFull, WriteFailed
from jqd.server import daemon
from jqd.server.config import Config
from jqd.server.notify import Notifier
from jqd.storage.base import Record
from jqd.storage.memory import MemoryStore

NOW = Now(2_000, 1_700_000_000_000)


def config(**settings):
    return Config(**{"data_dir": "/data", "unix": None, "max_connections": 10, **settings})


def started(first_lsn: int, epoch: int, wall_ms: int = 1_700_000_000_000) -> Record:
    payload = encode_batch(Now(first_lsn * 1_000, wall_ms), [DaemonStarted(epoch, "0")])
    return Record(first_lsn, 1, payload)


# --- recovery ---------------------------------------------------------------------------------


def test_recovery_applies_every_record():
    engine = daemon.recover(MemoryStore([started(1, 5), started(2, 9)]), config())
    assert (engine.state.lsn, engine.state.epoch) == (2, 9)
    assert engine.state.now == NOW


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (Record(2, 1, b"\xc1 not a batch"), "not a record of this version"),
        (Record(2, 2, started(2, 9).payload), "1 of 2 changes"),
        (Record(2, 1, encode_batch(NOW, [JobsDone([(1, 1)], None, "raw", "")])), "JobsDone was refused"),
    ],
)
def test_record_that_cannot_be_applied_is_refused_with_its_lsn(record, words):
    with pytest.raises(Corruption) as refusal:
        daemon.recover(MemoryStore([started(1, 5), record]), config())
    assert refusal.value.lsn == 2
    assert refusal.value.exit_code == 65
    assert words in str(refusal.value) and "/data" in str(refusal.value) and "LSN 2" in str(refusal.value)


class Told(Notifier):
    """A notifier that keeps what it is told."""

    def __init__(self):
        super().__init__(None)
        self.messages = []

    def tell(self, *lines, must_arrive=False):
        self.messages.append(lines)


def test_long_recovery_asks_for_more_time_before_all_and_every_second():
    told = Told()
    records = [started(number, number) for number in range(1, 41)]
    seconds = count(0, 0.25)  # one reading of the clock for each record
    daemon.recover(MemoryStore(records), config(), told, lambda: next(seconds))
    assert [lines[0] for lines in told.messages] == ["EXTEND_TIMEOUT_USEC=60000000"] * 12
    status = [lines[1].removeprefix("STATUS=Recovering: ") for lines in told.messages]
    assert status[:3] == ["reading snapshot and log", "4 records read, LSN 4", "8 records read, LSN 8"]
    assert status[-1] == "40 records read, preparing to serve"


# --- the clock --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead_ms", "refused"), [(-DAY_MS, False), (DAY_MS - 5_000, False), (DAY_MS + 60_000, True)]
)
def test_clock_far_before_the_newest_record_is_refused(ahead_ms, refused):
    wall_ms = time.time_ns() // 1_000_000 + ahead_ms
    engine = daemon.recover(MemoryStore([started(1, 5, wall_ms)]), config())
    daemon._check_clock(engine.state, config(accept_clock=True))
    if not refused:
        daemon._check_clock(engine.state, config())
        return
    with pytest.raises(ConfigurationError, match="86400 s.*--accept-clock") as refusal:
        daemon._check_clock(engine.state, config())
    assert refusal.value.exit_code == 78


# --- the data directory -------------------------------------------------------------------------


def test_parents_of_the_data_directory_are_made_and_private(tmp_path):
    before = os.umask(0o022)
    try:
        daemon._make_parents(str(tmp_path / "a" / "b" / "data"))
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a" / "b" / "data").exists()


# --- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WriteFailed("sync failed"), 74),
        (DiskFull("no room"), 74),
        (AssertionError("broken"), 70),
        (OSError(errno.EIO, "raw"), 70),
    ],
)
def test_failure_ends_the_process_at_once_with_its_code(monkeypatch, error, code):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    said: list[dict[str, object]] = []
    monkeypatch.setattr("jqd.server.daemon.log.critical", lambda event, **fields: said.append(fields))
    daemon._die(error)
    assert codes == [code]
    assert said[0]["exit_code"] == code and type(error).__name__ in str(said[0]["error"])
    # One line for what the disk did; a traceback for what nobody foresaw.
    assert said[0].get("exc_info") is (None if code == 74 else error)


# --- the status line --------------------------------------------------------------------------


def test_status_says_what_is_done_and_what_keeps_it_from_being_all():
    told = Told()
    status = daemon._Status(told)
    status.trouble("disk space", "new jobs are refused")
    assert told.messages == [], "nothing is served yet"
    assert status.begin("Serving x") == "STATUS=Serving x; new jobs are refused"
    status.trouble("disk speed", "the disk is slow")
    status.trouble("disk space", "")
    status.trouble("disk space", "")
    status.trouble("disk speed", "")
    assert [line for (line,) in told.messages] == [
        "STATUS=Serving x; new jobs are refused; the disk is slow",
        "STATUS=Serving x; the disk is slow",
        "STATUS=Serving x; the disk is slow",
        "STATUS=Serving x",
    ]
    assert status.begin("Draining") == "STATUS=Draining"
