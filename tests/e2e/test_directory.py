"""One directory and more daemons, or more lives, than it should have. Faults 28 and 29 of docs/faults.md."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.daemon import ROOT, Daemon, Line, command, environment, wait_for_the_clock
from tests.support.wire import PATIENCE_S, Wire

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(120)]

DIRECTORY_LOCKED = 75
STARTS = 50
ROUNDS = 8
TORN = b"\xa7jqd, and no more"
FLAGS = ("--unix", "off")

# Forks its children when all of jqd is imported and lets them go at one moment: separate programs would come to the
# lock one after the other. Writes a line `exit code` as each ends, and ends what is left when its input does.
_TOGETHER = """
import os, signal, sys, threading
import jqd.__main__, jqd.server.daemon
count, argv = int(sys.argv[1]), sys.argv[2:]
wait_here, let_go = os.pipe()
children = set()
for _ in range(count):
    child = os.fork()
    if child == 0:
        os.close(let_go)
        os.read(wait_here, 1)
        try:
            jqd.__main__.main(argv)
        except SystemExit as end:
            os._exit(end.code or 0)
    children.add(child)
os.close(let_go)
def end():
    sys.stdin.read()
    for child in set(children):
        os.kill(child, signal.SIGTERM)
threading.Thread(target=end, daemon=True).start()
while children:
    child, status = os.wait()
    children.discard(child)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Race(NamedTuple):
    """What many starts at once came to."""

    ready: list[Line]  # lines of the log
    recovered: int  # how many got as far as reading the log
    complaints: list[str]
    losers: list[int]  # exit codes


@contextmanager
def many_starts(data: Path, winners: int) -> Iterator[Race]:
    """Start many daemons at one moment; when the losers are gone, the winner serves."""
    argv = command(data, *FLAGS)[3:]
    racing = subprocess.Popen(
        [sys.executable, "-c", _TOGETHER, str(STARTS), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
    )

    def ends(count: int) -> list[int]:
        lines = [racing.stdout.readline() for _ in range(count)]
        assert all(lines), f"not all of {STARTS} starts ended within {PATIENCE_S} s: {lines}"
        return [int(line) for line in lines]

    def kill_all() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(racing.pid, signal.SIGKILL)

    with racing:
        guard = threading.Timer(PATIENCE_S, kill_all)
        guard.start()
        try:
            race = Race([], 0, [], ends(STARTS - winners))
            recovered = 0
            while len(race.complaints) < STARTS - winners or len(race.ready) < winners:
                line = racing.stderr.readline()
                assert line, f"a start said nothing: {race}"
                if line.startswith("jqd: "):
                    race.complaints.append(line)
                elif (told := json.loads(line))["event"] == "ready":
                    race.ready.append(told)
                else:
                    recovered += told["event"] == "recovered"
            yield race._replace(recovered=recovered)
            racing.stdin.close()
            assert ends(winners) == [0] * winners
        finally:
            guard.cancel()
            kill_all()


def looks(data: Path) -> dict[str, tuple[int, ...]]:
    """Return what a touch would change, of the directory and of everything in it."""
    return {
        str(path): (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for path in [data, *sorted(data.rglob("*"))]
        for stat in [path.stat()]
    }


def test_of_fifty_starts_at_once_one_wins_and_the_others_change_nothing(tmp_path):
    data = tmp_path / "data"
    jobs: list[int] = []
    epochs: list[int] = []
    for number in range(ROUNDS):
        with many_starts(data, winners=1) as race:
            assert race.losers == [DIRECTORY_LOCKED] * (STARTS - 1)
            assert all(str(data) in line for line in race.complaints)
            assert race.recovered == 1, "a loser has read the log"
            (ready,) = race.ready
            epochs.append(ready["epoch"])
            (url,) = ready["listen"]
            host, _, port = url.removeprefix("jqd://").rpartition(":")
            with Wire.connect((host, int(port))) as wire:
                assert [job["job_id"] for job in wire.listed()] == jobs
                jobs.append(wire.ask("submit")["job_id"])
        # One start is one more segment.
        assert len(list(data.glob("*.wal"))) == number + 1
        assert not list(data.glob("*.tmp"))
    assert epochs == sorted(set(epochs))


@pytest.mark.parametrize("torn", [False, True])
def test_fifty_starts_on_a_held_directory_change_nothing(tmp_path, torn):
    data = tmp_path / "data"
    with Daemon(data, *FLAGS) as daemon, daemon.client() as wire:
        wire.ask("submit")
    if torn:  # what a start would cut
        with (data / "0000000000000001.wal").open("ab") as segment:
            segment.write(TORN)
    with (data / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = looks(data)
        with many_starts(data, winners=0) as race:
            assert race.losers == [DIRECTORY_LOCKED] * STARTS
            assert race.recovered == 0
        assert looks(data) == before


# --- an older backup ------------------------------------------------------------------------------

COPIES = 10


def test_restored_backup_never_gives_out_a_token_again(tmp_path):
    data = tmp_path / "data"
    tokens: list[int] = []
    lsns: list[int] = []

    def work(wire: Wire) -> None:
        for _ in range(3):
            wire.ask("submit", max_retries=1_000)
            tokens.append(wire.ask("lease")["token"])
        lsns.append(wire.try_ask("ping").lsn)

    with Daemon(data, *FLAGS) as daemon, daemon.client() as wire:
        store_id = wire.ask("stats")["store_id"]
        epoch = wire.ask("stats")["epoch"]
        for number in range(COPIES):
            work(wire)
            shutil.copytree(data, tmp_path / f"copy-{number}")
        work(wire)
    newest_lsn = lsns[-1]
    for number in range(COPIES):
        shutil.rmtree(data)
        shutil.copytree(tmp_path / f"copy-{number}", data)
        wait_for_the_clock(epoch)
        with Daemon(data, *FLAGS) as daemon, Wire.open(daemon.address) as wire:
            welcome = wire.try_ask("hello", version=1)
            # What tells a client that the store went back: the same store, a later run, a lower LSN.
            assert welcome.body["store_id"] == store_id
            assert welcome.body["epoch"] > epoch
            assert welcome.lsn < newest_lsn
            epoch = welcome.body["epoch"]
            assert len(wire.listed()) == 3 * (number + 1)
            work(wire)
    assert len(tokens) == 3 * (2 * COPIES + 1)
    assert len(set(tokens)) == len(tokens)
    assert tokens == sorted(tokens)
