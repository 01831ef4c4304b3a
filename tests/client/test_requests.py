"""How arguments become commands."""

from datetime import UTC, datetime
from typing import Any

import pytest

from jqd.client import requests
from jqd.client.requests import HeldJob
from jqd.core.commands import (
    Ack,
    Cancel,
    Extend,
    JobFilter,
    Lease,
    Leased,
    LeasedJob,
    SetQueue,
    Submit,
    SubmitGroup,
    Update,
)
from jqd.core.model import RetryPolicy
from jqd.errors import InvalidArgument, JobNotFound, JqdError, LeaseLost, PayloadTooLarge

A, B = (HeldJob(job_id=n, token=7, queue="q", attempt=1, payload=b"") for n in (1, 2))


def test_every_option_has_its_field_on_the_wire():
    options: requests.JobOptions = {
        "priority": -1,
        "delay": "1s",
        "run_at": datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
        "max_retries": 1,
        "max_crashes": 2,
        "retry": "fixed,7s",
        "lease": 3,
        "delivery": "at_most_once",
        "task": "t",
        "metadata": {"k": "v"},
        "encoding": "json",
        "tenant": "x",
        "group": "g",
        "dedupe_key": "d",
        "dedupe": "debounce",
        "dedupe_until": "started",
        "dedupe_ttl": "6s",
        "idempotency_key": "i",
        "idempotency_ttl": "7s",
        "expires": "4s",
        "expires_at": "1970-01-01T00:00:09Z",
        "result_ttl": "5s",
    }
    assert set(options) == set(requests.JobOptions.__annotations__)
    assert requests.submit("q", b"p", options) == Submit(
        queue="q",
        payload=b"p",
        priority=-1,
        delay_ms=1_000,
        run_at_ms=2_000,
        max_retries=1,
        max_crashes=2,
        retry=RetryPolicy(kind="fixed", base_ms=7_000),
        lease_ms=3_000,
        delivery="at_most_once",
        task="t",
        metadata={"k": "v"},
        encoding="json",
        tenant="x",
        group="g",
        dedupe_key="d",
        dedupe="debounce",
        dedupe_until="started",
        dedupe_ttl_ms=6_000,
        idempotency_key="i",
        idempotency_ttl_ms=7_000,
        expires_ms=4_000,
        expires_at_ms=9_000,
        result_ttl_ms=5_000,
    )


def test_an_option_that_is_none_is_not_said():
    options: Any = dict.fromkeys(requests.JobOptions.__annotations__)
    assert requests.submit("q", None, options) == Submit(queue="q")


def test_a_group_for_each_run_of_bytes_or_of_str():
    groups = requests.group("q", [b"1", b"2", "3", b"4"], {"priority": 1})
    assert groups == [
        SubmitGroup(queue="q", payloads=[b"1", b"2"], priority=1),
        SubmitGroup(queue="q", payloads=[b"3"], encoding="text", priority=1),
        SubmitGroup(queue="q", payloads=[b"4"], priority=1),
    ]


@pytest.mark.parametrize("one", ["abc", b"abc", ""])
def test_one_payload_is_not_taken_for_many(one):
    with pytest.raises(InvalidArgument, match="give a list of payloads"):
        requests.group("q", one, {})


@pytest.mark.parametrize("count", [0, 10_001])
def test_a_request_has_1_to_10000_jobs(count):
    with pytest.raises(InvalidArgument, match=f"payloads = {count} jobs"):
        requests.submit_many(requests.group("q", [b""] * count, {}))


def test_held_jobs_are_packed_into_ranges_by_token():
    other = HeldJob(job_id=9, token=8, queue="q", attempt=1, payload=b"")
    assert requests.extend([A, B, (4, 7), other, (5, 7)], lease="1m") == Extend(
        items=[(7, [(1, 2), (4, 1)]), (8, [(9, 1)]), (7, [(5, 1)])], lease_ms=60_000
    )
    with pytest.raises(InvalidArgument, match="at least one"):
        requests.release([])


def test_results_belong_to_their_jobs_and_have_one_encoding():
    assert requests.ack([A, B], results=["x", None]) == Ack(
        items=[(7, [(1, 1)], b"x"), (7, [(2, 1)], None)], encoding="text"
    )
    assert requests.ack([A], json=None).items == [(7, [(1, 1)], b"null")]
    assert requests.ack([A, B], error="bad") == Ack(items=[(7, [(1, 2)], None)], result_error="bad")
    with pytest.raises(InvalidArgument, match="results = 1 for 2 jobs"):
        requests.ack([A, B], results=["x"])
    with pytest.raises(InvalidArgument, match="one encoding"):
        requests.ack([A, B], results=["x", b"y"])


def test_a_job_id_needs_its_token():
    with pytest.raises(InvalidArgument, match="job_id and token"):
        requests.holding(1, None)
    assert requests.holding(A, None) is A and requests.holding(1, 2) == (1, 2)


