"""SIGKILL under load, again and again, and after each the question whether what was said still holds.

Clients in threads (tests/support/killing.py) ask for everything several times faster than a disk can. The
moment of a kill is a number of answered requests, drawn from the seed, so that a slow machine does the same
work as a fast one; a few kills hit the daemon while it recovers.

Repeat a run: JQD_KILL_SEED=N JQD_KILLS=N make test-slow ARGS='-k kill'
"""

import os
import random

import pytest

from tests.support.killing import KillLoop

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(180)]

SEED = int(os.environ.get("JQD_KILL_SEED") or random.randrange(1 << 32))
KILLS = int(os.environ.get("JQD_KILLS") or 55)
PRODUCERS, WORKERS, READERS = 3, 4, 1
# Answered requests between two kills: at least, and drawn up to. Below it a kill proves nothing.
OPS_MIN, OPS_MAX = 60, 600
# Every situation that this test is about must have come up, else it has tested something else.
SITUATIONS = {
    "unanswered at a kill": KILLS // 2,
    "submit sent again": 5,
    "lease sent again": 5,
    "ending sent again": 5,
    "lease held over a kill and ended": KILLS // 2,
    "stale token refused": 20,
    "connection cut by the client": 5,
    "killed while recovering": 1,
    "started from a snapshot": KILLS // 2,
    "snapshot under way at a kill": 1,
}


def interrupt_a_start(loop: KillLoop) -> None:
    loop.daemon.launch()
    loop.daemon.wait_for("recovered")  # the fresh segment is there, the listener is not
    loop.daemon.kill()
    loop.ledger.mark("killed while recovering")


def test_nothing_that_was_said_is_lost_or_undone_by_kills(tmp_path):
    print(f"JQD_KILL_SEED={SEED} JQD_KILLS={KILLS}")
    loop = KillLoop(
        tmp_path / "data", SEED, producers=PRODUCERS, workers=WORKERS, readers=READERS, snapshots=True
    )
    ledger = loop.ledger
    with loop:
        while loop.kills < KILLS and not ledger.faults:
            loop.wait_for_work(loop.random.randrange(OPS_MIN, OPS_MAX))
            loop.kill()
            if loop.random.random() < 0.1:
                interrupt_a_start(loop)
            loop.start_daemon()
        if not ledger.faults:
            loop.wait_for_work(OPS_MIN)
            loop.end()
    print(f"{loop.kills} kills, {ledger.ops} requests answered, {len(ledger.jobs)} jobs; {ledger.marks}")
    assert not ledger.faults, f"seed {SEED}: {len(ledger.faults)} faults\n" + "\n".join(ledger.faults[:20])
    assert loop.kills >= KILLS
    if KILLS >= 50:
        missing = {name: least for name, least in SITUATIONS.items() if ledger.marks.get(name, 0) < least}
        assert not missing, f"seed {SEED}: too rare, so not tested: {missing} of {ledger.marks}"
