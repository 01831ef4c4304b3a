"""Plant a bug in a copy of the package and see the guarding tests go red: tests that cannot fail guard nothing.

Each bug is one replacement in one file. A text that is no longer there fails as well: then the bug has to
be planted where the code is now. That the same tests are green in a copy without a bug is tested first.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.planting import ROOT, check_place, copy_package, plant

KILL_LOOP = "tests/e2e/test_kill.py"
DISK = "tests/e2e/test_disk.py::test_failed_call_is_the_last_one_and_nothing_is_acknowledged_by_it[fdatasync-EIO-3]"
DAMAGE = "tests/e2e/test_daemon.py::test_damaged_log_is_refused_and_left_alone[damage_middle-False]"
STALE = "tests/e2e/test_bad_input.py::test_token_that_is_not_the_jobs_is_refused"
FAILED_WRITE = DISK.replace("fdatasync-EIO-3", "write-EIO-3")
HELD = "tests/e2e/test_directory.py::test_fifty_starts_on_a_held_directory_change_nothing[True]"
RESTORED = "tests/e2e/test_directory.py::test_restored_backup_never_gives_out_a_token_again"
CLOCK = "tests/e2e/test_clock.py::test_jumps_of_the_wall_clock_move_dates_and_nothing_else"
KILLED_IN_ROTATION = (
    "tests/e2e/test_kill_at_call.py::test_daemon_that_serves_may_be_killed_at_any_call[rotation]"
)
COMMITTER = "tests/server/test_committer.py"
DRIVER = "tests/server/test_driver.py"


class Planted(NamedTuple):
    file: str
    old: str
    new: str
    guards: tuple[str, ...]  # each must go red by itself


PLANTED = {
    "acknowledge before the sync": Planted(
        "jqd/server/committer.py",
        "        self._store.append(records)\n",
        "        self._store.append(records)\n        self._on_durable(records[-1].last_lsn)\n",
        (COMMITTER, DRIVER, DISK),
    ),
    "answer reads before the sync of what they saw": Planted(
        "jqd/server/driver.py",
        "        elif not self._waiting:\n",
        "        elif True:\n",
        (DRIVER,),
    ),
    "skip a bad record": Planted(
        "jqd/storage/segment.py",
        "            if body is None:\n",
        "            if body is None and header.type == FrameType.BATCH:\n"
        "                offset += frame_bytes(header)\n"
        "                chain.crc = int.from_bytes(data[offset - 4 : offset], 'little')\n"
        "                chain.last_lsn += header.change_count\n"
        "                continue\n"
        "            if body is None:\n",
        (DAMAGE,),
    ),
    "cut the log at a bad record": Planted(
        "jqd/storage/wal.py",
        "        elif end.verdict is Verdict.TORN and may_be_torn:\n",
        "        elif may_be_torn:\n",
        (DAMAGE,),
    ),
    "accept a stale token": Planted(
        "jqd/core/holding.py",
        "    if job.lease is None or job.lease.token != token or job.lease.deadline_ms <= judged_ms:\n",
        "    if job.lease is None or job.lease.deadline_ms <= judged_ms:\n",
        (STALE, KILL_LOOP),
    ),
    "end leases at a restart": Planted(
        "jqd/core/state.py",
        "lease.deadline_ms = max(lease.deadline_ms, now.engine_ms + grace_ms)",
        "lease.deadline_ms = now.engine_ms + 0 * grace_ms",
        (KILL_LOOP,),
    ),
    "carry a repeated request out again": Planted(
        "jqd/core/engine.py",
        "        answer = record.answers.get(request_id)\n",
        "        answer = None\n",
        (KILL_LOOP,),
    ),
    "count a restart as an attempt": Planted(
        "jqd/core/state.py",
        "                lease.restarted = True\n",
        "                lease.restarted = True\n"
        "                for first, count in lease.ranges:\n"
        "                    for job in self.run(first, count):\n"
        "                        if job is not None and job.lease is lease:\n"
        "                            job.attempt += 1\n",
        (KILL_LOOP,),
    ),
    "take a lease back that was sent again": Planted(
        "jqd/server/session.py",
        "                if not unsent[token]:\n                    del unsent[token]\n",
        "                if True:\n                    del unsent[token]\n",
        (DRIVER,),
    ),
    "try a failed sync again": Planted(
        "jqd/storage/segment.py",
        "        self._fs.sync(self._handle)\n",
        "        try:\n"
        "            self._fs.sync(self._handle)\n"
        "        except OSError:\n"
        "            self._fs.sync(self._handle)\n",
        (DISK,),
    ),
    "try a failed write again": Planted(
        "jqd/storage/segment.py",
        "    written = fs.write(handle, data)\n",
        "    try:\n"
        "        written = fs.write(handle, data)\n"
        "    except OSError:\n"
        "        written = fs.write(handle, data)\n",
        (FAILED_WRITE,),
    ),
    "name a segment in `store` before it is there": Planted(
        "jqd/storage/wal.py",
        "            self._directory.publish(name)\n"
        "            self._store = self._store._replace(segment_no=segment_no, clean_bytes=0)\n"
        "            self._directory.write_store_file(self._store)\n",
        "            self._store = self._store._replace(segment_no=segment_no, clean_bytes=0)\n"
        "            self._directory.write_store_file(self._store)\n"
        "            self._directory.publish(name)\n",
        (KILLED_IN_ROTATION,),
    ),
    "serve a directory that another has": Planted(
        "jqd/storage/fs.py",
        "        except BlockingIOError:\n            os.close(handle)\n            return None\n",
        "        except BlockingIOError:\n            return handle\n",
        (HELD,),
    ),
    "count epochs from the log alone": Planted(
        "jqd/core/leasing.py",
        "    return max(state.epoch + 1, date if date <= model.EPOCH_DATE_MAX else 0)\n",
        "    return state.epoch + 1\n",
        (RESTORED,),
    ),
    "measure durations by the wall clock": Planted(
        "jqd/server/driver.py",
        "    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000\n",
        "    return time.time_ns() // 1_000_000\n",
        (CLOCK,),
    ),
}
GUARDS = sorted({guard for planted in PLANTED.values() for guard in planted.guards})


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the package in which its tests can be run."""
    copy_package(tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(copy: Path, *guards: str) -> "subprocess.CompletedProcess[str]":
    """Run tests in a copy. The kill loop is short there: a bug that needs luck to show is no good example."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "", "-p", "no:cacheprovider", *guards],
        cwd=copy,
        env={
            **environment,
            "JQD_KILLS": "4",
            "JQD_TEST_PATIENCE_S": "10",
            "PYTHONPATH": str(copy),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize("name", PLANTED)
def test_place_of_a_planted_bug_is_there(name):
    check_place(PLANTED[name])


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_guards_are_green_without_a_bug(copy):
    done = run(copy, *GUARDS)
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "guard"),
    [(name, guard) for name, planted in PLANTED.items() for guard in planted.guards],
    ids=lambda value: value.partition("::")[0].rpartition("/")[2],
)
def test_planted_bug_turns_its_guard_red(copy, name, guard):
    plant(PLANTED[name], copy)
    done = run(copy, guard)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
