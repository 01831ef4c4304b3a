"""The real daemon from start to exit: what it says, what it leaves behind, why it refuses to start."""

import os
import shutil
import signal
import socket
import stat
from pathlib import Path

import pytest

from jqd.core.changes import JobsDone, encode_batch
from jqd.core.model import Now
from jqd.storage.base import Record
from jqd.storage.wal import WalStore
from tests.support.daemon import Daemon, ended
from tests.support.wire import Wire, request

pytestmark = pytest.mark.e2e

DATA_DAMAGED, DIRECTORY_LOCKED, CONFIGURATION = 65, 75, 78


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def daemon(data):
    with Daemon(data) as started:
        yield started


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Return name -> (time of last change, bytes) of every file."""
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


def answers(path: str) -> bool:
    with Wire.connect(path) as wire:
        return "wall_ms" in wire.ask("ping")


def jobs_in(data: Path) -> list[int]:
    with Daemon(data) as daemon, daemon.client() as wire:
        return [job["job_id"] for job in wire.listed()]


# --- start and stop ---------------------------------------------------------------------------


def test_ready_line_says_where_it_listens(daemon):
    assert daemon.ready["pid"] == daemon.process.pid
    with Wire.connect(daemon.address) as wire:
        assert wire.ask("submit", payload=b"x") == {"job_id": 1}
    with Wire.connect(daemon.socket_path) as wire:
        assert wire.ask("get", job_id=1)["state"] == "ready"
    assert daemon.stray == []


def test_nobody_else_may_read_the_data_or_use_the_socket(daemon, data):
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    for path in data.iterdir():
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_0_and_the_next_start_is_clean(daemon, data, number):
    with daemon.client() as wire:
        token = wire.ask("submit", payload=b"x") and wire.ask("lease")["token"]
    daemon.signal(number)
    assert daemon.wait() == 0
    assert not (data / "jqd.sock").exists()
    assert [line["event"] for line in daemon.lines][-2:] == ["draining", "stopped"]
    epoch = daemon.ready["epoch"]
    with daemon.start().client() as wire:
        (recovered,) = daemon.logged("recovered")
        assert recovered["clean"] and recovered["jobs"] == 1
        assert daemon.ready["epoch"] > epoch
        assert wire.ask("ack", items=[[token, [[1, 1]], None]])["results"] == [[1, 1, "ok"]]


def test_stop_delivers_the_replies_of_what_it_took(daemon, data):
    with daemon.client() as wire:
        wire.write(b"".join(request(number, "submit", payload=b"x") for number in range(2, 5_002)))
        taken = [wire.receive()]
        daemon.signal(signal.SIGTERM)
        taken += wire.rest()
    assert daemon.wait() == 0
    assert [each.request_id for each in taken] == list(range(2, 2 + len(taken)))
    assert {each.status for each in taken} <= {"ok", "draining"}
    assert jobs_in(data) == [each.body["job_id"] for each in taken if each.status == "ok"]


def test_stop_sends_away_who_is_parked(daemon):
    with daemon.client() as wire, daemon.client() as other:
        wire.send(2, "lease", {"wait_ms": 30_000})
        while other.ask("stats")["parked_count"] == 0:
            pass
        daemon.signal(signal.SIGTERM)
        answer = wire.receive()
        assert (answer.request_id, answer.status, answer.body["jobs"]) == (2, "ok", [])
        assert wire.rest() == []
    assert daemon.wait() == 0


def test_stop_cuts_who_does_not_read(data):
    with Daemon(data, "--drain-ms", "0") as daemon, daemon.client() as wire:
        wire.ask("submit", payload=bytes(1 << 20))
        wire.write(b"".join(request(number, "get", job_id=1) for number in range(2, 100)))
        assert wire.receive().status == "ok"
        assert daemon.stop() == 0


def test_killed_daemon_comes_back_with_all_it_said(daemon, data):
    with daemon.client() as wire:
        for number in range(1, 21):
            assert wire.ask("submit", payload=b"x") == {"job_id": number}
    daemon.kill()
    assert (data / "jqd.sock").exists(), "a killed daemon leaves its socket behind"
    with daemon.start().client() as wire:
        (recovered,) = daemon.logged("recovered")
        assert not recovered["clean"]
        assert len(wire.listed()) == 20
    assert answers(daemon.socket_path)


# --- one directory, one daemon ------------------------------------------------------------------


def test_second_daemon_on_a_directory_is_refused_and_touches_nothing(daemon, data):
    with daemon.client() as wire:
        wire.ask("submit", payload=b"x")
        daemon.signal(signal.SIGSTOP)  # so that what changes is not its doing
        before = contents(data)
        result = ended(data)
        assert contents(data) == before
        daemon.signal(signal.SIGCONT)
        assert result.code == DIRECTORY_LOCKED
        assert str(data) in result.complaint
        assert wire.ask("get", job_id=1)["state"] == "ready"
    assert answers(daemon.socket_path)


@pytest.mark.slow
def test_of_many_starts_at_once_one_wins(data):
    daemons = [Daemon(data, "--unix", "off") for _ in range(8)]
    try:
        for each in daemons:
            each.launch()
        codes = []
        for each in daemons:
            try:
                each.ready = each.wait_for("ready")
            except AssertionError:
                codes.append(each.wait())
        assert codes == [DIRECTORY_LOCKED] * 7
    finally:
        for each in daemons:
            each.kill()


# --- what it refuses to start with ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--listen", "0.0.0.0:7717"], ["listen", "0.0.0.0:7717", "loopback"]),
        (["--listen", "nonsense"], ["listen", "nonsense"]),
        (["--segment-bytes", "5"], ["segment_bytes", "5", "1MiB"]),
        (["--unix", "/" + "x" * 107], ["unix", "107 bytes", "108"]),
        (["--listen", "off", "--unix", "off"], ["listen", "unix", "off"]),
        (["--config", "/nonexistent/jqd.toml"], ["config", "/nonexistent/jqd.toml"]),
        (["--sync", "sometimes"], ["sync", "sometimes"]),
    ],
)
def test_bad_setting_is_refused_before_anything_is_made(data, flags, words):
    result = ended(data, *flags)
    assert result.code == CONFIGURATION
    for word in words:
        assert word in result.complaint
    assert not data.exists()


def test_socket_in_a_directory_of_too_long_a_name_is_refused(tmp_path):
    data = tmp_path / ("d" * 100)
    result = ended(data)
    assert result.code == CONFIGURATION
    assert "107 bytes" in result.complaint and "unix" in result.complaint
    assert not data.exists()


def test_unknown_key_in_the_file_is_refused(data, tmp_path):
    file = tmp_path / "jqd.toml"
    file.write_text('lissten = "127.0.0.1:1"\n')
    result = ended(data, "--config", str(file))
    assert result.code == CONFIGURATION
    assert f"{file}:1" in result.complaint and "did you mean listen" in result.complaint


@pytest.mark.parametrize("below", ["", "/data"])
def test_directory_that_is_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    result = ended(f"{tmp_path}/file{below}", "--unix", "off")
    assert result.code == CONFIGURATION
    assert str(tmp_path / "file") in result.complaint
    assert (tmp_path / "file").read_text() == "mine"


def test_directory_that_cannot_be_written_is_refused():
    result = ended("/proc/jqd-data", "--unix", "off")  # nobody can make a directory there, not even root
    assert result.code == CONFIGURATION
    assert "/proc/jqd-data" in result.complaint


def test_address_in_use_is_refused(daemon, tmp_path):
    address = "{}:{}".format(*daemon.address)
    result = ended(tmp_path / "other", "--listen", address)
    assert result.code == CONFIGURATION
    assert address in result.complaint
    assert "in use" in result.complaint


def test_served_socket_is_refused_and_left_alone(daemon, tmp_path):
    result = ended(tmp_path / "other", "--unix", daemon.socket_path)
    assert result.code == CONFIGURATION
    assert daemon.socket_path in result.complaint and "serves this socket" in result.complaint
    assert answers(daemon.socket_path)


def test_socket_path_that_is_a_file_is_refused_and_left_alone(data, tmp_path):
    (tmp_path / "precious").write_text("mine")
    result = ended(data, "--unix", str(tmp_path / "precious"))
    assert result.code == CONFIGURATION
    assert str(tmp_path / "precious") in result.complaint
    assert (tmp_path / "precious").read_text() == "mine"


def test_stale_socket_is_replaced(data, tmp_path):
    path = tmp_path / "jqd.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # and nobody listens
    with Daemon(data, "--unix", str(path)) as daemon:
        assert answers(daemon.socket_path)
        assert daemon.stop() == 0
    assert not path.exists()


@pytest.mark.slow
def test_start_that_was_refused_leaves_a_directory_that_works(daemon, data, tmp_path):
    other = tmp_path / "other"
    with Daemon(other) as first, first.client() as wire:
        wire.ask("submit", payload=b"x")
        first.stop()
    assert ended(other, "--listen", "{}:{}".format(*daemon.address)).code == CONFIGURATION
    assert jobs_in(other) == [1]


def test_python_without_asserts_is_refused(data):
    result = ended(data, python=["-O"])
    assert result.code == CONFIGURATION
    assert "python -O" in result.complaint
    assert not data.exists()


# --- what is in the directory -------------------------------------------------------------------


def killed_log(data: Path, count: int = 10) -> Path:
    """Leave a log of some jobs as a killed daemon does; return its last segment."""
    with Daemon(data) as daemon, daemon.client() as wire:
        for _ in range(count):
            wire.ask("submit", payload=b"payload")
    return max(data.glob("*.wal"))


def test_torn_tail_is_cut_and_kept(data):
    segment = killed_log(data)
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-5])
    with Daemon(data) as daemon, daemon.client() as wire:
        assert [job["job_id"] for job in wire.listed()] == list(range(1, 10))
        (warning,) = daemon.logged("torn_tail_cut")
        assert warning["level"] == "warning"
        copy = Path(warning["copy"]).read_bytes()
        assert warning["bytes"] == len(copy) > 0
        assert whole[:-5].endswith(copy)
        assert wire.ask("submit", payload=b"x") == {"job_id": 10}
    assert jobs_in(data) == list(range(1, 11))


def damage_middle(segment: Path) -> None:
    data = bytearray(segment.read_bytes())
    data[data.index(b"payload", len(data) // 2)] ^= 0x10
    segment.write_bytes(data)


def damage_end(segment: Path) -> None:
    segment.write_bytes(segment.read_bytes()[:-1])


def remove(segment: Path) -> None:
    segment.unlink()


@pytest.mark.parametrize(
    ("damage", "stop_cleanly"),
    [(damage_middle, False), (damage_end, True), (remove, True)],
)
def test_damaged_log_is_refused_and_left_alone(data, damage, stop_cleanly):
    segment = killed_log(data)
    if stop_cleanly:
        with Daemon(data) as daemon:
            assert daemon.stop() == 0
        segment = max(data.glob("*.wal"))
    damage(segment)
    before = contents(data)
    result = ended(data)
    assert result.code == DATA_DAMAGED
    assert str(segment) in result.complaint
    assert "byte " in result.complaint or "missing" in result.complaint
    assert "restore a backup" in result.complaint
    assert contents(data) == before


def test_damaged_snapshot_is_replaced_by_the_older_one(data):
    with Daemon(data) as daemon:
        for number in range(1, 4):
            with daemon.client() as wire:
                wire.ask("submit", payload=b"%d" % number)
                if number < 3:
                    wire.ask("snapshot")
            if number < 3:
                daemon.wait_for("snapshot_made")
        daemon.kill()
        older, newest = sorted(data.glob("*.snap"))
        damaged = bytearray(newest.read_bytes())
        damaged[100] ^= 1
        newest.write_bytes(damaged)
        daemon.start()
        (line,) = daemon.logged("snapshot_damaged")
        assert str(newest) in line["damage"]
        assert daemon.logged("recovered")[0]["snapshot_lsn"] == int(older.stem, 16)
    assert (data / "quarantine" / newest.name).read_bytes() == damaged
    assert jobs_in(data) == [1, 2, 3]


def test_record_that_cannot_be_applied_is_refused_with_its_lsn_and_left_alone(data):
    killed_log(data)
    store = WalStore(str(data))
    lsn = [record.last_lsn for record in store.load()][-1] + 1
    poison = encode_batch(Now(1 << 40, 1_700_000_000_000), [JobsDone([(99, 1)], None, "raw", "")])
    store.append([Record(lsn, 1, poison)])
    store.close()
    before = contents(data)
    for _ in range(2):
        result = ended(data)
        assert result.code == DATA_DAMAGED
        assert f"LSN {lsn}: JobsDone was refused" in result.complaint and str(data) in result.complaint
        assert contents(data) == before


def test_newer_format_is_refused(data):
    killed_log(data)
    (data / "store").write_bytes(b"not a store of jqd" * 4)
    result = ended(data)
    assert result.code == DATA_DAMAGED
    assert str(data / "store") in result.complaint


@pytest.mark.slow
def test_copy_of_a_directory_is_a_backup(data, tmp_path):
    with Daemon(data) as daemon, daemon.client() as wire:
        wire.ask("submit", payload=b"x")
        first = wire.ask("lease")["token"]
        daemon.stop()
    shutil.copytree(data, tmp_path / "copy")
    with Daemon(data) as daemon, daemon.client() as wire:
        wire.ask("release", items=[[first, [[1, 1]]]])
        second = wire.ask("lease")["token"]
    with Daemon(tmp_path / "copy") as daemon, daemon.client() as wire:
        wire.ask("release", items=[[first, [[1, 1]]]])
        assert first < second
        third = wire.ask("lease")["token"]
        assert third > first
        # What the worker of the other life holds is worth nothing here.
        if third != second:
            assert wire.ask("ack", items=[[second, [[1, 1]], None]])["results"] == [[1, 1, "lease_lost"]]


def test_open_files_stay_bounded(daemon):
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    for _ in range(50):
        with daemon.client() as wire:
            wire.ask("ping")
    with daemon.client() as wire:
        while wire.ask("stats")["process"]["connections"] > 1:
            pass
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before + 1
