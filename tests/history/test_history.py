"""Two histories of clients whose daemon is killed forty times in each, and the verdict of both checks.

A history that is wrong stays in .cache/histories, and the failure says how to judge it again. Such a one anew:
JQD_HISTORY_SEED=N make test-histories.
"""

import os
import random
from collections import Counter

import pytest

from tests.history.harness import Invalid, Plan
from tests.history.judge import make

pytestmark = [pytest.mark.slow, pytest.mark.history, pytest.mark.e2e, pytest.mark.timeout(230)]

SEED = int(os.environ.get("JQD_HISTORY_SEED") or random.randrange(1 << 32))
HISTORIES = 2
KILLS, REQUESTS = 40, 10_000  # of each
OPS_BETWEEN = 150, 650  # CPU: 140 s for both, with all that is judged
# Situations that must have come up in each, else something else was tested.
SITUATIONS = {
    "starts from a snapshot": 10,
    "kills while recovering": 1,
    "sent again": 200,
    "unknown": 20,
    "unknown, in the log": 2,
    "leases that ran out": 50,
    "connections cut": 10,
    "requests that came late": 5,
    "connections without replies": 2,
    "jobs judged": 5_000,
    "leases judged": 1_000,
}


@pytest.mark.parametrize("seed", range(SEED, SEED + HISTORIES))
def test_history_of_a_daemon_that_is_killed_again_and_again_is_linearizable(seed):
    plan = Plan(seed=seed, kills=KILLS, ops_between=OPS_BETWEEN)
    try:
        figures = make(plan)
    except Invalid as error:  # the machine was too busy for it to say anything
        print(f"seed {seed}: {error}")
        figures = make(plan)
    print(f"seed {seed}: {dict(figures)}")
    assert figures["kills"] >= KILLS
    assert figures["requests answered"] >= REQUESTS
    missing = Counter(SITUATIONS) - figures
    assert not missing, f"too little of each: {dict(missing)}"
