"""The oracle believes what can be true of keys, policies, updates, marks, settings, filters, results and waits, no more.

As test_oracle.py, of which it has its stories: each bad history is one that only this rule forbids, and a good one beside
it differs in what makes it right.
"""

from typing import Any, Final

import pytest

from tests.sim.marks import Marks
from tests.sim.oracle import Oracle
from tests.sim.rules.backoffs import window_ms
from tests.sim.rules.draws import drawn
from tests.sim.rules.meanings import facts_of, meaning
from tests.sim.test_oracle import (
    EPOCH,
    MARKER,
    ONE,
    TWO,
    WALL_MS,
    Story,
    broken,
    leased,
    leased_body,
    shown,
    spoken,
    token,
)

KEYED: Final[dict[str, Any]] = {"dedupe_key": "k"}


@pytest.fixture
def story() -> Story:
    return Story()


def met(story: Story, job_id: int, *, changes: bool = False, **fields: Any) -> None:
    """A submit that is answered with a job that is there."""
    story.do("submit", {"queue": "q", **fields}, {"job_id": job_id, "existing": True}, changes=changes)


def refused(story: Story, verb: str, args: dict[str, Any], code: str, **details: Any) -> None:
    story.refuse(story.ask(verb, args), code, {"details": details})


def marked(story: Story, *job_ids: int, count: int | None = None) -> None:
    """A cancel of running jobs that marks all of them, or so many."""
    body: dict[str, Any] = {
        "count": len(job_ids),
        "cursor": None,
        "results": [[job_id, 1, "ok"] for job_id in job_ids],
    }
    body["marked"] = len(job_ids) if count is None else count
    story.do("cancel", {"ids": [[job_id, 1] for job_id in job_ids], "running": True}, body)


def set_queue(story: Story, **said: Any) -> None:
    story.do("set_queue", {"queue": "q", **said}, {"queue": "q", "paused": False})


def pause(story: Story, *, verb: str = "pause") -> None:
    story.do(verb, {"queue": "q"}, {"queue": "q", "paused": verb == "pause"})


# --- dedupe keys ---------------------------------------------------------------------------------


def test_second_job_with_a_dedupe_key_is_made_only_when_the_first_one_is_finished(story):
    story.submit(1, **KEYED)
    with broken("I10"):
        story.submit(2, metadata={"m": "2"}, **KEYED)
    story = Story()
    story.submit(1, **KEYED)
    story.lease(leased())
    story.say("ack")
    story.submit(2, metadata={"m": "2"}, **KEYED)


def test_dedupe_key_of_another_queue_is_another_key(story):
    story.submit(1, **KEYED)
    story.do("submit", {"queue": "p", "metadata": {"m": "2"}, **KEYED}, {"job_id": 2})


@pytest.mark.parametrize("end", ["ack", "cancel", "purge", "dead"])
def test_dedupe_key_does_not_outlive_its_job(story, end):
    story.submit(1, **KEYED)
    met(story, 1, **KEYED)
    if end in ("cancel", "purge"):
        story.sweep(end, 1)
    else:
        story.lease(leased())
        story.say("ack" if end == "ack" else "fail", **({} if end == "ack" else {"dead": True}))
    with broken("I10"):
        met(story, 1, **KEYED)


def test_dedupe_key_is_another_ones_where_nobody_can_tell_whether_the_job_has_ended(story):
    story.submit(1, **KEYED)
    story.lease(leased())
    story.ask("ack", spoken("ack")[0], TWO)
    story.submit(2, metadata={"m": "2"}, **KEYED)
    story = Story()
    story.submit(1, **KEYED)
    story.lease(leased())
    story.ask("ack", spoken("ack")[0], TWO)
    met(story, 1, **KEYED)


def test_dedupe_key_with_a_time_is_known_until_it_is_over_and_not_a_millisecond_longer(story):
    story.submit(1, dedupe_ttl_ms=1_000, **KEYED)
    story.lease(leased())
    story.say("ack")
    story.wait(999)
    met(story, 1, **KEYED)
    with broken("I10"):
        story.submit(2, metadata={"m": "2"}, **KEYED)
    story.wait(1)
    with broken("I10"):
        met(story, 1, **KEYED)
    story.submit(3, metadata={"m": "3"}, **KEYED)


def test_dedupe_key_until_the_start_is_gone_with_the_first_lease(story):
    story.submit(1, dedupe_until="started", **KEYED)
    met(story, 1, **KEYED)
    story.lease(leased())
    with broken("I10"):
        met(story, 1, **KEYED)
    story.submit(2, metadata={"m": "2"}, **KEYED)


def test_dedupe_key_survives_a_restart(story):
    story.submit(1, **KEYED)
    story.restart()
    with broken("I10"):
        story.submit(2, metadata={"m": "2"}, **KEYED)


def test_submit_without_a_key_makes_a_job(story):
    story.submit(1)
    with broken("I10"):
        met(story, 1)


def test_submit_is_not_answered_with_a_job_that_has_another_key(story):
    story.submit(1, dedupe_key="other")
    with broken("I10"):
        met(story, 1, **KEYED)


def test_submit_that_wants_to_be_refused_is(story):
    story.submit(1, **KEYED)
    with broken("I10"):
        met(story, 1, dedupe="reject", **KEYED)
    refused(story, "submit", {"queue": "q", "dedupe": "reject", **KEYED}, "duplicate", job_id=1)


def test_submit_is_refused_only_for_a_job_that_has_its_key(story):
    story.submit(1, **KEYED)
    story.sweep("cancel", 1)
    with broken("I10"):
        refused(story, "submit", {"queue": "q", "dedupe": "reject", **KEYED}, "duplicate", job_id=1)


def test_submit_that_asks_for_what_there_is_is_not_refused(story):
    story.submit(1, **KEYED)
    story.lease(leased())
    with broken("I10"):
        refused(story, "submit", {"queue": "q", **KEYED}, "duplicate", job_id=1)


