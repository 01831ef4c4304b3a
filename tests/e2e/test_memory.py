"""A daemon with 512 MiB of address space: whatever it is sent, it refuses, and neither dies nor loses a job.

Real memory runs out as MemoryError or by the kernel's hand; both end the process. So the proof is that it still lives,
says `overloaded`, makes a snapshot while it is full, starts again under the same limit, and takes jobs when room has come.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.filling import SHAPES, drained, filled
from tests.support.rawclient import Body, RawClient, Refused

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(600)]

MIB = 1 << 20
LIMITED = ("prlimit", f"--as={512 * MIB}")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "data", wrap=LIMITED) as started:
        yield started
        assert started.process.poll() is None, started.story()
        assert not started.stray, started.story()
        assert not started.logged("failed") and not started.logged("command_failed"), started.story()


def stats(client: RawClient) -> Body:
    return client.call("stats")


def let(client: RawClient, happen: Callable[[Body], bool]) -> None:
    """Wait until the figures of the process are so. Each look is a request, which gives others their turn."""
    for _ in range(100_000):
        if happen(stats(client)["process"]):
            return
    raise AssertionError(f"it did not happen: {stats(client)}")


def purged(client: RawClient) -> int:
    """Remove all that waits."""
    count, cursor = 0, 0
    while cursor is not None:
        reply = client.call("purge", filter={}, cursor=cursor)
        count, cursor = count + reply["count"], reply["cursor"]
    return count


@pytest.mark.parametrize("shape", SHAPES)
def test_it_fills_refuses_starts_again_and_empties(daemon, shape):
    with RawClient(daemon.address) as client:
        empty = stats(client)
        count = filled(client, SHAPES[shape])
        full = stats(client)
        soft_bytes = full["process"]["memory_soft_bytes"]
        assert 0.9 * soft_bytes < full["memory_bytes"] < 1.05 * soft_bytes
        lsn = client.call("snapshot")["lsn"]
        let(client, lambda process: process["snapshot_lsn"] >= lsn)
    daemon.kill()
    daemon.start()
    with RawClient(daemon.address) as client:
        again = stats(client)
        assert sum(again["jobs"].values()) == count
        assert again["memory_bytes"] == pytest.approx(full["memory_bytes"], rel=0.01)
        # What is counted is not less than nine tenths of what is taken; no request has left a buffer behind yet.
        counted = again["memory_bytes"] - empty["memory_bytes"]
        taken = again["process"]["rss_bytes"] - empty["process"]["rss_bytes"]
        assert counted > 0.9 * taken, f"{counted} bytes are counted for {taken}"
        with pytest.raises(Refused, match="memory = ") as refusal:
            client.call("submit_many", groups=[{"payloads": [bytes(MIB)] * 15}])
        assert refusal.value.code == "overloaded"
        assert drained(client) + purged(client) == count
        client.call("submit_many", groups=[{"payloads": [bytes(MIB)] * 15}])


def test_histories_and_dead_jobs_do_not_fill_it(daemon):
    with RawClient(daemon.address) as client:
        count = 5_000
        client.call(
            "submit_many", groups=[{"queue": "q", "payloads": [bytes(1_000)] * count, "max_retries": 20}]
        )
        for attempt in range(18):
            grants = [client.call("lease", queues=["q"], count=500) for _ in range(0, count, 500)]
            for leased in grants:
                ids = [[job["job_id"], 1] for job in leased["jobs"]]
                assert len(ids) == 500, attempt
                how = {"dead": True} if attempt == 17 else {"retry_in_ms": 0}
                client.call("fail", items=[[leased["token"], ids]], error="x☹" * 1_000, **how)
            seen = stats(client)
            assert seen["memory_bytes"] < 1.2 * seen["process"]["memory_soft_bytes"], attempt
        dead = stats(client)
        assert 0 < dead["jobs"]["dead"] <= count
        assert dead["ended_bytes"] <= dead["process"]["memory_soft_bytes"] // 5
    daemon.kill()
    daemon.start()


def test_texts_and_results_said_of_all_jobs_at_once_do_not_fill_it(daemon):
    count = 10_000
    with RawClient(daemon.address) as client:
        client.call("submit_many", groups=[{"queue": "first", "payloads": [b"x"] * count}])
        client.call("submit_many", groups=[{"queue": "second", "payloads": [b"x"] * count}])
        filled(client, SHAPES["1 KiB"])
        full = stats(client)
        soft_bytes = full["process"]["memory_soft_bytes"]
        for queue, said in (("first", {"dead": True}), ("first", {"retry_in_ms": 0}), ("second", None)):
            leased = client.call("lease", queues=[queue], count=count // 2)
            items = [[leased["token"], [[leased["jobs"][0]["job_id"], len(leased["jobs"])]]]]
            if said is None:
                verdicts = client.call("ack", items=[[*items[0], bytes(64 << 10)]])["results"]
            else:
                verdicts = client.call("fail", items=items, error="x☹" * 1_000, **said)["results"]
            assert [verdict[1:] for verdict in verdicts] == [[count // 2, "ok"]]
            assert stats(client)["memory_bytes"] < 1.05 * soft_bytes
        lsn = client.call("snapshot")["lsn"]
        let(client, lambda process: process["snapshot_lsn"] >= lsn)
    daemon.kill()
    daemon.start()


def test_results_do_not_fill_it(daemon):
    with RawClient(daemon.address) as client:
        count = 12_000  # 750 MiB of results
        for _ in range(2):
            client.call("submit_many", groups=[{"queue": "q", "payloads": [b"x"] * (count // 2)}])
        for _ in range(0, count, 200):
            leased = client.call("lease", queues=["q"], count=200)
            items = [[leased["token"], [[job["job_id"], 1]], bytes(64 << 10)] for job in leased["jobs"]]
            client.call("ack", items=items)
        seen = stats(client)
        assert seen["ended_bytes"] <= seen["process"]["memory_soft_bytes"] // 5 + 16 * MIB
        assert 0 < seen["jobs"]["done"] < count
        assert filled(client, SHAPES["1 KiB"]) > 0
        assert drained(client) > 0


def test_beyond_the_hard_limit_it_takes_no_connection_until_there_is_room(daemon):
    with RawClient(daemon.address) as client:
        filled(client, SHAPES["1 KiB"])
        holders: list[RawClient] = []
        part = (300_000).to_bytes(4, "big") + bytes(250_000)  # less than what is ended
        with pytest.raises(Refused) as refusal:
            while len(holders) < 1_000:
                holders.append(RawClient(daemon.address))
                holders[-1].socket.sendall(part)
        assert refusal.value.code == "overloaded" and refusal.value.reply.id == 0
        assert len(holders) > 100
        with pytest.raises(Refused, match="with what connections hold"):
            client.call("lease", queues=["q"])
        assert stats(client)["process"]["memory_full"] == 1
        for holder in holders:
            holder.socket.close()
        daemon.wait_for("memory_available")
        with RawClient(daemon.address) as another:
            assert drained(another) > 100_000
            assert another.call("submit")["job_id"]


def test_parts_of_large_requests_are_ended_before_they_fill_it(daemon):
    with RawClient(daemon.address) as client:
        filled(client, SHAPES["100 bytes"])
        holders = [RawClient(daemon.address) for _ in range(60)]
        ended = 0
        for holder in holders:
            try:
                holder.socket.sendall((16 * MIB).to_bytes(4, "big") + bytes(12 * MIB))
            except OSError:
                ended += 1
        assert client.call("ping")
        seen = stats(client)["process"]
        assert seen["held_bytes"] < 110 * MIB
        assert len(daemon.logged("memory_full")) >= 1
        for holder in holders:
            holder.socket.close()
        let(client, lambda process: not process["memory_full"])
        assert drained(client) > 100_000