def test_every_leased_job_knows_its_token():
    job = LeasedJob(
        job_id=3, queue="q", attempt=2, payload=b"5", encoding="json", metadata={"k": "v"}, errors=1
    )
    held = requests.held(Leased(token=7, lease_ms_left=1, wall_ms=2, jobs=[job]))
    (mine,) = held.jobs
    assert mine.token == 7 and mine.value() == 5
    assert all(getattr(mine, name) == getattr(job, name) for name in LeasedJob.__struct_fields__)


@pytest.mark.parametrize(
    ("code", "error"),
    [("lease_lost", LeaseLost), ("job_not_found", JobNotFound), ("code_of_tomorrow", JqdError)],
)
def test_a_verdict_becomes_its_exception(code, error):
    requests.check("ack", [(1, 5, "ok")])
    with pytest.raises(error) as caught:
        requests.check("ack", [(1, 5, "ok"), (6, 2, code)])
    assert type(caught.value) is error and str(caught.value).startswith("ack of job 6: ")


def test_update_says_only_what_is_given():
    assert requests.update(5) == Update(job_id=5)
    assert requests.update(5, payload="x") == Update(job_id=5, payload=b"x", encoding="text")
    assert requests.update(5, payload=b"") == Update(job_id=5, payload=b"", encoding="raw")
    assert requests.update(5, json=None, priority=0, delay=0, metadata={}) == Update(
        job_id=5, payload=b"null", encoding="json", priority=0, delay_ms=0, metadata={}
    )
    when = datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)
    assert requests.update(5, run_at=when) == Update(job_id=5, run_at_ms=2_000)


def test_a_mapping_of_queues_has_their_weights():
    assert requests.lease({"a": 3, "b": 1}) == Lease(queues=["a", "b"], weights=[3, 1])
    assert requests.lease(["a", "b"]) == Lease(queues=["a", "b"])


def test_what_is_set_of_a_queue():
    options: requests.QueueOptions = {
        "lease": "1m",
        "max_retries": 1,
        "max_crashes": 2,
        "retry": "fixed,5s",
        "retention": 60,
        "dead_retention": "1d",
        "length_max": 9,
        "reset": True,
    }
    assert set(options) == set(requests.QueueOptions.__annotations__)
    assert requests.set_queue("q", options) == SetQueue(
        queue="q", lease_ms=60_000, max_retries=1, max_crashes=2, retry=RetryPolicy(kind="fixed", base_ms=5_000),
        retention_ms=60_000, dead_retention_ms=86_400_000, length_max=9, reset=True,
    )  # fmt: skip
    nothing: Any = dict.fromkeys(options.keys() - {"reset"})
    assert requests.set_queue("q", nothing) == SetQueue(queue="q")


def test_a_bulk_action_takes_ids_or_a_filter():
    assert requests.cancel(5, {}) == Cancel(ids=[(5, 1)])
    assert requests.cancel(5, {}, running=True) == Cancel(ids=[(5, 1)], running=True)
    assert requests.cancel([5, 6, 8], {"dry_run": True}) == Cancel(ids=[(5, 2), (8, 1)], dry_run=True)
    assert requests.purge(None, {"queue": "q", "cursor": 4}).filter == JobFilter(queue="q")
    assert requests.cancel(None, {"filter": "age > 1h"}) == Cancel(filter=JobFilter(where="age > 1h"))
    assert requests.list_jobs(state="dead", filter="task = t").filter == JobFilter(
        state="dead", where="task = t"
    )
    for ids, options in [(None, {}), ([], {}), (5, {"queue": "q"})]:
        with pytest.raises(InvalidArgument, match="give ids, or a queue, state or filter"):
            requests.requeue(ids, options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"priority": 40_000}, "^priority = 40000: expected `int` <= 32767$"),
        ({"queue": "a b"}, "queue = 'a b': a name must match"),
        ({"task": "-"}, "task = '-'"),
        ({"dedupe_key": "a/b"}, "dedupe_key = 'a/b'"),
        ({"idempotency_key": "-"}, "idempotency_key = '-'"),
        ({"metadata": {"k": 1}}, r"^metadata\[...\]: expected `str`, got `int`$"),
        ({"delivery": "twice"}, "delivery"),
    ],
)
def test_validate_refuses_what_a_server_would(change, message):
    requests.validate(SubmitGroup(queue="q", payloads=[b""]))
    with pytest.raises(InvalidArgument, match=message):
        requests.validate(SubmitGroup(**{"queue": "q", "payloads": [b""], **change}))


def test_validate_refuses_a_large_payload():
    with pytest.raises(PayloadTooLarge, match="1048577 bytes"):
        requests.validate(SubmitGroup(queue="q", payloads=[bytes((1 << 20) + 1)]))