def test_job_that_waits_is_replaced_and_one_that_is_held_is_not(story):
    story.submit(1, **KEYED)
    with broken("I10"):
        refused(story, "submit", {"queue": "q", "dedupe": "replace", **KEYED}, "duplicate", job_id=1)
    story.lease(leased())
    refused(story, "submit", {"queue": "q", "dedupe": "replace", **KEYED}, "duplicate", job_id=1)
    with broken("I10"):
        met(story, 1, changes=True, dedupe="replace", **KEYED)


def test_job_that_was_replaced_is_handed_out_as_it_is_now(story):
    story.submit(1, **KEYED)
    met(story, 1, changes=True, dedupe="replace", payload=b"new", priority=5, **KEYED)
    with broken("I15"):
        story.lease(leased(payload=b"", priority=5))
    with broken("I15"):
        story.lease(leased(payload=b"new"), grant=2)
    story = Story()
    story.submit(1, **KEYED)
    met(story, 1, changes=True, dedupe="replace", payload=b"new", priority=5, **KEYED)
    story.lease(leased(payload=b"new", priority=5))


def test_job_that_may_have_been_replaced_may_be_either(story):
    for payload in (b"", b"new"):
        story = Story()
        story.submit(1, **KEYED)
        story.ask("submit", {"queue": "q", "dedupe": "replace", "payload": b"new", **KEYED}, TWO)
        story.lease(leased(payload=payload))


def test_debounce_puts_the_job_off(story):
    story.submit(1, delay_ms=500, **KEYED)
    story.wait(400)
    met(story, 1, changes=True, dedupe="debounce", delay_ms=500, **KEYED)
    story.wait(499)
    with broken("I9"):
        story.lease(leased())
    story.wait(1)
    story.lease(leased(), grant=2)


def test_debounce_that_is_heard_of_before_the_submit_of_its_job(story):
    request_id = story.ask("submit", {"queue": "q", "metadata": MARKER, **KEYED}, TWO)
    story.lsn += 1
    met(story, 1, changes=True, dedupe="debounce", delay_ms=500, **KEYED)
    story.tell(request_id, {"job_id": 1}, lsn=story.lsn - 1, session=TWO)
    story.get(shown(1, "delayed", dedupe_key="k", due_ms_left=500))


def test_requeue_of_a_job_whose_key_another_one_has_is_refused_and_of_one_without_a_key_is_not(story):
    story.submit(1, **KEYED)
    story.lease(leased())
    story.say("fail", dead=True)
    story.submit(2, metadata={"m": "2"}, **KEYED)
    story.sweep("requeue", 1, code="duplicate")
    story.submit(3, metadata={"m": "3"})
    with broken("I10"):
        story.sweep("requeue", 3, code="duplicate")


def test_bulk_submit_may_meet_a_key_in_one_group(story):
    story.submit(1, **KEYED)
    groups = [
        {"queue": "q", "payloads": [b""], **KEYED},
        {"queue": "q", "payloads": [b"a", b"b"], "metadata": {"m": "2"}},
    ]
    story.do("submit_many", {"groups": groups}, {"jobs": [[1, 1, True], [2, 2, False]]})
    with broken("I14"):
        story.do("submit_many", {"groups": groups}, {"jobs": [[1, 1, True], [5, 1, False]]})


# --- idempotency keys ----------------------------------------------------------------------------

AGAIN: Final[dict[str, Any]] = {"metadata": MARKER, "idempotency_key": "i", "idempotency_ttl_ms": 1_000}


def test_idempotency_key_has_one_answer_in_its_window_and_not_a_millisecond_longer(story):
    story.submit(1, **AGAIN)
    story.lease(leased())
    story.say("ack")  # whatever becomes of the job
    story.wait(999)
    met(story, 1, **AGAIN)
    with broken("I10"):
        story.submit(2, **AGAIN)
    story.wait(1)
    with broken("I10"):
        met(story, 1, **AGAIN)
    story.submit(3, **AGAIN)


def test_idempotency_key_is_known_for_a_day_where_nobody_says_how_long(story):
    usual: dict[str, Any] = {"metadata": MARKER, "idempotency_key": "i"}
    story.submit(1, **usual)
    story.wait(86_399_999)
    with broken("I10"):
        story.submit(2, **usual)
    story.wait(1)
    story.submit(3, **usual)


def test_idempotency_key_survives_a_restart(story):
    story.submit(1, **AGAIN)
    story.restart()
    with broken("I10"):
        story.submit(2, **AGAIN)


def test_idempotency_key_is_answered_with_the_first_job(story):
    story.submit(1, **AGAIN)
    story.submit(2, metadata={"m": "2"})
    with broken("I10"):
        met(story, 2, **AGAIN)


def test_other_content_is_a_conflict_and_the_same_is_none(story):
    story.submit(1, **AGAIN)
    with broken("I10"):
        met(story, 1, priority=1, **AGAIN)
    refused(story, "submit", {"queue": "q", "priority": 1, **AGAIN}, "idempotency_conflict", job_id=1)
    with broken("I10"):
        refused(story, "submit", {"queue": "q", "priority": 0, **AGAIN}, "idempotency_conflict", job_id=1)
    story.wait(1_000)
    with broken("I10"):
        refused(story, "submit", {"queue": "q", "priority": 1, **AGAIN}, "idempotency_conflict", job_id=1)


def test_idempotency_key_is_looked_at_before_a_dedupe_key(story):
    story.submit(1, **AGAIN, **KEYED)
    with broken("I10"):
        met(story, 1, priority=1, **AGAIN, **KEYED)
    met(story, 1, **AGAIN, **KEYED)


def test_what_a_submit_without_an_answer_did_with_the_key_nobody_can_tell(story):
    story.ask("submit", {"queue": "q", **AGAIN}, TWO)
    met(story, 7, **AGAIN)
    refused(story, "submit", {"queue": "q", "priority": 1, **AGAIN}, "idempotency_conflict", job_id=7)


def test_key_of_a_submit_that_was_given_up_is_doubtful_until_somebody_makes_a_job_with_it(story):
    request_id = story.ask("submit", {"queue": "q", **AGAIN}, TWO)
    story.oracle.unknown(TWO, request_id)
    met(story, 7, **AGAIN)
    story.restart()
    story.read_all(shown(7), fresh=True)
    met(story, 7, **AGAIN)
    story.wait(1_000)
    story.submit(8, **AGAIN)
    with broken("I10"):
        met(story, 7, **AGAIN)


