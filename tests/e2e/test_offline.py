"""A real daemon's directory is damaged, looked into, repaired and started again: the jobs are those that were reported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon, ended, environment
from tests.support.wire import Wire

pytestmark = pytest.mark.e2e


def jqctl(*args: str | Path, code: int = 0) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "jqctl", *map(str, args), "-o", "json"],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=30,
    )
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def states(wire: Wire) -> dict[int, str]:
    """Return the state of every job by its id."""
    jobs = wire.ask("list", limit=1_000)["jobs"]
    return {job["job_id"]: job["state"] for job in jobs}


def work(wire: Wire) -> None:
    """Submit thirty jobs, and finish each second one; each step is a record of its own."""
    for number in range(30):
        wire.ask("submit", queue="work", payload=b"x" * 100)
        if number % 2:
            held = wire.ask("lease", queues=["work"], lease_ms=600_000)
            wire.ask("ack", items=[[held["token"], [[held["jobs"][0]["job_id"], 1]], None]])


def damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_damaged_log_is_repaired_and_holds_what_was_reported(tmp_path, end):
    data = tmp_path / "data"
    with Daemon(data) as daemon:
        with daemon.client() as wire:
            work(wire)
            before = states(wire)
        assert jqctl("wal", "verify", data)[0]["ok"]
        jqctl("wal", "repair", data, code=75)
        if end == "stopped":
            assert daemon.stop() == 0
        else:
            daemon.kill()
        segment = data / "0000000000000001.wal"
        damage(segment, segment.stat().st_size * 2 // 3)

        refused = ended(data)
        assert refused.code == 65
        assert f"{segment}: byte " in refused.complaint
        assert "jqctl wal verify DIR" in refused.complaint
        (verified,) = jqctl("wal", "verify", data, code=65)
        assert f"{verified['problems'][0]['message']};" in refused.complaint
        kept = segment.read_bytes()
        (said,) = jqctl("wal", "repair", data, code=65)
        assert segment.read_bytes() == kept
        (done,) = jqctl("wal", "repair", "--accept-loss", data)
        assert done["loss"] == said["loss"]
        copies = b"".join(Path(copy).read_bytes() for copy in done["copies"] if "store" not in copy)
        assert segment.read_bytes() + copies == kept

        daemon.start()
        with daemon.client() as wire:
            after = states(wire)
            told = {
                job_id: run
                for run in said["loss"]["jobs"]
                for job_id in range(int(run["first_id"]), int(run["first_id"]) + run["count"])
            }
            gone = {job_id for job_id, run in told.items() if run["becomes"] == "gone"}
            assert gone == before.keys() - after.keys() != set()
            assert {job_id: after[job_id] for job_id in told.keys() - gone} == {
                job_id: told[job_id]["becomes"] for job_id in told.keys() - gone
            }
            # What could not be read may have moved one more: the record with the damage had one job's step in it.
            unlike = {job_id for job_id in after.keys() - told.keys() if after[job_id] != before[job_id]}
            assert len(unlike) <= len(said["loss"]["unreadable"]) == 1
            assert all(run.get("was") in (None, before[job_id]) for job_id, run in told.items())
            # Nor is the id of a job that went given to another one.
            job_id = wire.ask("submit", queue="work", payload=b"")["job_id"]
            assert job_id == int(said["loss"]["next_id"]) > max(before)


def test_store_file_is_made_anew_and_every_job_is_there(tmp_path):
    data = tmp_path / "data"
    with Daemon(data) as daemon:
        with daemon.client() as wire:
            work(wire)
            before = states(wire)
        daemon.kill()
        (data / "store").unlink()
        assert ended(data).code == 65
        (done,) = jqctl("wal", "repair", "--accept-loss", data)
        daemon.start()
        with daemon.client() as wire:
            assert states(wire) == before
            assert wire.ask("stats")["store_id"] == done["new_store_id"]
