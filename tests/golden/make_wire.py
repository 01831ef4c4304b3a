"""Write the golden vectors of the wire and of the facts in the log: their bytes never change by accident.

    wire_requests.json  each command at its defaults and with every field, as a frame
    wire_replies.json   each reply with as little and with as much in it as there can be, as a frame
    wire_errors.json    each error code, plain and with all that an error can say, as a frame
    wire_facts.json     each fact at its defaults and with every field, as it stands in a record
    wire_logs.json      whole records, one after the other, with the jobs that they leave behind

A vector is its bytes, and beside them what they say in JSON ({"bin": hex} for bytes). The first three are
written anew. The last two only grow: what was once written to a disk must load for ever, so a vector whose bytes
change stays, and the new bytes come after it.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from jqd.core import changes, commands, model
from jqd.core.changes import Change, encode_batch
from jqd.core.commands import COMMANDS, Command
from jqd.core.engine import LIMITS, Engine
from jqd.core.model import JobOptions, JobState, Now, QueueSettings, RetryPolicy
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.errors import WIRE_ERRORS, JqdError
from jqd.protocol.framing import to_frame
from jqd.protocol.messages import encode_error, encode_reply, encode_request

HERE = Path(__file__).parent
REQUEST_ID = 300  # two bytes of its own in msgpack
LSN = 70_000
EPOCH = 1_790_000_000
TOKEN = EPOCH << model.GRANT_BITS | 1
WALL_MS = 1_790_000_000_123
SESSION = bytes(range(16))

# --- the wire -----------------------------------------------------------------------------------

# No policy has all of this at once; the codec does not know.
RETRY = RetryPolicy(
    kind="list", base_ms=1, factor_percent=150, cap_ms=5_000, jitter_percent=0, delays_ms=(0, 1_000)
)
JOB_FIELDS: dict[str, Any] = {
    "queue": "mail",
    "priority": -5,
    "delay_ms": 1_000,
    "run_at_ms": WALL_MS,
    "max_retries": 7,
    "max_crashes": 0,
    "retry": RETRY,
    "lease_ms": 60_000,
    "delivery": "at_most_once",
    "encoding": "json",
    "task": "send",
    "metadata": {"trace": "ä1"},
    "tenant": "acme",
    "group": "user-17",
    "dedupe_key": "nightly",
    "dedupe": "debounce",
    "dedupe_until": "started",
    "dedupe_ttl_ms": 7_000,
    "idempotency_key": "order-9",
    "idempotency_ttl_ms": 8_000,
    "expires_ms": 5_000,
    "expires_at_ms": WALL_MS,
    "result_ttl_ms": 6_000,
}
HELD = [(TOKEN, [(1, 3), (7, 1)]), ((1 << 64) - 1, [(model.JOB_ID_MAX, 1)])]
SWEEP: dict[str, Any] = {
    "ids": [(1, 3), (7, 1)],
    "filter": commands.JobFilter(queue="mail", state="dead"),
    "cursor": 5,
    "limit": 10,
    "dry_run": True,
}

# Each command with nothing said that need not be said, and with everything said.
REQUESTS: dict[str, tuple[Command[Any], Command[Any]]] = {
    "hello": (
        commands.Hello(version=1),
        commands.Hello(
            version=1,
            minor=2,
            client="golden",
            key="jqd_key",
            worker="w1",
            session=SESSION,
            on_disconnect="release",
        ),
    ),
    "ping": (commands.Ping(), commands.Ping()),
    "submit": (commands.Submit(), commands.Submit(payload=b"\x00\xffpay", **JOB_FIELDS)),
    "submit_many": (
        commands.SubmitMany(groups=[commands.SubmitGroup(payloads=[b""])]),
        commands.SubmitMany(
            groups=[
                commands.SubmitGroup(payloads=[b"a", b"b"], **JOB_FIELDS),
                commands.SubmitGroup(payloads=[b"c"]),
            ]
        ),
    ),
    "lease": (
        commands.Lease(),
        commands.Lease(queues=["urgent", "mail"], count=100, lease_ms=60_000, wait_ms=20_000, weights=[3, 1]),
    ),
    "extend": (
        commands.Extend(items=[(TOKEN, [(1, 1)])]),
        commands.Extend(items=HELD, lease_ms=60_000, progress_percent=100, progress_text="half ☹"),
    ),
    "ack": (
        commands.Ack(items=[(TOKEN, [(1, 1)], None)]),
        commands.Ack(
            items=[(TOKEN, [(1, 3), (7, 1)], b"res"), (TOKEN + 1, [(9, 1)], None)],
            encoding="msgpack",
            result_error="refused ☹",
        ),
    ),
    "fail": (
        commands.Fail(items=[(TOKEN, [(1, 1)])]),
        commands.Fail(items=HELD, error="SMTP 451", retry_in_ms=5_000, retry=RETRY, dead=True),
    ),
    "release": (commands.Release(items=[(TOKEN, [(1, 1)])]), commands.Release(items=HELD, delay_ms=5_000)),
    "cancel": (commands.Cancel(), commands.Cancel(**SWEEP, running=True)),
    "update": (
        commands.Update(job_id=1),
        commands.Update(
            job_id=model.JOB_ID_MAX,
            priority=-5,
            delay_ms=1_000,
            run_at_ms=WALL_MS,
            payload=b"\x00\xffpay",
            encoding="json",
            metadata={"trace": "ä1"},
        ),
    ),
    "requeue": (commands.Requeue(), commands.Requeue(**SWEEP)),
    "purge": (commands.Purge(), commands.Purge(**SWEEP)),
    "get": (commands.Get(job_id=1), commands.Get(job_id=model.JOB_ID_MAX)),
    "wait": (
        commands.Wait(ids=[(1, 1)]),
        commands.Wait(ids=[(1, 999), (model.JOB_ID_MAX, 1)], wait_ms=30_000, all=True),
    ),
    "list": (
        commands.ListJobs(),
        commands.ListJobs(
            filter=commands.JobFilter(queue="mail", state="done", where="age > 1h"), cursor=5, limit=10
        ),
    ),
    "set_queue": (
        commands.SetQueue(queue="mail"),
        commands.SetQueue(
            queue="mail",
            lease_ms=60_000,
            max_retries=7,
            max_crashes=0,
            retry=RetryPolicy(kind="fixed", base_ms=5_000),
            retention_ms=0,
            dead_retention_ms=model.DEAD_RETENTION_MS,
            length_max=100_000,
            reset=True,
        ),
    ),
    "pause": (commands.Pause(queue="mail"), commands.Pause(queue="mail")),
    "resume": (commands.Resume(queue="mail"), commands.Resume(queue="mail")),
    "queue": (commands.GetQueue(queue="mail"), commands.GetQueue(queue="mail")),
    "queues": (commands.Queues(), commands.Queues(cursor="mail", limit=10)),
    "register": (
        commands.Register(),
        commands.Register(
            queues=["urgent", "mail"],
            concurrency=20,
            state="quiet",
            host="box-1",
            pid=4_242,
            version="0.1.0",
        ),
    ),
    "workers": (commands.ListWorkers(), commands.ListWorkers(cursor="00ff00ff00ff", limit=10)),
    "tell_workers": (
        commands.TellWorkers(order="stop"),
        commands.TellWorkers(order="quiet", workers=["00ff00ff00ff", "mailer ä"], all=True),
    ),
    "stats": (commands.Stats(), commands.Stats()),
    "snapshot": (commands.Snapshot(), commands.Snapshot()),
}

_LITTLE_JOB = commands.JobInfo(
    job_id=1,
    queue="default",
    state="ready",
    attempt=0,
    created_wall_ms=WALL_MS,
    changed_wall_ms=WALL_MS,
    payload_bytes=0,
)
# No job has all of this at once; the codec does not know.
_FULL_JOB = commands.JobInfo(
    job_id=model.JOB_ID_MAX,
    queue="mail",
    state="dead",
    attempt=4,
    created_wall_ms=WALL_MS,
    changed_wall_ms=WALL_MS + 1,
    payload_bytes=5,
    payload=b"\x00\xffpay",
    encoding="json",
    priority=-5,
    tenant="acme",
    group="user-17",
    task="send",
    dedupe_key="nightly",
    metadata={"trace": "ä1"},
    delivery="at_most_once",
    errors=1,
    crashes=2,
    max_retries=7,
    max_crashes=0,
    retry=RETRY,
    lease_ms=60_000,
    lease_ms_left=59_000,
    worker="w1",
    cancel_marked=True,
    due_ms_left=1_000,
    run_at_ms=WALL_MS + 2,
    expires_at_ms=WALL_MS + 3,
    reason="retries",
    error="SMTP 451",
    attempts=[
        commands.AttemptInfo(attempt=4, cause="error", wall_ms=WALL_MS, worker="w1", error="SMTP 451"),
    ],
    result=b"res",
    result_encoding="msgpack",
    result_expired=True,
    progress_percent=40,
    progress_text="half ☹",
)
_VERDICTS = [(1, 3, "ok"), (7, 1, "lease_lost"), (9, 10_000, "job_not_found")]
_COUNTS: dict[Any, Any] = {
    "delayed": 1,
    "ready": 2,
    "leased": 3,
    "done": 4,
    "dead": 5,
    "cancelled": 6,
    "expired": 7,
}
_QUEUE: dict[str, Any] = {
    "info": commands.QueueInfo(queue="mail", **_COUNTS),
    "lease_ms": 30_000,
    "max_retries": 3,
    "max_crashes": 5,
    "retention_ms": 3_600_000,
    "dead_retention_ms": model.DEAD_RETENTION_MS,
    "length_max": 0,
}
_LITTLE_STATS: dict[str, Any] = {
    "server": "jqd 0.1.0",
    "store_id": "00" * 16,
    "epoch": EPOCH,
    "engine_ms": 5_000,
    "wall_ms": WALL_MS,
    "uptime_ms": 4_000,
    "lsn": LSN,
    "jobs": _COUNTS,
    "queue_count": 1,
    "lease_count": 2,
    "parked_count": 3,
    "waiting_count": 2,
    "session_count": 4,
    "key_count": 6,
    "result_bytes": 5,
    "memory_bytes": 7_000,
    "ended_bytes": 400,
    "tenant_count": 2,
    "tenants": {"acme": 4_000, "default": 1_000},
}
_WELCOME: dict[str, Any] = {
    "version": 1,
    "minor": 0,
    "server": "jqd 0.1.0",
    "store_id": "00" * 16,
    "epoch": EPOCH,
    "start_lsn": LSN,
    "engine_ms": 5_000,
    "wall_ms": WALL_MS,
}

REPLIES: dict[str, tuple[Struct, Struct]] = {
    "hello": (commands.Welcome(**_WELCOME, limits={}), commands.Welcome(**_WELCOME, limits=LIMITS)),
    "ping": (
        commands.Pong(wall_ms=0, engine_ms=0),
        commands.Pong(wall_ms=WALL_MS, engine_ms=5_000),
    ),
    "submit": (commands.Submitted(job_id=1), commands.Submitted(job_id=model.JOB_ID_MAX, existing=True)),
    "submit_many": (
        commands.SubmittedMany(jobs=[(1, 1, False)]),
        commands.SubmittedMany(jobs=[(1, 10_000, False), (20_000, 1, True)]),
    ),
    "lease": (
        commands.Leased(token=0, lease_ms_left=0, wall_ms=WALL_MS, jobs=[]),
        commands.Leased(
            token=(1 << 64) - 1,
            lease_ms_left=30_000,
            wall_ms=WALL_MS,
            jobs=[
                commands.LeasedJob(job_id=1, queue="default", attempt=1, payload=b""),
                commands.LeasedJob(
                    job_id=model.JOB_ID_MAX,
                    queue="mail",
                    attempt=4,
                    payload=b"\x00\xffpay",
                    encoding="text",
                    priority=model.PRIORITY_MIN,
                    task="send",
                    metadata={"trace": "ä1"},
                    delivery="at_most_once",
                    errors=1,
                    crashes=2,
                    tenant="acme",
                    group="user-17",
                ),
            ],
        ),
    ),
    "extend": (
        commands.Extended(results=[(1, 1, "ok")], lease_ms_left=30_000),
        commands.Extended(results=_VERDICTS, lease_ms_left=0, cancel_marked=[(2, 2)]),
    ),
    "ack": (commands.Verdicts(results=[(1, 1, "ok")]), commands.Verdicts(results=_VERDICTS)),
    "fail": (commands.Verdicts(results=[(1, 1, "ok")]), commands.Verdicts(results=_VERDICTS)),
    "release": (commands.Verdicts(results=[(1, 1, "ok")]), commands.Verdicts(results=_VERDICTS)),
    "cancel": (
        commands.Swept(count=0, cursor=None, results=[]),
        commands.Swept(count=3, cursor=model.JOB_ID_MAX, results=_VERDICTS, marked=2),
    ),
    "update": (
        commands.Updated(job_id=1, state="ready"),
        commands.Updated(job_id=model.JOB_ID_MAX, state="delayed"),
    ),
    "requeue": (
        commands.Swept(count=0, cursor=None, results=[]),
        commands.Swept(count=3, cursor=model.JOB_ID_MAX, results=_VERDICTS, marked=2),
    ),
    "purge": (
        commands.Swept(count=0, cursor=None, results=[]),
        commands.Swept(count=3, cursor=model.JOB_ID_MAX, results=_VERDICTS, marked=2),
    ),
    "get": (_LITTLE_JOB, _FULL_JOB),
    "wait": (
        commands.Waited(jobs=[], pending=1),
        commands.Waited(
            jobs=[
                commands.EndedJob(job_id=1, state="done", changed_wall_ms=WALL_MS),
                commands.EndedJob(
                    job_id=model.JOB_ID_MAX,
                    state="dead",
                    changed_wall_ms=WALL_MS,
                    reason="retries",
                    error="SMTP 451",
                    result=b"res",
                    result_encoding="json",
                    result_expired=True,
                ),
            ],
            pending=0,
            gone=[(2, 3)],
        ),
    ),
    "list": (
        commands.JobList(jobs=[], cursor=None),
        commands.JobList(jobs=[_LITTLE_JOB, _FULL_JOB], cursor=7),
    ),
    "queues": (
        commands.QueueList(queues=[], cursor=None),
        commands.QueueList(
            queues=[
                commands.QueueInfo(
                    queue="mail", paused=True, ready_age_ms=5_000, memory_bytes=4_500, **_COUNTS
                )
            ],
            cursor="mail",
        ),
    ),
    "set_queue": (
        commands.QueueChanged(queue="mail", paused=False),
        commands.QueueChanged(queue="mail", paused=True),
    ),
    "pause": (
        commands.QueueChanged(queue="mail", paused=True),
        commands.QueueChanged(queue="mail", paused=True),
    ),
    "resume": (
        commands.QueueChanged(queue="mail", paused=False),
        commands.QueueChanged(queue="mail", paused=False),
    ),
    "queue": (
        commands.QueueDetails(**_QUEUE, retry=RetryPolicy(), waits=[], runs=[]),
        commands.QueueDetails(
            **_QUEUE,
            retry=RetryPolicy(kind="list", delays_ms=(0, 5_000)),
            waits=[(1, 7), (1_024, 5)],
            runs=[(64, 2)],
        ),
    ),
    "register": (
        commands.Registered(worker_id="00ff00ff00ff", order=None, beat_ms=5_000),
        commands.Registered(worker_id="00ff00ff00ff", order="quiet", beat_ms=5_000),
    ),
    "workers": (
        commands.WorkerList(workers=[], cursor=None),
        commands.WorkerList(
            workers=[
                commands.WorkerInfo(
                    worker_id="00ff00ff00ff",
                    worker="mailer ä",
                    host="box-1",
                    pid=4_242,
                    version="0.1.0",
                    queues=["urgent", "mail"],
                    concurrency=20,
                    state="running",
                    order="stop",
                    leased=4,
                    jobs=[(1, 3), (model.JOB_ID_MAX, 1)],
                    since_wall_ms=WALL_MS,
                    state_since_wall_ms=WALL_MS + 1,
                    heard_ms_ago=1_200,
                )
            ],
            cursor="00ff00ff00ff",
        ),
    ),
    "tell_workers": (
        commands.WorkersTold(told=[]),
        commands.WorkersTold(told=[("00ff00ff00ff", "mailer ä")]),
    ),
    "stats": (
        commands.ServerStats(**_LITTLE_STATS, process={}),
        commands.ServerStats(**_LITTLE_STATS, process={"pid": 4_242, "connections": 1}),
    ),
    "snapshot": (commands.SnapshotBegun(lsn=0), commands.SnapshotBegun(lsn=(1 << 63) - 1)),
}


def errors() -> dict[str, JqdError]:
    """Return each error a server may send, plain and full."""
    found: dict[str, JqdError] = {}
    for code, kind in WIRE_ERRORS.items():
        found[code] = kind("what = 1: the limit is 0")
        found[f"{code} full"] = kind(
            "was = 'ä'", details={"name": "ä", "count": 1, "flag": True}, retry_after_ms=60_000
        )
    return found


# --- the log ------------------------------------------------------------------------------------

_FULL_OPTIONS = JobOptions(
    queue="mail",
    tenant="acme",
    group="user-17",
    task="send",
    encoding="json",
    priority=-5,
    max_retries=7,
    max_crashes=0,
    lease_ms=60_000,
    delivery="at_most_once",
    metadata={"trace": "ä1"},
    retry=RETRY,
    dedupe_key="nightly",
    dedupe_until="started",
    dedupe_ttl_ms=7_000,
    expires_wall_ms=WALL_MS,
    result_ttl_ms=6_000,
)
_RANGES = [(1, 3), (7, 1)]

# Each fact with nothing said that need not be said, and with everything said.
FACTS: list[tuple[Change, Change]] = [
    (changes.DaemonStarted(EPOCH), changes.DaemonStarted(EPOCH, "0.1.0")),
    (changes.TimeAdvanced(0), changes.TimeAdvanced(10_000)),
    (
        changes.JobsSubmitted(1, JobOptions(), [b""]),
        changes.JobsSubmitted(model.JOB_ID_MAX, _FULL_OPTIONS, [b"a", b"\x00\xff"], 5_000, WALL_MS, "key1"),
    ),
    (
        changes.JobsLeased(TOKEN, 30_000, [(1, 1)]),
        changes.JobsLeased((1 << 64) - 1, 60_000, _RANGES, "w1", SESSION, "key1"),
    ),
    (
        changes.LeasesExtended(TOKEN, 30_000, [(1, 1)]),
        changes.LeasesExtended(TOKEN, 60_000, _RANGES, "key1"),
    ),
    (changes.JobsDone([(1, 1)]), changes.JobsDone(_RANGES, b"res", "text", "key1")),
    (
        changes.JobsRetried([(1, 0)], "crash"),
        changes.JobsRetried([(1, 5_000), (7, 6_000)], "error", "boom", "key1", 0),
    ),
    (
        changes.JobsDied([(1, 1)], "killed", "error"),
        changes.JobsDied(_RANGES, "abandoned", "restart", "boom", "key1", 1),
    ),
    (changes.JobsReleased([(1, 1)]), changes.JobsReleased(_RANGES, 5_000, "key1")),
    (changes.JobsCancelled([(1, 1)]), changes.JobsCancelled(_RANGES, "key1", "error", "boom")),
    (changes.JobsRequeued([(1, 1)]), changes.JobsRequeued(_RANGES, "key1")),
    (changes.JobsForgotten([(1, 1)]), changes.JobsForgotten(_RANGES, "key1")),
    (changes.SessionOpened(SESSION), changes.SessionOpened(SESSION, "key1")),
    (changes.SessionsForgotten([]), changes.SessionsForgotten([SESSION, SESSION[::-1]])),
    (
        changes.RequestsAnswered(SESSION, [(1, TOKEN)]),
        changes.RequestsAnswered(SESSION, [(REQUEST_ID, b"\x81\xa6job_id\x01"), (REQUEST_ID + 1, TOKEN)]),
    ),
    (changes.EpochRaised(0), changes.EpochRaised(EPOCH)),
    (
        changes.JobUpdated(1, JobState.READY),
        changes.JobUpdated(7, JobState.DELAYED, _FULL_OPTIONS, b"\x00\xff", 5_000, WALL_MS, "key1"),
    ),
    (
        changes.SubmitRemembered("default", "k", 1, 1, b"", 1_000),
        changes.SubmitRemembered("acme", "order-9", 7, 10_000, bytes(range(16)), 86_400_000, "key1"),
    ),
    (changes.KeysForgotten([]), changes.KeysForgotten(["i/acme/order-9", "d/acme/mail/nightly"])),
    (changes.JobsExpired([(1, 1)]), changes.JobsExpired(_RANGES)),
    (changes.JobsCancelMarked([(1, 1)]), changes.JobsCancelMarked(_RANGES, "key1")),
    (changes.ResultsForgotten([(1, 1)]), changes.ResultsForgotten(_RANGES)),
    (
        changes.ProgressReported([(1, 1)]),
        changes.ProgressReported(_RANGES, 40, "half ☹", "key1"),
    ),
    (
        changes.QueueSet("mail", QueueSettings()),
        changes.QueueSet(
            "mail",
            QueueSettings(
                lease_ms=60_000,
                max_retries=7,
                max_crashes=0,
                retry=RetryPolicy(kind="fixed", base_ms=5_000),
                retention_ms=0,
                dead_retention_ms=60_000,
                length_max=9,
                paused=True,
                kept=True,
            ),
            "key1",
        ),
    ),
    (changes.IdsSkipped(1), changes.IdsSkipped(model.JOB_ID_MAX)),
]

# A life of a store in which every fact occurs.
LOG: list[tuple[Now, list[Change]]] = [
    (
        Now(1_000, WALL_MS),
        [
            changes.DaemonStarted(EPOCH, "0.1.0"),
            changes.SessionOpened(SESSION),
            changes.JobsSubmitted(1, JobOptions(), [b"a", b"b", b"c"]),
            changes.JobsSubmitted(4, JobOptions(queue="mail", metadata={"k": "v"}), [b"d"], 6_000),
            changes.JobsSubmitted(5, JobOptions(priority=9), [b"e"], None, WALL_MS + 5_000),
            changes.RequestsAnswered(SESSION, [(7, b"\x81\xa6job_id\x05")]),
        ],
    ),
    (
        Now(2_000, WALL_MS + 1_000),
        [
            changes.JobsLeased(TOKEN, 30_000, [(1, 3)], "w1", SESSION),
            changes.RequestsAnswered(SESSION, [(8, TOKEN)]),
        ],
    ),
    (
        Now(3_000, WALL_MS + 2_000),
        [
            changes.LeasesExtended(TOKEN, 60_000, [(1, 1)]),
            changes.JobsDone([(1, 1)], b"res", "text"),
            changes.JobsRetried([(2, 5_000)], "error", "boom"),
            changes.JobsReleased([(3, 1)]),
        ],
    ),
    (
        Now(6_500, WALL_MS + 5_500),
        [changes.TimeAdvanced(10_000), changes.JobsLeased(TOKEN + 1, 30_000, [(2, 1), (4, 1)])],
    ),
    (
        Now(6_600, WALL_MS + 5_600),
        [
            changes.JobsDied([(2, 1)], "killed", "error", "no"),
            changes.JobsRequeued([(2, 1)]),
            changes.JobsCancelled([(3, 1)]),
            changes.EpochRaised(EPOCH + 1),
        ],
    ),
    (
        Now(7_000, WALL_MS + 6_000),
        [
            changes.DaemonStarted(EPOCH + 2, "0.1.0"),
            changes.SessionsForgotten([SESSION]),
            changes.JobsForgotten([(3, 1)]),
            changes.JobsSubmitted(6, JobOptions(retry=RetryPolicy(kind="fixed")), [b"f"]),
            changes.TimeAdvanced(10_000),
        ],
    ),
    (
        Now(7_100, WALL_MS + 6_100),
        [
            changes.JobUpdated(6, JobState.DELAYED, JobOptions(priority=3), b"g", 9_000),
            changes.JobUpdated(6, JobState.DELAYED, None, b"h"),
            changes.JobUpdated(6, JobState.READY),
        ],
    ),
    (
        Now(7_200, WALL_MS + 6_200),
        [
            changes.JobsSubmitted(7, JobOptions(dedupe_key="k"), [b"i"]),
            changes.JobsSubmitted(8, JobOptions(dedupe_key="l", dedupe_ttl_ms=1_000), [b"j"]),
            changes.SubmitRemembered("default", "m", 8, 1, b"content", 1_000),
            changes.KeysForgotten(["i/default/m"]),
            changes.JobsSubmitted(9, JobOptions(expires_wall_ms=WALL_MS + 6_200), [b"k"]),
            changes.JobsExpired([(9, 1)]),
            changes.JobsLeased((EPOCH + 2) << model.GRANT_BITS | 1, 30_000, [(6, 1)], "w1"),
            changes.JobsCancelMarked([(6, 1)]),
            changes.JobsCancelled([(6, 1)], cause="error", error="interrupted"),
            changes.QueueSet("mail", QueueSettings(lease_ms=5_000, paused=True, kept=True)),
            changes.JobsSubmitted(10, JobOptions(result_ttl_ms=100), [b"l"]),
            changes.JobsLeased((EPOCH + 2) << model.GRANT_BITS | 2, 30_000, [(10, 1)], "w1"),
            changes.ProgressReported([(10, 1)], 40, "half"),
            changes.JobsDone([(10, 1)], b"res"),
        ],
    ),
    (Now(7_300, WALL_MS + 6_300), [changes.ResultsForgotten([(10, 1)]), changes.IdsSkipped(5_000)]),
]


def log_records() -> list[tuple[int, int, bytes]]:
    """Return the records of LOG as (first LSN, count, payload)."""
    records: list[tuple[int, int, bytes]] = []
    lsn = 1
    for now, facts in LOG:
        records.append((lsn, len(facts), encode_batch(now, facts)))
        lsn += len(facts)
    return records


def replay(records: list[tuple[int, int, bytes]]) -> State:
    engine = Engine(State(), Identity("jqd", ""))
    for first_lsn, count, payload in records:
        engine.replay(first_lsn, count, payload)
    return engine.state


def summary(state: State) -> dict[str, Any]:
    """Return what a log leaves behind, in words that no later field changes."""
    return {
        "lsn": state.lsn,
        "epoch": state.epoch,
        "next_id": state.pages.next_id,
        "jobs": {
            str(job.id): [job.options.queue, job.state.wire_name, job.attempt]
            for job in state.pages.jobs_from(0)
        },
        "tokens": sorted(state.leases),
    }


# --- vectors ------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    match value:
        case bytes():
            return {"bin": value.hex()}
        case dict():
            return {key: to_json(one) for key, one in value.items()}
        case list() | tuple():
            return [to_json(one) for one in value]
    return value


def from_json(value: Any) -> Any:
    match value:
        case {"bin": str(digits), **rest} if not rest:
            return bytes.fromhex(digits)
        case dict():
            return {key: from_json(one) for key, one in value.items()}
        case list():
            return [from_json(one) for one in value]
    return value


def vector(data: bytes, *, prefix_bytes: int = 0) -> dict[str, Any]:
    return {"hex": data.hex(), "says": to_json(msgspec.msgpack.decode(data[prefix_bytes:]))}


def request_vectors() -> dict[str, Any]:
    return {
        f"{verb} {name}": vector(to_frame(encode_request(REQUEST_ID, command)), prefix_bytes=4)
        for verb in COMMANDS
        for name, command in zip(("defaults", "full"), REQUESTS[verb], strict=True)
    }


def reply_vectors() -> dict[str, Any]:
    return {
        f"{verb} {name}": vector(to_frame(encode_reply(REQUEST_ID, LSN, body)), prefix_bytes=4)
        for verb in COMMANDS
        for name, body in zip(("little", "full"), REPLIES[verb], strict=True)
    }


def error_vectors() -> dict[str, Any]:
    return {
        name: vector(to_frame(encode_error(REQUEST_ID, LSN, error)), prefix_bytes=4)
        for name, error in errors().items()
    }


def fact_vectors() -> dict[str, Any]:
    return {
        f"{type(fact).__name__} {name}": vector(msgspec.msgpack.encode(fact))
        for pair in FACTS
        for name, fact in zip(("defaults", "full"), pair, strict=True)
    }


def log_vector() -> dict[str, Any]:
    records = log_records()
    return {
        "records": [[first_lsn, count, payload.hex()] for first_lsn, count, payload in records],
        "leaves": summary(replay(records)),
    }


def load(name: str) -> Any:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def save(name: str, found: dict[str, Any] | list[Any]) -> None:
    """Write one vector a line, so that a diff names what changed."""
    if isinstance(found, dict):
        lines = [
            f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in found.items()
        ]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
    else:
        text = "[\n" + ",\n".join(json.dumps(value) for value in found) + "\n]\n"
    (HERE / name).write_text(text, encoding="utf-8")


def grown_facts() -> dict[str, Any]:
    """Return the stored fact vectors, each name with all bytes it ever had, the newest last."""
    found: dict[str, Any] = load("wire_facts.json") if (HERE / "wire_facts.json").exists() else {}
    for name, new in fact_vectors().items():
        versions = found.setdefault(name, [])
        if not versions or versions[-1] != new:
            versions.append(new)
    return found


def grown_logs() -> list[Any]:
    found: list[Any] = load("wire_logs.json") if (HERE / "wire_logs.json").exists() else []
    new = log_vector()
    if not found or found[-1] != new:
        found.append(new)
    return found


def make_wire_golden() -> None:
    save("wire_requests.json", request_vectors())
    save("wire_replies.json", reply_vectors())
    save("wire_errors.json", error_vectors())
    save("wire_facts.json", grown_facts())
    save("wire_logs.json", grown_logs())


if __name__ == "__main__":
    make_wire_golden()