# --- retry policies ------------------------------------------------------------------------------

FIXED: Final[dict[str, Any]] = {"kind": "fixed", "base_ms": 700, "jitter_percent": 0}


@pytest.mark.parametrize(
    ("policy", "failures", "window"),
    [
        (None, 1, (800, 1_200)),
        (None, 3, (3_200, 4_800)),
        ({"jitter_percent": 0}, 30, (3_600_000, 3_600_000)),
        (FIXED, 9, (700, 700)),
        ({"kind": "fixed", "base_ms": 3}, 1, (3, 3)),
        ({"kind": "linear", "base_ms": 400, "cap_ms": 900, "jitter_percent": 0}, 2, (800, 800)),
        ({"kind": "linear", "base_ms": 400, "cap_ms": 900, "jitter_percent": 0}, 3, (900, 900)),
        ({"factor_percent": 150, "base_ms": 101, "jitter_percent": 0}, 2, (151, 151)),
        ({"kind": "list", "delays_ms": [0, 300], "jitter_percent": 10}, 1, (0, 0)),
        ({"kind": "list", "delays_ms": [0, 300], "jitter_percent": 10}, 7, (270, 330)),
    ],
)
def test_window_of_a_policy(policy, failures, window):
    assert window_ms(policy, failures) == window


def test_retry_waits_as_the_policy_of_its_job_says(story):
    story.submit(retry=FIXED)
    story.lease(leased())
    story.say("fail")
    story.wait(699)
    with broken("I9"):
        story.lease(leased(attempt=2, errors=1), grant=2)
    story.wait(1)
    story.lease(leased(attempt=2, errors=1), grant=3)


def test_retry_waits_as_the_fail_says_this_time(story):
    story.submit(retry=FIXED)
    story.lease(leased())
    story.say("fail", retry={"kind": "list", "delays_ms": [50], "jitter_percent": 0})
    with broken("I9"):
        story.get(shown(1, "delayed", 1, errors=1, retry=FIXED, due_ms_left=700))
    story.get(shown(1, "delayed", 1, errors=1, retry=FIXED, due_ms_left=50))
    story.wait(50)
    story.lease(leased(attempt=2, errors=1), grant=2)


def test_retry_does_not_wait_longer_than_its_policy_says(story):
    story.submit()
    story.lease(leased())
    story.say("fail")
    with broken("I9"):
        story.get(shown(1, "delayed", 1, errors=1, due_ms_left=1_201))
    story.get(shown(1, "delayed", 1, errors=1, due_ms_left=1_200))


def test_retry_waits_as_its_queue_says_or_may_say(story):
    set_queue(story, retry=FIXED)
    story.submit()
    story.lease(leased())
    story.say("fail")
    with broken("I9"):
        story.get(shown(1, "delayed", 1, errors=1, due_ms_left=701))
    story = Story()
    story.ask("set_queue", {"queue": "q", "retry": FIXED}, TWO)
    story.submit()
    story.lease(leased())
    story.say("fail")
    story.get(shown(1, "delayed", 1, errors=1, due_ms_left=1_100))


def test_limits_of_a_queue_hold_for_jobs_that_do_not_say_theirs(story):
    set_queue(story, max_retries=0, max_crashes=0)
    story.submit()
    story.lease(leased())
    story.say("fail")
    with broken("I18"):
        story.get(shown(1, "delayed", 1, errors=1, max_retries=0, max_crashes=0, due_ms_left=900))


def test_job_shows_the_limits_that_hold(story):
    set_queue(story, max_retries=1)
    story.submit()
    with broken("I15"):
        story.get(shown())
    story.get(shown(max_retries=1))
    story.submit(2, metadata={"m": "2"}, max_retries=7)
    with broken("I15"):
        story.get(shown(2, metadata={"m": "2"}, max_retries=1))


def test_job_that_died_of_a_limit_that_was_lowered_and_raised_is_believed(story):
    story.submit()
    story.lease(leased())
    set_queue(story, max_retries=0)
    story.say("fail")
    set_queue(story, max_retries=5)
    story.get(shown(1, "dead", 1, errors=1, max_retries=5, reason="retries"))


# --- expiry --------------------------------------------------------------------------------------


def leased_at(story: Story, *jobs: dict[str, Any], grant: int = 1) -> None:
    """A lease whose reply shows the wall clock."""
    body = {**leased_body(*jobs, grant=grant, epoch=story.epoch), "wall_ms": story.wall_ms}
    story.do("lease", {"queues": ["q"]}, body)


@pytest.mark.parametrize("fields", [{"expires_ms": 500}, {"expires_at_ms": WALL_MS + 500}])
def test_job_is_not_handed_out_from_its_expiry_on(fields):
    story = Story()
    story.submit(**fields)
    story.wait(499)
    leased_at(story, leased())
    story = Story()
    story.submit(**fields)
    story.wait(500)
    with broken("I9"):
        leased_at(story, leased())


def test_job_that_was_started_once_does_not_expire(story):
    story.submit(expires_ms=500)
    leased_at(story, leased())
    story.wait(600)
    story.say("fail", retry_in_ms=0)
    with broken("I15"):
        story.get(shown(1, "expired", 1, errors=1, expires_at_ms=WALL_MS + 500))
    leased_at(story, leased(attempt=2, errors=1), grant=2)


def test_job_that_was_released_does(story):
    story.submit(expires_ms=500)
    leased_at(story, leased())
    story.wait(600)
    story.say("release")
    story.get(shown(1, "expired", 0, expires_at_ms=WALL_MS + 500))


def test_job_does_not_expire_before_its_date(story):
    story.submit(expires_ms=500)
    story.wait(499)
    with broken("I15"):
        story.get(shown(1, "expired", expires_at_ms=WALL_MS + 500))
    story.wait(1)
    story.get(shown(1, "expired", expires_at_ms=WALL_MS + 500))


def test_job_expires_by_the_wall_clock_even_if_that_is_set_back_again(story):
    story.submit(expires_ms=60_000)
    story.wall_ms += 60_000
    story.oracle.tick(story.wall_ms)
    story.wall_ms -= 60_000
    story.oracle.tick(story.wall_ms)
    story.get(shown(1, "expired", expires_at_ms=WALL_MS + 60_000))


