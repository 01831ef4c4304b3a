"""What is set of a queue, and that it is paused, survives kill -9; a worker that waits is served on resume."""

import threading
from pathlib import Path

import pytest

from jqd.client.requests import Held
from jqd.client.sync import Client
from jqd.errors import QueueFull
from tests.support.daemon import Daemon

pytestmark = pytest.mark.e2e


def test_settings_and_pause_survive_kill_9(tmp_path: Path):
    socket = f"unix://{tmp_path / 's'}"
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        with Client(socket) as client:
            client.set_queue("mail", lease="1m", max_retries=1, length_max=3)
            client.pause("mail")
            client.submit_many("mail", [b"1", b"2", b"3"])
        for snapshot in (False, True):
            if snapshot:
                with Client(socket) as client:
                    wanted = client.snapshot().lsn
                    while client.stats().process["snapshot_lsn"] < wanted:
                        client.ping()
            daemon.kill()
            daemon.start()
            with Client(socket) as client:
                details = client.queue("mail")
                assert (details.lease_ms, details.max_retries, details.length_max) == (60_000, 1, 3)
                assert details.info.paused and details.info.ready == 3
                assert client.lease("mail").jobs == []
                with pytest.raises(QueueFull, match="it holds 3 jobs and would hold 4: the limit is 3"):
                    client.submit("mail")
        with Client(socket) as client:
            served: list[Held] = []
            worker = threading.Thread(target=lambda: served.append(client.lease("mail", count=3, wait="20s")))
            worker.start()
            while client.stats().parked_count == 0:
                client.ping()
            client.resume("mail")
            worker.join(20)
            (held,) = served
            assert [job.payload for job in held.jobs] == [b"1", b"2", b"3"]
            assert 55_000 < held.lease_ms_left <= 60_000
