"""The oracle believes replies that arrive behind newer ones: what they tell of lies before what is known by then.

As test_oracle.py, of which it has its stories. Each was once taken for impossible in a plan, and is what that plan came to.
"""

import pytest

from tests.sim.test_oracle import MARKER, TWO, WALL_MS, Story, broken, leased, leased_body, shown, spoken


@pytest.fixture
def story() -> Story:
    return Story()


def cancel_running(story: Story, *job_ids: int) -> int:
    return story.ask("cancel", {"ids": [[job_id, 1] for job_id in job_ids], "running": True})


def taken(*job_ids: int, **fields: int) -> dict[str, object]:
    results = [[job_id, 1, "ok"] for job_id in job_ids]
    return {"count": len(job_ids), "cursor": None, "results": results, **fields}


def update(story: Story) -> None:
    story.do("update", {"job_id": 1, "priority": 1}, {"job_id": 1, "state": "ready"})


def test_updated_job_may_have_been_held_by_a_lease_that_is_not_answered_yet(story):
    story.submit()
    lease = story.ask("lease", {"queues": ["q"]}, TWO)
    story.lsn += 2  # it was handed out, and its lease is over
    update(story)
    story.tell(lease, leased_body(leased()), lsn=story.lsn - 2, session=TWO)
    story.lease(leased(attempt=2, priority=1), grant=2)


def test_updated_job_that_nobody_leased_was_not_held(story):
    story.submit()
    update(story)
    with broken("I8"):
        story.lease(leased(attempt=2, priority=1), grant=2)


def test_requeue_may_be_heard_of_behind_a_look_at_its_very_moment(story):
    story.submit()
    story.lease(leased())
    story.say("fail", 1, dead=True)
    requeue = story.ask("requeue", {"ids": [[1, 1]]})
    story.lsn += 1
    story.get(shown(attempt=1, reason=None))
    story.tell(requeue, taken(1))
    story.lease(leased(attempt=2), grant=2)


def test_job_is_not_requeued_twice(story):
    story.submit()
    story.lease(leased())
    story.say("fail", 1, dead=True)
    story.sweep("requeue", 1)
    with broken("I15"):
        story.sweep("requeue", 1)


def test_job_that_a_lease_passed_over_may_be_what_a_cancel_took(story):
    story.submit(1)
    story.submit(2)
    story.lease(leased(1))
    cancel = cancel_running(story, 1, 2)
    story.lsn += 1
    lease = story.ask("lease", {"queues": ["q"]}, TWO)
    story.tell(lease, leased_body(), session=TWO)
    story.ask(
        "lease", {"queues": ["q"]}, TWO
    )  # another one, so that either of them can be the one that was held
    story.tell(cancel, taken(1, 2, marked=1))


def test_fail_that_was_sent_twice_may_have_come_before_the_job_was_marked(story):
    story.submit()
    story.lease(leased())
    fail, answer = spoken("fail", 1, retry_in_ms=0)
    fail_id = story.ask("fail", fail)
    lease_id = story.ask("lease", {"queues": ["q"]})
    story.ask_again(fail_id, "fail", fail)
    story.ask_again(lease_id, "lease", {"queues": ["q"]})
    story.lsn += 3  # failed, leased again, marked
    story.tell(story.ask("cancel", {"ids": [[1, 1]], "running": True}, TWO), taken(1, marked=1), session=TWO)
    story.tell(fail_id, answer)
    story.tell(lease_id, leased_body(leased(attempt=2, errors=1), grant=2))
    extension, body = spoken("extend", 1, grant=2)
    story.do("extend", extension, {**body, "cancel_marked": [[1, 1]]})


def test_wait_may_tell_of_a_result_that_is_over_when_the_job_is_known_to_be_gone(story):
    story.submit(result_ttl_ms=1_000)
    story.lease(leased())
    story.say("ack", 1, result=b"r")
    story.wait(1_000)
    wait = story.ask("wait", {"ids": [[1, 1]]}, TWO)
    lsn = story.lsn
    story.wait(3_600_000)
    story.lsn += 1
    story.get_nothing()
    ended = {"job_id": 1, "state": "done", "changed_wall_ms": WALL_MS, "result_expired": True}
    story.tell(wait, {"jobs": [ended], "pending": 0}, lsn=lsn, session=TWO)


def test_result_is_not_over_before_its_time(story):
    story.submit(result_ttl_ms=1_000)
    story.lease(leased())
    story.say("ack", 1, result=b"r")
    story.wait(999)
    ended = {"job_id": 1, "state": "done", "changed_wall_ms": WALL_MS, "result_expired": True}
    with broken("I15"):
        story.do("wait", {"ids": [[1, 1]]}, {"jobs": [ended], "pending": 0}, changes=False)


def replaced(story: Story) -> None:
    """A job gets another payload; that it was made, and a list of the time before, is heard of behind that."""
    fields = {"queue": "q", "metadata": MARKER, "dedupe_key": "k"}
    made = story.ask("submit", fields, TWO)
    look = story.ask("list", {}, TWO)
    lsn = story.lsn = story.lsn + 1
    again = {**fields, "dedupe": "replace", "payload": b"new"}
    story.do("submit", again, {"job_id": 1, "existing": True})
    story.tell(made, {"job_id": 1}, lsn=lsn, session=TWO)
    story.tell(look, {"jobs": [shown(dedupe_key="k")], "cursor": None}, lsn=lsn, session=TWO)


def test_list_may_be_heard_of_behind_a_change_of_what_it_shows(story):
    replaced(story)
    story.lsn += 1
    story.read_all(shown(dedupe_key="k", payload_bytes=3))


def test_list_shows_the_same_size_while_nobody_changes_it(story):
    replaced(story)
    story.lsn += 1
    story.read_all(shown(dedupe_key="k", payload_bytes=3))
    with broken("I15"):
        story.read_all(shown(dedupe_key="k", payload_bytes=4))


KEYED = {"queue": "q", "metadata": MARKER, "idempotency_key": "i"}


@pytest.mark.parametrize("sends", [2, 1])
def test_key_may_have_been_met_before_the_reply_to_a_submit_that_was_sent_twice(story, sends):
    """Its first copy may have made the job, and what answers the second one has seen more of the log."""
    first = story.ask("submit", KEYED)
    second = story.ask("submit", KEYED, TWO)
    story.lsn += 2
    if sends == 2:
        story.ask_again(first, "submit", KEYED)
    story.tell(first, {"job_id": 1})
    if sends == 1:
        with broken("I10"):
            story.tell(second, {"job_id": 1, "existing": True}, lsn=story.lsn - 1, session=TWO)
    else:
        story.tell(second, {"job_id": 1, "existing": True}, lsn=story.lsn - 1, session=TWO)