def test_job_of_a_submit_that_is_under_way_when_the_clock_is_set_back_expires_by_the_new_one(story):
    request_id = story.ask("submit", {"queue": "q", "metadata": MARKER, "expires_ms": 500})
    story.wall_ms -= 10_000
    story.oracle.tick(story.wall_ms)
    story.wait(500)
    story.lsn += 1
    story.tell(request_id, {"job_id": 1})
    story.get(shown(1, "expired", expires_at_ms=story.wall_ms))


def test_job_that_has_expired_is_passed_over(story):
    story.submit(expires_ms=500)
    story.wait(500)
    story.lease()


def test_job_whose_date_has_passed_does_not_wait_at_the_end(story):
    story.submit(expires_ms=500, delay_ms=400)
    story.wait(500)
    with broken("I19"):
        story.read_all(
            shown(1, "delayed", expires_at_ms=WALL_MS + 500, run_at_ms=WALL_MS + 9_000), final=True
        )


# --- update --------------------------------------------------------------------------------------


def updated(story: Story, job_id: int = 1, state: str = "ready", **said: Any) -> None:
    story.do("update", {"job_id": job_id, **said}, {"job_id": job_id, "state": state})


def test_updated_job_takes_its_new_place(story):
    second = {"m": "2"}
    story.submit(1)
    story.submit(2, metadata=second)
    updated(story, 2, priority=5)
    with broken("I7"):
        story.lease(leased(1), grant=1)
    story = Story()
    story.submit(1)
    story.submit(2, metadata=second)
    updated(story, 2, priority=5)
    story.lease(leased(2, metadata=second, priority=5), grant=1)


