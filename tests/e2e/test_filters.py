"""Dead letters are found by a filter, requeued, and stay requeued when the daemon is killed."""

from pathlib import Path

import pytest

from jqd.client.sync import Client
from tests.support.daemon import Daemon

pytestmark = pytest.mark.e2e


def test_what_a_filter_requeued_and_purged_survives_kill_9(tmp_path: Path):
    socket = f"unix://{tmp_path / 's'}"
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        with Client(socket) as client:
            client.submit_many("mail", [b""] * 30, max_retries=0)
            held = client.lease("mail", count=30).jobs
            client.fail_many(held[:10], error="SMTP 451 Timed Out")
            client.fail_many(held[10:20], error="no such address")
            client.fail_many(held[20:], error="SMTP 550")
            timeouts = "state = dead and error contains 'timed out'"
            assert client.requeue(filter=timeouts, dry_run=True).count == 10
            assert client.requeue(filter=timeouts).count == 10
            assert client.purge(filter="state = dead and not error contains smtp").count == 10
        daemon.kill()
        daemon.start()
        with Client(socket) as client:
            assert [job.job_id for job in client.list(filter="state = ready and errors = 0").jobs] == list(
                range(1, 11)
            )
            assert [job.job_id for job in client.list(filter="reason = retries").jobs] == list(range(21, 31))
            assert client.requeue(filter=timeouts).count == 0
