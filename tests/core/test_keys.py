"""Dedupe keys, of which one job lives at a time, and idempotency keys, which have one answer."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import keys, model
from jqd.core.changes import encode_part
from jqd.errors import Duplicate, IdempotencyConflict, InvalidArgument, Overloaded
from tests.support.core import Core, parts_of, restored_from


def submit(core: Core, payload: bytes = b"", **fields: Any) -> tuple[int, bool]:
    reply = core.do(c.Submit(payload=payload, **fields))
    return reply.job_id, reply.existing


def dedupe(core: Core, payload: bytes = b"", **fields: Any) -> tuple[int, bool]:
    return submit(core, payload, dedupe_key="k", **fields)


def once(core: Core, payload: bytes = b"", **fields: Any) -> tuple[int, bool]:
    return submit(core, payload, idempotency_key="k", **fields)


def many(core: Core, *groups: dict[str, Any]) -> list[tuple[int, int, bool]]:
    made = [c.SubmitGroup(**{"payloads": [b""], **group}) for group in groups]
    return core.do(c.SubmitMany(groups=made)).jobs  # type: ignore[no-any-return]


def end(core: Core, how: str) -> None:
    """End job 1."""
    if how == "cancel":
        core.cancel(1)
    elif how == "purge":
        core.purge(1)
    else:
        token, job_id = core.held()
        if how == "ack":
            core.ack(token, job_id)
        else:
            core.fail(token, job_id, dead=True)


# --- dedupe: one job at a time ------------------------------------------------------------------


def test_second_submit_is_answered_with_the_job_that_lives(core):
    assert dedupe(core, b"first") == (1, False)
    assert dedupe(core, b"second", priority=7) == (1, True)
    assert (core.get(1).payload, core.get(1).priority, core.get(1).dedupe_key) == (b"first", 0, "k")
    assert core.state.pages.next_id == 2


def test_keys_of_another_tenant_are_other_keys(core):
    assert dedupe(core) == (1, False)
    assert dedupe(core, tenant="acme") == (2, False)
    assert dedupe(core, tenant="acme", group="g") == (2, True)
    assert once(core, tenant="acme") == (3, False)
    assert once(core, tenant="globex") == (4, False)
    assert once(core, tenant="acme") == (3, True)


def test_another_key_or_queue_is_another_job(core):
    dedupe(core)
    assert submit(core, dedupe_key="l") == (2, False)
    assert dedupe(core, queue="other") == (3, False)
    assert submit(core) == (4, False)


def test_reject_names_the_job(core):
    dedupe(core)
    with pytest.raises(Duplicate, match="dedupe_key = k: job 1 has it") as caught:
        dedupe(core, dedupe="reject")
    assert caught.value.details == {"job_id": 1}


def test_replace_takes_payload_encoding_priority_and_metadata(core):
    dedupe(core, b"first", delay_ms=500, metadata={"k": "v"})
    assert dedupe(core, b"second", dedupe="replace", encoding="text", priority=3, delay_ms=9_000) == (1, True)
    shown = core.get(1)
    assert (shown.payload, shown.encoding, shown.priority, shown.metadata) == (
        b"second",
        "text",
        3,
        {"k": "v"},
    )
    assert shown.due_ms_left == 500


def test_debounce_replaces_and_moves_the_time(core):
    dedupe(core, b"first", dedupe="debounce", delay_ms=500)
    core.wait(400)
    assert dedupe(core, b"second", dedupe="debounce", delay_ms=500) == (1, True)
    core.wait(499)
    assert core.lease_ids() == []
    core.wait(1)
    assert core.lease().jobs[0].payload == b"second"


def test_debounce_makes_a_ready_job_wait_again(core):
    dedupe(core)
    dedupe(core, dedupe="debounce", delay_ms=500)
    assert core.states(1) == ["delayed"]
    dedupe(core, dedupe="debounce", delay_ms=0)
    assert core.states(1) == ["ready"]


@pytest.mark.parametrize("mode", [{"dedupe": "replace"}, {"dedupe": "debounce", "delay_ms": 5}])
def test_job_that_is_held_is_not_changed(core, mode):
    dedupe(core, b"first")
    core.held()
    with pytest.raises(Duplicate, match="job 1 has it and is leased, so that it cannot be changed"):
        dedupe(core, b"second", **mode)


# --- dedupe: until when -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ack", "die", "cancel", "purge"])
def test_job_that_has_ended_gives_its_key_up(core, how):
    dedupe(core)
    end(core, how)
    assert core.state.keys.count == 0
    assert dedupe(core) == (2, False)


def test_retry_and_release_keep_the_key(core):
    dedupe(core)
    core.release(*core.held())
    assert dedupe(core) == (1, True)
    core.fail(*core.held())
    assert dedupe(core) == (1, True)


def test_key_until_started_is_free_from_the_first_lease_on(core):
    dedupe(core, dedupe_until="started")
    assert dedupe(core, dedupe_until="started") == (1, True)
    core.release(*core.held())
    assert dedupe(core, dedupe_until="started") == (2, False)
    core.cancel(1)
    assert dedupe(core) == (2, True)


def test_key_with_a_time_is_kept_that_long_whatever_the_job_does(core):
    dedupe(core, dedupe_ttl_ms=5_000)
    end(core, "ack")
    core.wait(4_999)
    assert dedupe(core) == (1, True)
    with pytest.raises(Duplicate, match="is done, so that it cannot be changed"):
        dedupe(core, dedupe="replace")
    core.move(1)
    assert dedupe(core) == (2, False)
    core.settle()
    assert dedupe(core) == (2, True)


def test_key_with_a_time_is_free_when_it_is_over_although_the_job_lives(core):
    dedupe(core, dedupe_ttl_ms=5_000)
    core.wait(5_000)
    assert core.state.keys.count == 0
    assert dedupe(core) == (2, False)
    core.cancel(1)
    assert dedupe(core) == (2, True)


def test_replace_of_a_job_that_is_gone_is_a_duplicate(core):
    dedupe(core, dedupe_ttl_ms=5_000)
    core.purge(1)
    with pytest.raises(Duplicate, match="job 1 has it and is gone"):
        dedupe(core, dedupe="replace")


# --- dedupe: requeue ----------------------------------------------------------------------------


def test_revived_job_has_its_key_again(core):
    dedupe(core)
    end(core, "die")
    core.requeue(1)
    assert dedupe(core) == (1, True)


def test_dead_job_is_not_revived_beside_another_one_with_its_key(core):
    dedupe(core)
    end(core, "die")
    dedupe(core)
    assert core.requeue(1).results == [(1, 1, "duplicate")]
    assert core.do(c.Requeue(filter=c.JobFilter(state="dead"))).count == 0
    core.cancel(2)
    assert core.requeue(1).results == [(1, 1, "ok")]


def test_of_dead_jobs_with_one_key_the_first_is_revived(core):
    for _ in range(3):
        dedupe(core)
        core.fail(*core.held(), dead=True)
    assert core.requeue(1, 2, 3).results == [(1, 1, "ok"), (2, 2, "duplicate")]
    core.check()


@pytest.mark.parametrize("fields", [{"dedupe_until": "started"}, {"dedupe_ttl_ms": 1_000}])
def test_job_whose_key_ended_otherwise_is_revived_without_it(core, fields):
    dedupe(core, **fields)
    end(core, "die")
    core.wait(1_000)
    dedupe(core)
    assert core.requeue(1).results == [(1, 1, "ok")]
    assert core.state.keys.count == 1


# --- idempotency --------------------------------------------------------------------------------


def test_same_key_has_the_same_answer_whatever_became_of_the_job(core):
    assert once(core, b"pay") == (1, False)
    end(core, "ack")
    assert once(core, b"pay") == (1, True)
    core.wait(23 * model.HOUR_MS)  # retention has forgotten it
    assert core.states(1) == ["gone"]
    assert once(core, b"pay") == (1, True)
    core.wait(1 * model.HOUR_MS)
    assert once(core, b"pay") == (2, False)


def test_time_of_a_key_is_that_of_its_submit(core):
    once(core, idempotency_ttl_ms=5_000)
    core.wait(4_999)
    assert once(core) == (1, True)
    core.move(1)
    assert once(core) == (2, False)


@pytest.mark.parametrize("other", [{"payload": b"x"}, {"queue": "x"}, {"priority": 1}, {"delay_ms": 5}])
def test_same_key_with_other_content_is_a_conflict(core, other):
    once(core, b"pay")
    with pytest.raises(IdempotencyConflict, match="idempotency_key = k: it was used for job 1") as caught:
        once(core, **{"payload": b"pay", **other})
    assert caught.value.details == {"job_id": 1}


def test_how_long_a_key_is_kept_and_the_order_of_metadata_are_no_content(core):
    once(core, metadata={"a": "1", "b": "2"}, max_retries=None)
    assert once(core, metadata={"b": "2", "a": "1"}, idempotency_ttl_ms=5_000) == (1, True)


def test_bulk_and_single_submit_of_the_same_are_the_same(core):
    once(core, b"pay", priority=2)
    assert many(core, {"payloads": [b"pay"], "priority": 2, "idempotency_key": "k"}) == [(1, 1, True)]


def test_group_with_a_key_is_answered_as_a_whole(core):
    group = {"payloads": [b"a", b"b"], "idempotency_key": "k"}
    assert many(core, {}, group, {}) == [(1, 1, False), (2, 2, False), (4, 1, False)]
    assert many(core, {}, group, {}) == [(5, 1, False), (2, 2, True), (6, 1, False)]


def test_both_keys_answer_with_the_job_of_the_dedupe_key(core):
    dedupe(core, b"first")
    assert dedupe(core, b"first", idempotency_key="i") == (1, True)
    core.cancel(1)
    assert dedupe(core, b"first", idempotency_key="i") == (1, True)
    assert dedupe(core, b"first") == (2, False)


# --- several in one request or run --------------------------------------------------------------


def test_run_of_submits_with_keys_is_as_one_after_the_other(core):
    run = [
        c.Submit(payload=b"a"),
        c.Submit(payload=b"b", dedupe_key="k"),
        c.Submit(payload=b"b", dedupe_key="k"),
        c.Submit(payload=b"c", dedupe_key="k", dedupe="reject"),
        c.Submit(payload=b"d", idempotency_key="i"),
        c.Submit(payload=b"d", idempotency_key="i"),
        c.Submit(payload=b"e"),
        c.Submit(payload=b"f"),
    ]
    replies = core.submit_run(list(enumerate(run, 1)))
    got = [one if isinstance(one, str) else (one.job_id, one.existing) for one in replies]
    no, yes = False, True
    assert got == [(1, no), (2, no), (2, yes), "duplicate", (3, no), (3, yes), (4, no), (5, no)]
    core.check()


@pytest.mark.parametrize("key", ["dedupe_key", "idempotency_key"])
def test_key_is_named_once_in_a_request(core, key):
    with pytest.raises(InvalidArgument, match=rf"groups\[1\].{key} = k: it is named twice in one request"):
        many(core, {key: "k"}, {key: "k"})
    assert core.state.pages.next_id == 1


def test_group_of_several_has_no_dedupe_key(core):
    with pytest.raises(
        InvalidArgument, match=r"groups\[0\].payloads = 2 items: with a dedupe_key the limit is 1"
    ):
        many(core, {"payloads": [b"", b""], "dedupe_key": "k"})


def test_request_with_one_refused_key_does_nothing(core):
    dedupe(core)
    with pytest.raises(Duplicate):
        many(core, {}, {"dedupe_key": "l"}, {"dedupe_key": "k", "dedupe": "reject"})
    assert (core.state.pages.next_id, core.state.keys.count) == (2, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dedupe_key": "a/b"}, "dedupe_key = 'a/b': a name must match"),
        ({"idempotency_key": "-"}, "idempotency_key = '-': a name must match"),
        ({"dedupe": "reject"}, "dedupe = reject: there is no dedupe_key"),
        ({"dedupe_until": "started"}, "dedupe_until = started: there is no dedupe_key"),
        ({"dedupe_ttl_ms": 1_000}, "dedupe_ttl_ms = 1000: there is no dedupe_key"),
        ({"idempotency_ttl_ms": 1_000}, "idempotency_ttl_ms = 1000: there is no idempotency_key"),
        ({"dedupe_key": "k", "dedupe": "debounce"}, "dedupe = debounce: it moves the time"),
        (
            {"dedupe_key": "k", "dedupe_until": "started", "dedupe_ttl_ms": 1_000},
            "dedupe_until = started and dedupe_ttl_ms = 1000: give one of them",
        ),
    ],
)
def test_keys_that_make_no_sense_are_refused(core, fields, message):
    with pytest.raises(InvalidArgument, match=message):
        core.submit(**fields)


# --- bounds, disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["dedupe_key", "idempotency_key"])
def test_table_of_keys_is_bounded(core, monkeypatch, key):
    monkeypatch.setattr(model, "KEYS_MAX", 3)
    many(core, *({key: f"k{n}"} for n in range(2)))
    with pytest.raises(Overloaded, match="3 keys are remembered: the limit is 3"):
        many(core, {key: "k2"}, {key: "k3"})
    submit(core, b"", **{key: "k2"})
    with pytest.raises(Overloaded, match="3 keys are remembered: the limit is 3"):
        submit(core, b"", **{key: "k3"})
    assert submit(core, b"", **{key: "k1"}) == (2, True)


def test_options_with_a_key_are_not_remembered(core):
    before = len(core.state.options_by_fields)
    for n in range(5):
        dedupe(core, queue=f"q{n}")
        submit(core, idempotency_key=f"k{n}")
    assert len(core.state.options_by_fields) == before


def test_due_keys_are_forgotten_a_bounded_number_at_a_time(core, monkeypatch):
    monkeypatch.setattr(model, "EXPIRIES_PER_TICK", 2)
    for n in range(5):
        submit(core, idempotency_key=f"k{n}", idempotency_ttl_ms=1_000 + n)
    core.move(2_000)
    core.turn()
    assert core.state.keys.count == 3
    core.settle()
    assert core.state.keys.count == 0


def test_keys_hold_over_restarts_and_snapshots(core):
    dedupe(core)
    submit(core, dedupe_key="t", dedupe_ttl_ms=60_000)
    submit(core, dedupe_key="s", dedupe_until="started")
    submit(core, b"pay", idempotency_key="i")
    core.cancel(2)
    for parts in (None, "snapshot"):
        core.check()
        core.restart(parts=parts and parts_of(core.engine.begin_dump()))
        assert dedupe(core) == (1, True)
        assert submit(core, dedupe_key="t") == (2, True)
        assert submit(core, dedupe_key="s") == (3, True)
        assert submit(core, b"pay", idempotency_key="i") == (4, True)


def test_snapshot_has_the_keys_as_they_were_when_it_began(core):
    names = [f"k{n}" for n in range(300)]
    for name in names[:200]:
        submit(core, idempotency_key=name, idempotency_ttl_ms=5_000)
    dump = core.engine.begin_dump()
    digest = core.state.digest()
    for name in names[200:]:
        submit(core, idempotency_key=name)
    core.wait(5_000)
    assert core.state.keys.count == 100
    before = restored_from(parts_of(dump))
    before.check()
    assert before.digest() == digest
    assert before.keys.count == 200


def test_key_that_changes_behind_the_walk_of_a_snapshot_is_not_kept(core):
    names = [f"k{n}" for n in range(300)]
    for name in names:
        submit(core, idempotency_key=name, idempotency_ttl_ms=5_000)
    digest = core.state.digest()
    dump = core.engine.begin_dump()
    images = dump.take_slice()  # the jobs
    for _ in range(100):
        images += dump.take_slice()
    core.wait(5_000)
    assert core.state.keys.count == 0
    assert max(dump._kept_keys) < len(dump._shards), "what was taken needs not be kept"
    parts = [encode_part(images), *parts_of(dump)]
    assert restored_from(parts).digest() == digest


def test_names_are_told_apart_and_spread_over_the_shards():
    assert keys.dedupe_name(model.JobOptions(dedupe_key="k")) == "d/default/default/k"
    assert keys.idempotency_name("t", "k") == "i/t/k"
    counts = [0] * keys.SHARDS
    for n in range(100 * keys.SHARDS):
        counts[keys.shard_of(f"i/default/order-{n}")] += 1
    assert min(counts) > 50 and max(counts) < 160


def test_submit_in_a_run_that_changes_nothing_is_remembered_no_more_than_one_alone(core):
    caller = core.hello(b"s" * 16)
    keyed = c.Submit(dedupe_key="k")
    first = core.submit_run([(1, keyed), (2, keyed)], caller)
    assert [reply.existing for reply in first] == [False, True]
    core.cancel(first[0].job_id)
    again = core.submit_run([(1, keyed), (2, keyed)], caller)
    assert again[0] == first[0]
    assert (again[1].existing, again[1].job_id) == (False, 2)
    core.turn()