def test_update_that_is_not_answered_may_have_changed_the_order(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    story.ask("update", {"job_id": 2, "priority": 5}, TWO)
    story.lease(leased(2, metadata={"m": "2"}, priority=5))
    story = Story()
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    story.ask("update", {"job_id": 2, "priority": 5}, TWO)
    story.lease(leased(1))


def test_job_is_handed_out_as_it_was_changed_to(story):
    story.submit()
    updated(story, payload=b"new", encoding="text", metadata={"n": "1"})
    new: dict[str, Any] = {"payload": b"new", "encoding": "text", "metadata": {"n": "1"}}
    for grant, name in enumerate(new, 1):
        with broken("I15"):
            story.lease(leased(**{**new, name: leased().get(name, "raw")}), grant=grant)
    story.lease(leased(**new), grant=4)


def test_update_gives_a_job_another_time(story):
    story.submit(delay_ms=10_000)
    updated(story, state="ready", delay_ms=0)
    story.lease(leased())
    story = Story()
    story.submit()
    updated(story, state="delayed", delay_ms=500)
    story.wait(499)
    with broken("I9"):
        story.lease(leased())
    with broken("I9"):
        story.get(shown(1, "delayed", due_ms_left=2))
    story.get(shown(1, "delayed", due_ms_left=1))


def test_update_says_the_state_that_its_time_means(story):
    story.submit(delay_ms=10_000)
    with broken("I9"):
        updated(story, state="delayed", delay_ms=0)
    with broken("I9"):
        updated(story, state="ready", priority=1)


def test_update_is_answered_with_the_job_that_it_named_waiting(story):
    story.submit()
    with broken("I14"):
        story.do("update", {"job_id": 1, "priority": 1}, {"job_id": 2, "state": "ready"})
    with broken("I14"):
        story.do("update", {"job_id": 1, "priority": 1}, {"job_id": 1, "state": "leased"})


def test_update_to_a_date(story):
    story.submit()
    updated(story, state="delayed", run_at_ms=WALL_MS + 500)
    story.wait(499)
    with broken("I9"):
        story.lease(leased())
    story.wait(1)
    story.lease(leased(), grant=2)


def test_only_what_waits_is_updated(story):
    story.submit()
    with broken("I15"):
        refused(story, "update", {"job_id": 1, "priority": 1}, "wrong_state")
    with broken("I1"):
        refused(story, "update", {"job_id": 1, "priority": 1}, "job_not_found")
    story.lease(leased())
    refused(story, "update", {"job_id": 1, "priority": 1}, "wrong_state")
    with broken("I4"):
        updated(story, priority=1)


def test_update_that_is_heard_of_late_is_in_what_was_seen_meanwhile(story):
    story.submit()
    request_id = story.ask("update", {"job_id": 1, "priority": 5}, TWO)
    story.lsn += 2
    story.get(shown(priority=5))
    story.tell(request_id, {"job_id": 1, "state": "ready"}, lsn=story.lsn - 1, session=TWO)
    story.get(shown(priority=5))
    with broken("I15"):
        story.get(shown())


# --- cancel of running jobs ----------------------------------------------------------------------


def held_and_marked() -> Story:
    story = Story()
    story.submit()
    story.lease(leased())
    marked(story, 1)
    return story


@pytest.mark.parametrize("verb", ["release", "fail"])
def test_marked_job_that_is_given_back_is_cancelled(verb):
    story = held_and_marked()
    story.say(verb)
    with broken("I15"):
        story.lease(leased(attempt=2), grant=2)
    story.get(shown(1, "cancelled", 1, errors=int(verb == "fail")))


def test_marked_job_whose_lease_ends_is_cancelled():
    story = held_and_marked()
    story.wait(30_000)
    with broken("I4"):
        story.lease(leased(attempt=2, crashes=1), grant=2)
    with broken("I4"):
        story.get(shown(1, "ready", 1, crashes=1))
    story.get(shown(1, "cancelled", 1, crashes=1))


def test_marked_job_that_is_acked_is_done():
    story = held_and_marked()
    story.say("ack")
    with broken("I15"):
        held_and_marked().get(shown(1, "leased", 1))
    story.get(shown(1, "done", 1))


def test_mark_is_told_in_an_extension_and_only_if_there_is_one():
    story = held_and_marked()
    request, body = spoken("extend")
    with broken("I15"):
        story.do("extend", request, {**body, "lease_ms_left": 30_000})
    story.do("extend", request, {**body, "lease_ms_left": 30_000, "cancel_marked": [[1, 1]]})
    story = Story()
    story.submit()
    story.lease(leased())
    with broken("I15"):
        story.do("extend", request, {**body, "lease_ms_left": 30_000, "cancel_marked": [[1, 1]]})


def test_mark_survives_a_restart():
    story = held_and_marked()
    story.restart()
    with broken("I15"):
        story.read_all(shown(1, "leased", 1), fresh=True)
    story.read_all(shown(1, "leased", 1, cancel_marked=True), fresh=True)
    story.wait(30_000)
    with broken("I4"):
        story.lease(leased(attempt=2), grant=1)


def test_mark_that_nobody_made_is_not_believed(story):
    story.submit()
    story.lease(leased())
    with broken("I15"):
        story.get(shown(1, "leased", 1, cancel_marked=True))
    story.ask("cancel", {"ids": [[1, 1]], "running": True}, TWO)
    story.get(shown(1, "leased", 1, cancel_marked=True))


def test_job_that_may_be_marked_may_end_either_way(story):
    for state in ("cancelled", "delayed"):
        story = Story()
        story.submit()
        story.lease(leased())
        story.ask("cancel", {"ids": [[1, 1]], "running": True}, TWO)
        story.say("fail")
        due = {"due_ms_left": 900} if state == "delayed" else {}
        story.get(shown(1, state, 1, errors=1, **due))


def test_cancel_that_is_heard_of_after_the_end_that_it_made(story):
    story.submit()
    story.lease(leased())
    request_id = story.ask("cancel", {"ids": [[1, 1]], "running": True}, TWO)
    story.lsn += 1
    story.say("fail")
    body = {"count": 1, "cursor": None, "results": [[1, 1, "ok"]], "marked": 1}
    story.tell(request_id, body, lsn=story.lsn - 1, session=TWO)
    story.get(shown(1, "cancelled", 1, errors=1))


def test_running_jobs_that_a_filter_has_marked_may_be_any(story):
    story.submit()
    story.lease(leased())
    args = {"filter": {"queue": "q"}, "running": True}
    story.do("cancel", args, {"count": 1, "cursor": None, "results": [], "marked": 1})
    story.say("release")
    story.get(shown(1, "cancelled", 1))


def test_cancel_without_running_marks_nothing(story):
    story.submit()
    with broken("I4"):
        story.do(
            "cancel",
            {"ids": [[1, 1]]},
            {"count": 1, "cursor": None, "results": [[1, 1, "ok"]], "marked": 1},
        )


def test_job_that_waits_is_cancelled_at_once_and_not_marked(story):
    story.submit()
    with broken("I4"):
        marked(story, 1)
    marked(story, 1, count=0)
    story.get(shown(1, "cancelled"))


def test_finished_job_is_not_marked():
    story = held_and_marked()
    story.say("ack")
    with broken("I3"):
        marked(story, 1)


def test_event_tells_its_holder_of_a_mark_and_nobody_else():
    event = {"items": [[token(1), [[1, 1]]]]}
    story = held_and_marked()
    story.oracle.event(ONE, "cancel", story.lsn, event)
    with broken("I16"):
        story.oracle.event(TWO, "cancel", story.lsn, event)
    story = Story()
    story.submit()
    story.lease(leased())
    with broken("I5"):
        story.oracle.event(ONE, "cancel", story.lsn + 1, event)


# --- queues --------------------------------------------------------------------------------------


def details(*, paused: bool = False, **said: Any) -> dict[str, Any]:
    """A queue as `queue` shows it."""
    usual = {"lease_ms": 30_000, "max_retries": 3, "max_crashes": 5, "retry": {}, "length_max": 0}
    kept = {"retention_ms": 3_600_000, "dead_retention_ms": 2_592_000_000}
    return {**usual, **kept, "info": {"queue": "q", "paused": paused}, **said}


def test_nothing_is_handed_out_of_a_paused_queue(story):
    story.submit()
    pause(story)
    story.lease()
    with broken("I9"):
        story.lease(leased())
    pause(story, verb="resume")
    with broken("I7"):
        story.lease()
    story.lease(leased(), grant=2)


def test_pause_survives_a_restart(story):
    story.submit()
    pause(story)
    story.restart()
    with broken("I9"):
        story.lease(leased())
    with broken("I15"):
        story.do("queues", {}, {"queues": [{"queue": "q", "paused": False}], "cursor": None}, changes=False)


@pytest.mark.parametrize("jobs", [(), (leased(),)])
def test_pause_that_is_not_answered_may_hold_or_not(story, jobs):
    story.submit()
    story.ask("pause", {"queue": "q"}, TWO)
    story.lsn += 1  # it may have been that
    story.lease(*jobs)


def test_settings_are_answered_with_whether_the_queue_is_paused(story):
    pause(story)
    with broken("I15"):
        set_queue(story, max_retries=1)
    story.do("set_queue", {"queue": "q", "reset": True}, {"queue": "q", "paused": True})


@pytest.mark.parametrize("jobs", [(), (leased(),)])
def test_pause_that_may_be_over_may_hold_or_not(story, jobs):
    story.submit()
    pause(story)
    story.ask("resume", {"queue": "q"}, TWO)
    story.lease(*jobs)


def test_lease_that_waited_may_have_been_served_before_a_pause(story):
    story.submit()
    request_id = story.ask("lease", {"queues": ["q"], "wait_ms": 1_000}, TWO)
    pause(story)
    story.tell(request_id, leased_body(leased()), session=TWO)


def test_retried_lease_may_be_of_a_time_before_a_pause_of_which_nobody_can_tell_the_end(story):
    story.submit()
    pause(story)
    request_id = story.ask("lease", {"queues": ["q"]})
    resume = story.ask("resume", {"queue": "q"}, TWO)
    story.oracle.unknown(TWO, resume)
    pause(story)
    story.lsn += 1
    story.restart()
    story.oracle.check_listing(
        [shown(1, "leased", 1)],
        [{"queue": "q", "leased": 1}],
        story.lsn,
        False,
        engine_ms=story.ms,
        wall_ms=story.wall_ms,
        fresh=True,
        settings=[details(paused=True)],
    )
    story.ask_again(request_id, "lease", {"queues": ["q"]})
    story.tell(request_id, leased_body(leased()))


def test_settings_are_shown_as_they_were_set(story):
    story.submit()
    set_queue(story, max_retries=1, retry={"kind": "fixed"})
    with broken("I15"):
        story.do("queue", {"queue": "q"}, details(), changes=False)
    story.do("queue", {"queue": "q"}, details(max_retries=1, retry={"kind": "fixed"}), changes=False)
    set_queue(story, reset=True, lease_ms=1_000)
    with broken("I15"):
        story.do("queue", {"queue": "q"}, details(max_retries=1, lease_ms=1_000), changes=False)
    story.do("queue", {"queue": "q"}, details(lease_ms=1_000), changes=False)
    with broken("I15"):
        story.do("queue", {"queue": "q"}, details(lease_ms=1_000, paused=True), changes=False)


def test_queue_with_settings_is_there_without_jobs(story):
    set_queue(story, max_retries=1)
    with broken("I15"):
        refused(story, "queue", {"queue": "q"}, "queue_not_found")
    set_queue(story, reset=True)
    refused(story, "queue", {"queue": "q"}, "queue_not_found")


def test_queue_takes_as_many_jobs_as_it_may_and_not_one_more(story):
    set_queue(story, length_max=1)
    story.submit(1)
    with broken("I11"):
        story.submit(2, metadata={"m": "2"})
    story = Story()
    set_queue(story, length_max=1)
    story.submit(1)
    story.lease(leased())
    story.say("ack")
    story.submit(2, metadata={"m": "2"})


def test_queue_is_full_only_with_as_many_jobs_as_it_may_have(story):
    set_queue(story, length_max=2)
    story.submit(1)
    with broken("I11"):
        refused(story, "submit", {"queue": "q"}, "queue_full", length=1, length_max=2)
    with broken("I11"):
        refused(story, "submit", {"queue": "q"}, "queue_full", length=2, length_max=1)
    with broken("I11"):
        refused(story, "submit", {"queue": "q"}, "queue_full", length=7, length_max=2)
    story.submit(2, metadata={"m": "2"})
    refused(story, "submit", {"queue": "q"}, "queue_full", length=2, length_max=2)


def test_job_that_is_kept_for_a_shorter_time_may_go_sooner(story):
    story.submit()
    set_queue(story, retention_ms=1_000)
    story.lease(leased())
    story.say("ack")
    story.wait(999)
    with broken("I1"):
        story.get_nothing()
    story.wait(1)
    story.get_nothing()


# --- weights, filters ----------------------------------------------------------------------------


def test_draw_by_weights_is_that_of_the_page():
    assert drawn([("a", 1), ("b", 1)], 1) == ["b", "a"]
    assert [drawn([("a", 1), ("b", 3)], grant)[0] for grant in range(1, 9)].count("b") == 6


def test_lease_with_weights_comes_in_the_order_that_is_drawn(story):
    other = {"m": "2"}
    story.submit(1)
    story.do("submit", {"queue": "p", "metadata": other}, {"job_id": 2})
    args = {"queues": ["q", "p"], "weights": [1, 1], "count": 2}
    jobs = [leased(1), leased(2, queue="p", metadata=other)]
    with broken("I7"):
        story.do("lease", args, leased_body(*jobs, grant=1))
    story = Story()
    story.submit(1)
    story.do("submit", {"queue": "p", "metadata": other}, {"job_id": 2})
    story.do("lease", args, leased_body(*reversed(jobs), grant=1))


@pytest.mark.parametrize(
    ("where", "means"),
    [
        ("state = ready and priority >= 5", True),
        ("state in (dead, done) or errors > 0", False),
        ("not (task contains AB or error = '')", False),
        ("task contains AB", True),
        ("metadata.user != '' and attempt < 1", False),
        ("metadata.m = 1 and not reason = killed", True),
        ("age < 5s", None),
        ("age < 5s and state = dead", False),
        ("age < 5s or state = ready", True),
    ],
)
def test_filter_means(where, means):
    assert meaning(where)(facts_of(shown(priority=5, task="xaby"))) is means


def test_list_by_a_filter_has_what_is_meant_and_all_of_it(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"}, priority=5)
    second = shown(2, metadata={"m": "2"}, priority=5)
    story.read_all(shown(1), second)
    args = {"filter": {"where": "priority > 0"}}
    with broken("I11"):
        story.do("list", args, {"jobs": [shown(1), second], "cursor": None}, changes=False)
    with broken("I11"):
        story.do("list", args, {"jobs": [], "cursor": None}, changes=False)
    story.do("list", args, {"jobs": [second], "cursor": None}, changes=False)


def test_sweep_by_a_filter_takes_only_what_it_means(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"}, priority=5)
    story.ask("cancel", {"filter": {"where": "priority > 0"}}, TWO)
    story.get(shown(2, "cancelled", metadata={"m": "2"}, priority=5))
    with broken("I15"):
        story.get(shown(1, "cancelled"))


# --- clients that are gone -----------------------------------------------------------------------


def connected(story: Story, on_disconnect: str = "release", session: bytes = ONE) -> None:
    request_id = story.ask("hello", {"version": 1, "on_disconnect": on_disconnect}, session)
    story.tell(request_id, {"engine_ms": story.ms}, session=session)


@pytest.mark.parametrize(("ms", "is_over"), [(499, False), (500, True)])
def test_lease_ends_with_the_connections_of_who_asked_for_that(story, ms, is_over):
    connected(story)
    story.submit()
    story.lease(leased())
    story.oracle.lost(ONE, story.ms)
    story.wait(ms)
    again = leased_body(leased(attempt=2, crashes=1), grant=2)
    request_id = story.ask("lease", {"queues": ["q"]}, TWO)
    story.lsn += 1
    if is_over:
        story.tell(request_id, again, session=TWO)
    else:
        with broken("I4"):
            story.tell(request_id, again, session=TWO)


@pytest.mark.parametrize("why", ["keeps", "came back", "another one"])
def test_lease_of_another_client_does_not_end(story, why):
    connected(story, "keep" if why == "keeps" else "release")
    connected(story, session=TWO)
    story.submit()
    story.lease(leased())
    story.oracle.lost(TWO if why == "another one" else ONE, story.ms)
    story.wait(499)
    if why == "came back":
        connected(story)
    story.wait(1_000)
    request_id = story.ask("lease", {"queues": ["q"]}, TWO)
    story.lsn += 1
    with broken("I4"):
        story.tell(request_id, leased_body(leased(attempt=2, crashes=1), grant=2), session=TWO)


def test_hello_of_before_does_not_say_that_a_client_is_back(story):
    connected(story)
    story.submit()
    story.lease(leased())
    hello = story.ask("hello", {"version": 1, "on_disconnect": "release"})
    story.oracle.lost(ONE, story.ms)
    story.tell(hello, {"engine_ms": story.ms})
    story.wait(500)
    story.lease(leased(attempt=2, crashes=1), grant=2)


# --- results with a time of their own ------------------------------------------------------------


def acked_with_result(ttl_ms: int | None = 1_000, **submitted: Any) -> Story:
    """A job that was acked with a result at one ms of the engine clock."""
    story = Story()
    story.submit(result_ttl_ms=ttl_ms, **submitted)
    story.lease(leased())
    story.say("ack", result=b"r")
    return story


def with_result(result: bytes | None = b"r", **fields: Any) -> dict[str, Any]:
    said: dict[str, Any] = {} if result is None else {"result": result}
    return shown(state="done", attempt=1, **said, **fields)


def without_result(**fields: Any) -> dict[str, Any]:
    return with_result(None, result_expired=True, **fields)


def told(info: dict[str, Any]) -> dict[str, Any]:
    """A job as who waits is told of it."""
    names = (
        "job_id",
        "state",
        "changed_wall_ms",
        "reason",
        "error",
        "result",
        "result_encoding",
        "result_expired",
    )
    return {name: info[name] for name in names if name in info}


def waited(story: Story, *infos: dict[str, Any], pending: int = 0, gone: Any = (), **args: Any) -> None:
    body = {"jobs": [*map(told, infos)], "pending": pending, "gone": [*gone]}
    story.do("wait", {"ids": [[1, len(infos) + pending + len(gone)]], **args}, body, changes=False)


def by_get(story: Story, info: dict[str, Any]) -> None:
    story.get(info)


def by_list(story: Story, info: dict[str, Any]) -> None:
    story.read_all(info)


@pytest.mark.parametrize("look", [by_get, by_list, waited])
def test_result_is_shown_until_its_time_is_over_and_not_a_millisecond_longer(look):
    story = acked_with_result()
    look(story, with_result())
    story.wait(999)
    with broken("I15"):
        look(story, without_result())
    look(story, with_result())
    story.wait(1)
    with broken("I15"):
        look(story, with_result())
    look(story, without_result())
    assert story.marks.counts["result shown in its last millisecond"] == 1
    assert story.marks.counts["result gone at the millisecond of its end"] == 1


@pytest.mark.parametrize("look", [by_get, by_list, waited])
def test_result_that_is_over_does_not_come_back(look):
    story = Story()
    story.submit(result_ttl_ms=1_000)
    story.lease(leased())
    request, body = spoken("ack", result=b"r")
    acked = story.ask("ack", request)
    story.wait(1_000)  # nobody can tell when in between it was acked
    story.lsn += 1
    story.tell(acked, body)
    look(story, without_result())
    story.lsn += 1
    with broken("I15"):
        look(story, with_result())
    look(story, without_result())


def test_result_may_be_over_or_not_while_nobody_can_tell_when_its_job_was_acked():
    for info in (with_result(), without_result()):
        story = Story()
        story.submit(result_ttl_ms=1_000)
        story.lease(leased())
        request, body = spoken("ack", result=b"r")
        acked = story.ask("ack", request)
        story.wait(600)
        story.lsn += 1
        story.tell(acked, body)
        story.wait(600)
        story.get(info)


def test_answer_that_was_long_under_way_may_show_a_result_whose_time_is_over():
    for info in (with_result(), without_result()):
        story = acked_with_result()
        story.wait(999)
        asked = story.ask("get", {"job_id": 1})
        story.wait(1)
        story.tell(asked, info)


def test_result_is_over_as_soon_after_a_restart_that_has_set_the_clock_back():
    story = acked_with_result()
    story.wait(990)
    story.restart()
    story.ms -= 500  # what was durable is older than this
    with broken("I15"):
        story.get(without_result())
    story.wait(510)
    with broken("I15"):
        story.get(with_result())
    story.get(without_result())
    assert story.marks.counts["result gone over the end of a run"] == 1


@pytest.mark.parametrize("look", [by_get, by_list, waited])
def test_result_without_a_time_is_never_over(look):
    story = acked_with_result(None)
    story.wait(1_000_000)
    with broken("I15"):
        look(story, without_result())
    look(story, with_result())


@pytest.mark.parametrize("look", [by_get, by_list, waited])
def test_result_of_which_none_is_kept_was_never_there(look):
    story = acked_with_result(0)
    for info in (without_result(), with_result()):
        with broken("I15"):
            look(story, info)
    look(story, with_result(None))


@pytest.mark.parametrize("look", [by_get, waited])
def test_result_of_which_none_is_kept_is_not_shown_whatever_the_ack_was_answered(look):
    story = Story()
    story.submit(result_ttl_ms=0)
    story.lease(leased())
    story.ask("ack", spoken("ack", result=b"r")[0], TWO)
    story.lsn += 1
    with broken("I15"):
        look(story, with_result())
    look(story, with_result(None))


@pytest.mark.parametrize("look", [by_get, waited])
def test_job_without_a_result_does_not_say_that_there_was_one(look):
    story = Story()
    story.submit(result_ttl_ms=1_000)
    story.lease(leased())
    story.say("ack")
    story.wait(1_000)
    with broken("I15"):
        look(story, without_result())
    look(story, with_result(None))


@pytest.mark.parametrize("look", [by_get, by_list, waited])
def test_result_is_the_one_that_was_acked_with(look):
    story = acked_with_result()
    for info in (with_result(b"other"), with_result(None)):
        with broken("I15"):
            look(story, info)
    look(story, with_result())


# --- progress ------------------------------------------------------------------------------------


def test_progress_is_shown_as_it_was_said_last(story):
    story.submit()
    story.lease(leased())
    story.say("extend", progress_percent=40, progress_text="half")
    story.say("extend")  # says nothing of it
    for said in ({}, {"progress_percent": 40}, {"progress_percent": 41, "progress_text": "half"}):
        with broken("I15"):
            story.get(shown(state="leased", attempt=1, **said))
    story.get(shown(state="leased", attempt=1, progress_percent=40, progress_text="half"))
    story.say("extend", progress_text="more")
    with broken("I15"):
        story.get(shown(state="leased", attempt=1, progress_percent=40, progress_text="more"))
    story.get(shown(state="leased", attempt=1, progress_text="more"))


def test_progress_outlives_its_attempt_and_a_restart_until_the_next_hand_out(story):
    story.submit()
    story.lease(leased())
    story.say("extend", progress_percent=40)
    story.say("fail", error="no", retry_in_ms=0)
    with broken("I15"):
        story.get(shown(attempt=1, errors=1, error="no"))
    story.get(shown(attempt=1, errors=1, error="no", progress_percent=40))
    story.restart()
    with broken("I15"):
        story.read_all(shown(attempt=1, errors=1, error="no"))
    story.lease(leased(attempt=2, errors=1), grant=2)
    with broken("I15"):
        story.get(shown(state="leased", attempt=2, errors=1, error="no", progress_percent=40))
    story.get(shown(state="leased", attempt=2, errors=1, error="no"))
    assert story.marks.counts["progress cleared by a hand-out"] == 1


def test_progress_of_who_holds_nothing_any_more_is_not_taken(story):
    story.submit()
    story.lease(leased())
    story.say("fail", retry_in_ms=0)
    story.lease(leased(attempt=2, errors=1), grant=2)
    story.say("extend", code="lease_lost", progress_percent=40)
    with broken("I15"):
        story.get(shown(state="leased", attempt=2, errors=1, progress_percent=40))
    late = spoken("extend", progress_percent=50)[0]
    story.ask("extend", late, TWO)  # nobody hears what it was answered
    story.lsn += 1
    with broken("I15"):
        story.get(shown(state="leased", attempt=2, errors=1, progress_percent=50))
    story.get(shown(state="leased", attempt=2, errors=1))


def test_progress_that_is_not_answered_may_have_been_taken(story):
    for said in ({}, {"progress_percent": 40}):
        story = Story()
        story.submit()
        story.lease(leased())
        story.ask("extend", spoken("extend", progress_percent=40)[0], TWO)
        story.lsn += bool(said)
        story.get(shown(state="leased", attempt=1, **said))


# --- wait ----------------------------------------------------------------------------------------


def test_who_waits_is_told_only_of_jobs_that_can_be_at_their_end(story):
    story.submit()
    with broken("I15"):
        waited(story, shown(state="done"))
    with broken("I19"):
        waited(story, shown(state="ready"))
    with broken("I1"):
        waited(story, gone=[[1, 1]])
    waited(story, pending=1)
    story.lease(leased())
    story.ask("ack", spoken("ack")[0], TWO)
    waited(story, shown(state="done", attempt=1))


@pytest.mark.parametrize("end", ["ack", "cancel", "purge"])
def test_who_waits_is_told_of_a_job_that_has_ended(story, end):
    story.submit()
    if end == "ack":
        story.lease(leased())
        story.say("ack")
    else:
        story.sweep(end, 1)
    with broken("I19"):
        waited(story, pending=1)
    ends = {"ack": [shown(state="done", attempt=1)], "cancel": [shown(state="cancelled")], "purge": []}
    waited(story, *ends[end], gone=[] if ends[end] else [[1, 1]])


def test_who_waits_is_told_no_sooner_than_something_ends_or_its_time_is_over(story):
    story.submit(1)
    story.submit(2)
    story.lease(leased(1), leased(2), count=2)
    story.say("ack", 1)
    half = {"jobs": [told(shown(1, "done"))], "pending": 1, "gone": []}
    ids = {"ids": [[1, 2]], "wait_ms": 1_000}
    one, both = story.ask("wait", ids), story.ask("wait", {**ids, "all": True})
    story.wait(999)
    with broken("I19"):
        story.tell(both, half)
    story.tell(one, half)
    both = story.ask("wait", {**ids, "all": True})
    story.wait(1_000)
    story.tell(both, half)


def test_who_waits_may_be_told_of_the_end_of_a_job_that_went_in_the_same_turn(story):
    set_queue(story, retention_ms=0)
    story.submit()
    asked = story.ask("wait", {"ids": [[1, 1]], "wait_ms": 1_000})
    story.lease(leased())
    story.say("ack")
    story.get_nothing()
    story.tell(asked, {"jobs": [told(shown(1, "done"))], "pending": 0})


def test_who_waits_may_be_sent_away_by_a_daemon_that_stops(story):
    story.submit()
    asked = story.ask("wait", {"ids": [[1, 1]], "wait_ms": 1_000})
    story.oracle.stops()
    story.tell(asked, {"jobs": [], "pending": 1})
    story.restart()
    asked = story.ask("wait", {"ids": [[1, 1]], "wait_ms": 1_000})
    with broken("I19"):
        story.tell(asked, {"jobs": [], "pending": 1})


def test_who_reads_too_slowly_may_be_told_only_how_many_have_ended(story):
    story.submit()
    story.sweep("cancel", 1)
    story.do("wait", {"ids": [[1, 1]], "wait_ms": 1_000}, {"jobs": [], "pending": 0}, changes=False)


# --- marks ---------------------------------------------------------------------------------------


def test_marks_of_these_verbs_are_hit():
    story = held_and_marked()
    story.restart()
    story.say("release", epoch=EPOCH)
    hit = {name for name, count in story.marks.counts.items() if count}
    assert hit >= {
        "running job marked",
        "marked job held over the end of a run",
        "marked job ended by its holder: release",
    }
    assert isinstance(story.oracle, Oracle)
    assert isinstance(story.marks, Marks)
