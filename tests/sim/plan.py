"""What happens in a run: settings and a list of steps, both from one seed.

Knows:         which steps there are and how often each is drawn, which settings a run may have.
Must not know: how a step is carried out (world.py).

A step is (name, a, b, c): small numbers that world.py reads modulo what is there at that moment. So every sub-list of
a plan is a plan, and a failing one can be cut down (shrink.py).

**Swarm**: each run draws which kinds of steps it has and how often; a mix of everything hides the bugs that need a
long run of one thing. reliability.md 4.5.

**Ends are seldom**: a start looks at every job that there ever was, so what a plan costs is its starts and its jobs. It
has some ten starts and 200 jobs; a kind that one plan in a hundred has comes up in thirty of CI's.

**A new verb** gets a step here (a kind with its rate; what it says follows from its numbers), `step_NAME` in world.py, its
rules in oracle.py (the card there says where), stories of right and wrong in test_oracle_verbs.py, marks for what is
rare in it (marks.py), and bugs to be found (planted.py). What plans hardly ever come to by single steps gets a step that
brings it about: the last ones of RARE_STEPS.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tests.sim.dice import Bag, Dice

Step = tuple[str, int, int, int]
STEPS: Final = 1_000

# How often a step is drawn where a run has it. Steps with 0 are never drawn: they end a plan.
CLIENT_STEPS: Final = {
    "submit": 8,
    "submit_burst": 2,
    "submit_many": 3,
    "lease": 14,
    "ack": 10,
    "fail": 4,
    "extend": 3,
    "release": 2,
    "stale": 3,
    "cancel": 1,
    "requeue": 1,
    "purge": 1,
    "get": 3,
    "list": 1,
    "queues": 1,
    "nonsense": 1,
}
# What not every run has, so that those that have it have it often.
SEMANTIC_STEPS: Final = {
    "submit_keyed": 6,
    "submit_again": 4,
    "submit_expiring": 3,
    "submit_with_policy": 3,
    "fail_with_policy": 2,
    "update": 4,
    "cancel_running": 3,
    "obey": 3,
    "lease_by_weight": 4,
    "find": 2,
    "set_queue": 1.5,
    "pause": 1.5,
    "queue": 1,
}
# What half of all runs have, drawn apart from the others, which stay as they were.
RESULT_STEPS: Final = {
    "submit_for_result": 5,
    "ack_with_result": 4,
    "report": 5,
    "wait_for": 5,
    # --- situations ---
    "to_result_end": 4,
    "end_with_results": 0.35,
    "wait_for_held": 2,
}
FLOW_STEPS: Final = {"settle": 34, "up": 8, "down": 6, "turn": 8, "work": 8}
TIME_STEPS: Final = {"wait": 8, "to_deadline": 6}
RARE_STEPS: Final = {
    "cut": 3,
    "lose_reply": 2,
    "zombie": 2,
    "zombie_up": 3,
    "withdraw": 1,
    "garbage": 1,
    "half_close": 1,
    "jump": 1,
    "suspend": 1,
    "standstill": 1,
    "snapshot": 1,
    "stop": 0.2,
    "kill": 0.5,
    "power_loss": 0.5,
    "crash_in_recovery": 0.3,
    "disk_fault": 0.4,
    "fill_disk": 0.3,
    "free_disk": 0.6,
    "short_writes": 0.3,
    "slow_disk": 0.5,
    "overlap": 4,
    "rot": 0.2,
    "backup": 0.15,
    "restore": 0.15,
    # --- situations that single steps hardly ever come to: several verbs, and then an end or a moment ---
    "between_turns": 0.25,
    "too_late": 1,
    "change_of_mind": 1,
    "leave": 3,
    "to_key_end": 2,
    "to_expiry": 2,
    "end_with_marked": 0.35,
    "end_with_paused": 0.2,
    "end_with_keys": 0.2,
}
KINDS: Final = {**CLIENT_STEPS, **SEMANTIC_STEPS, **FLOW_STEPS, **TIME_STEPS, **RARE_STEPS}
# Without these nothing would happen at all.
ALWAYS: Final = frozenset({"submit", "lease", "ack", "settle", "wait"})
NO_RATES: Final[Mapping[str, float]] = {}


class Settings(NamedTuple):
    """What holds for a whole run."""

    clients: int
    queues: int
    wall_ms: int
    daemon: dict[str, int]  # settings of jqd.server.config.Config
    limits: dict[str, int]  # constants of jqd.core.model that are made small enough to be met
    slice_jobs: int  # of a snapshot
    weights: dict[str, float]
    releasing: int = 0  # a bit for each client whose leases end with its connections


class Plan(NamedTuple):
    seed: int
    settings: Settings
    steps: list[Step]


def make_plan(seed: int, steps: int = STEPS, *, rates: Mapping[str, float] = NO_RATES) -> Plan:
    """Draw a plan. rates: of kinds of steps that are to come up more or less often than the tables say."""
    dice = Dice(seed)
    settings = _settings(dice.child("settings"), rates)
    bag = Bag(settings.weights)
    dice = dice.child("steps")
    below = dice.below
    return Plan(
        seed,
        settings,
        [(bag.draw(dice), below(1 << 16), below(1 << 16), below(1 << 16)) for _ in range(steps)],
    )


def _settings(dice: Dice, rates: Mapping[str, float]) -> Settings:
    weights = {}
    for name, weight in KINDS.items():
        share = 0.35 if name in RARE_STEPS else 0.4 if name in SEMANTIC_STEPS else 0.8
        if name in ALWAYS or dice.chance(share):
            weights[name] = rates.get(name, weight) * dice.pick((0.3, 1.0, 1.0, 3.0))
    results = dice.child("results")
    if results.chance(0.5):
        weights.update(
            (name, rates.get(name, weight) * results.pick((0.3, 1.0, 2.0)))
            for name, weight in RESULT_STEPS.items()
            if results.chance(0.8)
        )
    daemon: dict[str, int] = {
        "segment_bytes": dice.pick((700, 3_000, 20_000, 64 << 20)),
        "snapshot_bytes": dice.pick((2_000, 8_000, 40_000, 256 << 20)),
        "snapshot_interval_ms": dice.pick((60_000, 86_400_000)),
        "low_space_bytes": dice.pick((0, 4_096)),
        "commit_queue_bytes": dice.pick((2_000, 64 << 20, 64 << 20)),
        "output_bytes_max": dice.pick((8 << 10, 4 << 20)),
    }
    memory = dice.child("memory")
    if memory.chance(0.15):
        daemon["memory_soft_bytes"] = memory.pick((12_000, 25_000))
    limits: dict[str, int] = {}
    for name, values in _LIMITS.items():
        if dice.chance(0.15):
            limits[name] = dice.pick(values)
    return Settings(
        clients=1 + dice.below(5),
        queues=1 + dice.below(3),
        wall_ms=1_700_000_000_000 + dice.below(1_000_000_000),
        daemon=daemon,
        limits=limits,
        slice_jobs=dice.pick((1, 3, 20, 1_024)),
        weights=weights,
        releasing=dice.below(32) if dice.chance(0.4) else 0,
    )


_LIMITS: Final[dict[str, tuple[int, ...]]] = {
    "FINISHED_COUNT_MAX": (3, 20),
    "RESULTS_BYTES_MAX": (12, 100),
    "ANSWERS_PER_SESSION_MAX": (8, 70),
    "SCAN_JOBS_MAX": (12,),
    "PROMOTIONS_PER_TICK": (2,),
    "EXPIRIES_PER_TICK": (2,),
    "KEYS_MAX": (2, 6),
}

WAITS_MS: Final = (0, 1, 1, 10, 100, 500, 999, 1_000, 1_001, 3_000, 10_000, 31_000, 61_000)
JUMPS_MS: Final = (1_000, -1_000, 3_600_000, -3_600_000, 86_400_000, -80_000_000, 315_360_000_000)
LEASES_MS: Final = (None, None, 1_000, 2_000, 30_000)


def job_fields(a: int, b: int, queues: int, wall_ms: int) -> dict[str, Any]:
    """Return what a submit says of its job. Half of all jobs are alike, so that neighbours are."""
    fields: dict[str, Any] = {"queue": f"q{a % queues}"}
    if b % 2:
        return fields
    b //= 2
    match b % 12:
        case 0 | 1:
            fields["priority"] = (-1, 1, 5, 32_767)[b // 12 % 4]
        case 2 | 3:
            fields["delay_ms"] = (1, 500, 5_000, 60_000)[b // 12 % 4]
        case 4:
            fields["run_at_ms"] = wall_ms + (-5_000, 1, 1_000, 100_000)[b // 12 % 4]
        case 5:
            fields["max_retries"] = b // 12 % 3
        case 6:
            fields["max_crashes"] = b // 12 % 3
        case 7 | 8:
            fields["delivery"] = "at_most_once"
        case 9:
            fields["lease_ms"] = (1_000, 5_000)[b // 12 % 2]
        case 10:
            fields["metadata"] = {"user": "ab"[b // 12 % 2]}
            if b // 12 % 4:
                fields["tenant"] = ("acme", "globex")[b // 12 % 2]
            if b // 12 % 4 > 1:
                fields["group"] = "g"
        case _:
            fields["encoding"] = "json"
    return fields


# --- verbs with more to say: what each draws from its numbers -------------------------------------

POLICIES: Final[tuple[dict[str, Any], ...]] = (
    {"kind": "fixed", "base_ms": 700, "jitter_percent": 0},
    {"kind": "fixed", "base_ms": 5_000},
    {"kind": "linear", "base_ms": 400, "cap_ms": 900},
    {"kind": "exponential", "base_ms": 100, "factor_percent": 300, "cap_ms": 20_000, "jitter_percent": 50},
    {"base_ms": 2_000, "jitter_percent": 0},
    {"kind": "list", "delays_ms": [0, 300, 10_000], "jitter_percent": 10},
    {"kind": "list", "delays_ms": [50]},
)
KEY_TTLS_MS: Final = (1_000, 2_000, 10_000)
RESULT_TTLS_MS: Final = (1_000, 0, 5_000, 1, 300_000, 3_600_001)
PROGRESS: Final = ((40, ""), (100, "done"), (None, "half"), (0, "begun"), (None, ""))
EXPIRIES_MS: Final = (1, 500, 1_000, 5_000, 60_000)


def keyed_fields(a: int, b: int, queues: int) -> dict[str, Any]:
    """Return what a submit with a dedupe key says: few keys, so that they meet."""
    fields: dict[str, Any] = {"queue": f"q{a % queues}", "dedupe_key": f"k{b % 3}"}
    fields["dedupe"] = ("existing", "existing", "reject", "replace", "replace", "debounce")[b // 3 % 6]
    match b // 18 % 6:
        case 0:
            fields["dedupe_until"] = "started"
        case 1 | 2:
            fields["dedupe_ttl_ms"] = KEY_TTLS_MS[b // 108 % 3]
    if fields["dedupe"] == "debounce" or b // 324 % 4 == 0:
        fields["delay_ms"] = (0, 300, 1_000, 5_000)[b // 324 % 4]
    if b // 7 % 5 == 0:
        fields["priority"] = (-1, 1, 5)[b // 35 % 3]
    if b // 11 % 5 == 0:
        fields["metadata"] = {"user": "ab"[b // 55 % 2]}
    return fields


def again_fields(b: int, queues: int) -> dict[str, Any]:
    """Return what a submit with an idempotency key says: the same for the same key, but for one in eight."""
    key = b % 4
    fields: dict[str, Any] = {"queue": f"q{key % queues}", "task": f"again{key}"}
    if b // 4 % 8 == 0:
        fields["priority"] = 1
        fields["task"] += "x"
    if key == 3:
        fields["dedupe_key"] = "k0"
    return {**fields, "idempotency_key": f"i{key}", "idempotency_ttl_ms": (1_000, None, 5_000, 2_000)[key]}


WHERES: Final = (
    "state = ready and priority >= 0",
    "not (state in (done, cancelled)) and attempt < 2",
    "error contains OOPS or crashes > 0",
    "metadata.user = a",
    "queue != q0 and (task contains again or metadata.user != '')",
    "reason in (retries, killed) or errors >= 2",
    "state_age < 5s and state = delayed",
    "age >= 2s and priority in (0, 5)",
)
