"""The heart beats in time, and otherwise leaves the interpreter to those who work."""

import threading

from jqd.client.heart import Heart
from jqd.client.requests import HeldJob
from tests.support.wire import PATIENCE_S

pytest_plugins = ["jqd.pytest_plugin"]


class Watched(threading.Condition):
    """Notes each wait that begins, and counts how often somebody is woken."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Semaphore(0)
        self.notified = 0

    def notify(self, n: int = 1) -> None:
        self.notified += 1
        super().notify(n)

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.release()
        return super().wait(timeout)


def job(job_id: int) -> HeldJob:
    return HeldJob(job_id=job_id, queue="q", attempt=1, payload=b"", token=1)


def test_short_jobs_one_behind_the_other_do_not_wake_it_for_each(jqd_server):
    heart = Heart(jqd_server.url, "w", lambda _: None, lambda _: None)
    heart._news = watched = Watched()
    heart.start()
    assert watched.waits.acquire(timeout=PATIENCE_S), "it waits for a job"
    heart.hold([job(0)], 3_600)
    assert watched.waits.acquire(timeout=PATIENCE_S), "it waits for the first beat"
    heart.drop([(0, 1)])
    for job_id in range(1, 100):
        heart.hold([job(job_id)], 3_600)
        heart.drop([(job_id, 1)])
    assert watched.notified == 1, "by the first one"
    heart.hold([job(100)], 1_800)
    assert watched.waits.acquire(timeout=PATIENCE_S), "the shorter lease has an earlier beat"
    heart.stop()
