"""The oracle believes what can be true, and nothing else.

Each bad history is one that only this rule forbids: the good ones beside it differ in what makes it right.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.sim.marks import Marks
from tests.sim.oracle import Oracle, Violation

ONE, TWO = b"1" * 16, b"2" * 16
EPOCH = 1_700_000_000
WALL_MS = EPOCH * 1_000
MARKER = {"m": "1"}


def token(grant: int, epoch: int = EPOCH) -> int:
    return epoch << 32 | grant


def leased(job_id: int = 1, attempt: int = 1, **fields: Any) -> dict[str, Any]:
    """A job in the reply of a lease."""
    return {"job_id": job_id, "queue": "q", "attempt": attempt, "payload": b"", "metadata": MARKER, **fields}


def shown(job_id: int = 1, state: str = "ready", attempt: int = 0, **fields: Any) -> dict[str, Any]:
    """A job in a list."""
    usual = {"created_wall_ms": WALL_MS, "changed_wall_ms": WALL_MS, "payload_bytes": 0}
    known = {"job_id": job_id, "queue": "q", "state": state, "attempt": attempt, "metadata": MARKER}
    if state == "leased":
        usual["lease_ms_left"] = 30_000
    return {**usual, **known, **fields}


class Story:
    """Clients, a daemon that says what it is told to say, and the oracle that listens."""

    def __init__(self, **limits: int) -> None:
        self.marks = Marks()
        self.oracle = Oracle(self.marks)
        self.oracle.rules(**limits)
        self.ms, self.wall_ms = 1_000, WALL_MS
        self.lsn = 1
        self.epoch = EPOCH
        self._request_id = 0
        self.started()

    def started(self, epoch: int | None = None, **fields: Any) -> None:
        self.epoch = epoch or self.epoch
        welcome = {"epoch": self.epoch, "store_id": "s", "engine_ms": self.ms, **fields}
        self.oracle.started(welcome, self.ms, self.wall_ms)

    def restart(self, down_ms: int = 1_000) -> None:
        self.oracle.crashed()
        self.wall_ms += down_ms
        self.started(self.epoch + max(1, down_ms // 1_000))
        self.lsn += 1

    def wait(self, ms: int) -> None:
        self.ms += ms
        self.wall_ms += ms

    # --- one half ---

    def ask(self, verb: str, args: dict[str, Any], session: bytes = ONE) -> int:
        self._request_id += 1
        self.ask_again(self._request_id, verb, args, session)
        return self._request_id

    def ask_again(self, request_id: int, verb: str, args: dict[str, Any], session: bytes = ONE) -> None:
        self.oracle.sent(session, request_id, verb, args, self.ms, self.wall_ms)

    def tell(self, request_id: int, body: Any, *, lsn: int | None = None, session: bytes = ONE) -> None:
        self.refuse(request_id, "ok", body, lsn=lsn, session=session)

    def refuse(
        self, request_id: int, code: str, body: Any = None, *, lsn: int | None = None, session: bytes = ONE
    ) -> None:
        at = self.lsn if lsn is None else lsn
        self.oracle.answered(session, request_id, code, at, body or {}, self.ms, self.wall_ms)

    # --- whole exchanges; what changes something has an LSN of its own ---

    def do(self, verb: str, args: dict[str, Any], body: Any, *, changes: bool = True) -> None:
        request_id = self.ask(verb, args)
        self.lsn += changes
        self.tell(request_id, body)

    def submit(self, job_id: int = 1, **fields: Any) -> None:
        self.do("submit", {"queue": "q", "metadata": MARKER, **fields}, {"job_id": job_id})

    def lease(self, *jobs: dict[str, Any], grant: int = 1, lease_ms: int = 30_000, **args: Any) -> None:
        body = leased_body(*jobs, grant=grant, lease_ms=lease_ms, epoch=self.epoch)
        self.do("lease", {"queues": ["q"], **args}, body, changes=bool(jobs))

    def say(
        self,
        verb: str,
        *job_ids: int,
        grant: int = 1,
        code: str = "ok",
        epoch: int | None = None,
        **args: Any,
    ) -> None:
        """A word of a holder of jobs, one verdict for all of them."""
        request, body = spoken(verb, *job_ids, grant=grant, code=code, epoch=epoch or self.epoch, **args)
        self.do(verb, request, body, changes=code == "ok")

    def sweep(self, verb: str, *job_ids: int, code: str = "ok", **args: Any) -> None:
        results = [[job_id, 1, code] for job_id in job_ids]
        count = len(job_ids) if code == "ok" else 0
        body = {"count": count, "cursor": None, "results": results}
        self.do(verb, {"ids": [[job_id, 1] for job_id in job_ids], **args}, body, changes=count > 0)

    def get(self, job: dict[str, Any]) -> None:
        self.do("get", {"job_id": job["job_id"]}, job, changes=False)

    def get_nothing(self, job_id: int = 1) -> None:
        request_id = self.ask("get", {"job_id": job_id})
        self.refuse(request_id, "job_not_found")

    def read_all(self, *jobs: dict[str, Any], final: bool = False, fresh: bool = False) -> None:
        queues: dict[str, dict[str, Any]] = {}
        for job in jobs:
            queue = queues.setdefault(job["queue"], {"queue": job["queue"]})
            queue[job["state"]] = queue.get(job["state"], 0) + 1
        self.oracle.check_listing(
            list(jobs),
            list(queues.values()),
            self.lsn,
            final,
            engine_ms=self.ms,
            wall_ms=self.wall_ms,
            fresh=fresh,
        )


def leased_body(
    *jobs: dict[str, Any], grant: int = 1, lease_ms: int = 30_000, epoch: int = EPOCH
) -> dict[str, Any]:
    if not jobs:
        return {"token": 0, "lease_ms_left": 0, "wall_ms": WALL_MS, "jobs": []}
    return {
        "token": token(grant, epoch),
        "lease_ms_left": lease_ms,
        "wall_ms": WALL_MS,
        "jobs": list(jobs),
    }


def spoken(
    verb: str, *job_ids: int, grant: int = 1, code: str = "ok", epoch: int = EPOCH, **args: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The request and the reply of an ack, a fail, a release or an extend."""
    ids = job_ids or (1,)
    result = args.pop("result", None)
    item: list[Any] = [token(grant, epoch), [[job_id, 1] for job_id in ids]]
    if verb == "ack":
        item.append(result)
    return {"items": [item], **args}, {"results": [[job_id, 1, code] for job_id in ids]}


@pytest.fixture
def story() -> Story:
    return Story()


@contextmanager
def broken(invariant: str) -> Iterator[None]:
    """As pytest.raises, for one invariant."""
    with pytest.raises(Violation) as caught:
        yield
    assert caught.value.invariant == invariant, str(caught.value)


# --- I1: what was acknowledged is there ---------------------------------------------------------


def test_job_that_was_submitted_is_missed_in_a_get_and_in_a_list(story):
    story.submit()
    story.restart()
    with broken("I1"):
        story.get_nothing()
    with broken("I1"):
        story.read_all()


def test_job_that_a_list_of_its_queue_leaves_out_is_missed(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    with broken("I1"):
        story.do(
            "list",
            {"filter": {"queue": "q"}},
            {"jobs": [shown(2, metadata={"m": "2"})], "cursor": None},
            changes=False,
        )


def test_page_of_a_list_says_nothing_of_what_stands_behind_it_or_in_other_states(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    story.do("list", {"limit": 1}, {"jobs": [shown(1)], "cursor": 2}, changes=False)
    story.do("list", {"filter": {"state": "dead"}}, {"jobs": [], "cursor": None}, changes=False)


def test_job_of_a_queue_that_is_said_not_to_exist_is_missed(story):
    story.submit()
    request_id = story.ask("list", {"filter": {"queue": "q"}})
    with broken("I1"):
        story.refuse(request_id, "queue_not_found")


@pytest.mark.parametrize("verb", ["purge", "cancel"])
def test_job_that_somebody_may_have_purged_may_be_missing_and_a_cancelled_one_may_not(story, verb):
    story.submit()
    story.ask(verb, {"ids": [[1, 1]]}, TWO)
    if verb == "purge":
        story.read_all()
    else:
        with broken("I1"):
            story.read_all()


def test_finished_job_is_missed_before_its_hour_is_over_and_not_then(story):
    story.submit()
    story.lease(leased())
    story.say("ack")
    story.wait(3_599_999)
    with broken("I1"):
        story.read_all()
    story.wait(1)
    story.read_all()


def test_finished_job_may_go_early_where_too_many_are_kept():
    story = Story(FINISHED_COUNT_MAX=1)
    story.submit(1)
    story.lease(leased())
    story.say("ack")
    story.submit(2, metadata={"m": "2"})
    story.read_all(shown(2, metadata={"m": "2"}))


def test_job_with_a_result_may_go_when_results_are_too_many():
    story = Story(RESULTS_BYTES_MAX=3)
    story.submit()
    story.lease(leased())
    story.say("ack", result=b"1234")
    story.read_all()


def test_verdict_that_a_job_does_not_exist_is_doubted(story):
    story.submit()
    story.lease(leased())
    with broken("I1"):
        story.say("ack", code="job_not_found")
    with broken("I1"):
        story.sweep("cancel", 1, code="job_not_found")


def test_job_that_is_gone_does_not_come_back(story):
    story.submit()
    story.sweep("purge", 1)
    story.get_nothing()
    with broken("I15"):
        story.get(shown())


# --- I2: nothing that nobody submitted -----------------------------------------------------------


def test_job_that_nobody_submitted_is_noticed_wherever_it_shows(story):
    with broken("I2"):
        story.lease(leased())
    with broken("I2"):
        story.get(shown())


def test_job_of_a_submit_without_an_answer_is_believed_once(story):
    story.ask("submit", {"queue": "q", "metadata": MARKER})
    story.read_all(shown())
    with broken("I2"):
        story.read_all(shown(), shown(2))


def test_submit_that_was_sent_twice_under_one_session_makes_one_job(story):
    request_id = story.ask("submit", {"queue": "q", "metadata": MARKER})
    story.restart()
    story.read_all(shown())
    story.ask_again(request_id, "submit", {"queue": "q", "metadata": MARKER})
    with broken("I2"):
        story.tell(request_id, {"job_id": 2})


def test_submit_that_was_refused_makes_none(story):
    request_id = story.ask("submit", {"queue": "q", "metadata": MARKER})
    story.refuse(request_id, "storage_full")
    with broken("I2"):
        story.read_all(shown())


def test_submit_whose_session_may_be_forgotten_may_make_two(story):
    request_id = story.ask("submit", {"queue": "q", "metadata": MARKER})
    story.wait(600_000)
    story.ask_again(request_id, "submit", {"queue": "q", "metadata": MARKER})
    story.lsn += 2
    story.tell(request_id, {"job_id": 2})
    story.read_all(shown(1), shown(2))


def test_late_word_of_the_daemon_is_not_one_that_it_has_just_heard(story):
    submit = story.ask("submit", {"queue": "q", "metadata": MARKER})
    ping = story.ask("ping", {})
    story.wait(599_999)
    story.tell(ping, {})  # it was under way for so long
    story.ask_again(submit, "submit", {"queue": "q", "metadata": MARKER})  # and this never came
    story.wait(1_000)
    story.ask_again(submit, "submit", {"queue": "q", "metadata": MARKER})
    story.lsn += 2
    story.tell(submit, {"job_id": 2})
    story.read_all(shown(1), shown(2))


def test_purge_may_be_told_of_before_the_submit(story):
    submit = story.ask("submit", {"queue": "q", "metadata": MARKER})
    story.lsn = 3
    story.sweep("purge", 1)
    story.tell(submit, {"job_id": 1}, lsn=2)
    story.read_all()


def test_purge_before_the_submit_makes_no_job_go(story):
    story.sweep("purge", 7, code="job_not_found")
    story.submit(7)
    with broken("I1"):
        story.read_all()


def test_job_may_come_and_be_purged_before_its_submit_is_answered_at_last(story):
    submit = story.ask("submit", {"queue": "q", "metadata": MARKER})
    story.lsn = 3
    story.do("purge", {"filter": {}}, {"count": 1, "cursor": None, "results": []}, changes=False)
    story.restart()
    story.read_all(fresh=True)
    story.ask_again(submit, "submit", {"queue": "q", "metadata": MARKER})
    story.tell(submit, {"job_id": 1})
    story.read_all()


def test_word_that_came_in_time_keeps_a_session(story):
    submit = story.ask("submit", {"queue": "q", "metadata": MARKER})
    story.wait(300_000)
    story.do("ping", {}, {}, changes=False)
    story.wait(599_999)
    story.ask_again(submit, "submit", {"queue": "q", "metadata": MARKER})
    story.lsn += 2
    with broken("I2"):
        story.read_all(shown(1), shown(2))


def test_job_is_what_was_submitted(story):
    story.submit(payload=b"x", priority=3, max_retries=1)
    with broken("I15"):
        story.get(shown(1, priority=2, max_retries=1))
    with broken("I15"):
        story.get(shown(1, priority=3, max_retries=2))
    with broken("I15"):
        story.get(shown(1, priority=3, max_retries=1, payload=b"y"))
    story.get(shown(1, priority=3, max_retries=1, payload=b"x"))


def test_answer_with_the_id_of_somebody_elses_job_is_refused(story):
    story.submit(1)
    request_id = story.ask("submit", {"queue": "q", "metadata": {"m": "2"}})
    story.ask_again(request_id, "submit", {"queue": "q", "metadata": {"m": "2"}})
    story.lsn += 1
    with broken("I2"):
        story.tell(request_id, {"job_id": 1})


# --- I3: one ack ---------------------------------------------------------------------------------


def test_job_that_was_acked_is_not_handed_out_again(story):
    story.submit()
    story.lease(leased())
    story.say("ack")
    with broken("I3"):
        story.lease(leased(attempt=2), grant=2)


def test_job_is_acked_once_whatever_the_order_in_which_the_answers_come(story):
    story.submit()
    story.lease(leased())
    request, body = spoken("ack")
    first, second = story.ask("ack", request), story.ask("ack", request)
    story.tell(second, body, lsn=story.lsn + 2)
    with broken("I3"):
        story.tell(first, body, lsn=story.lsn + 1)


def test_ack_that_is_answered_again_from_memory_is_one_ack(story):
    story.submit()
    story.lease(leased())
    request, body = spoken("ack")
    request_id = story.ask("ack", request)
    story.restart()
    story.ask_again(request_id, "ack", request)
    story.tell(request_id, body)
    story.read_all(shown(1, "done", 1))


def test_fail_of_a_job_that_was_acked_is_refused(story):
    story.submit()
    story.lease(leased())
    story.say("ack")
    story.say("fail", code="lease_lost")
    with broken("I3"):
        story.say("fail")


# --- I4: one live lease --------------------------------------------------------------------------


def test_job_is_not_handed_out_while_its_lease_lives(story):
    story.submit()
    story.lease(leased())
    story.wait(29_999)
    with broken("I4"):
        story.lease(leased(attempt=2, crashes=1), grant=2)
    story.wait(1)
    story.lease(leased(attempt=2, crashes=1), grant=3)


def test_extended_lease_lives_longer_and_a_shortened_one_less_long(story):
    story.submit()
    story.lease(leased())
    story.say("extend", lease_ms=1_000)
    story.say("extend", lease_ms=60_000)
    story.wait(59_999)
    with broken("I4"):
        story.lease(leased(attempt=2, crashes=1), grant=2)
    story.wait(1)
    story.lease(leased(attempt=2, crashes=1), grant=3)
    story.say("extend", lease_ms=1_000, grant=3)
    story.wait(1_000)
    story.lease(leased(attempt=3, crashes=2), grant=4)


def test_lease_that_somebody_may_have_ended_may_be_followed_by_another(story):
    story.submit()
    story.lease(leased())
    story.ask("release", spoken("release")[0], TWO)
    story.lease(leased(attempt=1), grant=2)


def test_holder_of_a_live_lease_is_heard(story):
    story.submit()
    story.lease(leased())
    story.wait(29_999)
    with broken("I4"):
        story.say("ack", code="lease_lost")


def test_holder_whose_lease_may_be_over_may_be_refused(story):
    story.submit()
    story.lease(leased())
    story.wait(30_000)
    story.say("ack", code="lease_lost")


def test_lease_has_its_grace_after_a_restart(story):
    story.submit()
    story.lease(leased())
    story.wait(29_000)
    story.submit(2, metadata={"m": "2"})
    story.restart()
    story.read_all(shown(1, "leased", 1), shown(2, metadata={"m": "2"}), fresh=True)
    story.wait(29_999)
    with broken("I4"):
        story.lease(leased(attempt=2), grant=1)


def test_lease_that_has_less_than_its_grace_after_a_restart_is_noticed(story):
    story.submit()
    story.lease(leased(), lease_ms=10_000)
    story.wait(5_000)
    story.restart()
    with broken("I4"):
        story.read_all(shown(1, "leased", 1, lease_ms_left=9_999), fresh=True)
    story.read_all(shown(1, "leased", 1, lease_ms_left=10_000), fresh=True)


def test_token_belongs_to_one_request(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    story.lease(leased(1))
    with broken("I4"):
        story.lease(leased(2, metadata={"m": "2"}), grant=1)


def test_token_comes_with_jobs_and_no_job_comes_twice(story):
    story.submit()
    with broken("I4"):
        story.do("lease", {"queues": ["q"]}, {**leased_body(), "token": token(1)}, changes=False)
    with broken("I4"):
        story.lease(leased(), leased(), grant=2, count=2)


def test_tokens_of_a_job_rise(story):
    story.submit()
    story.lease(leased(), grant=2)
    story.say("release", grant=2)
    with broken("I4"):
        story.lease(leased(), grant=1)


def test_epoch_rises_with_each_start_and_only_then(story):
    story.oracle.crashed()
    with broken("I4"):
        story.started(EPOCH)
    story.started(EPOCH + 1)
    story.started(EPOCH + 1)
    with broken("I4"):
        story.started(EPOCH + 2)


def test_tokens_rise_over_a_restored_backup(story):
    story.submit()
    story.lease(leased())
    story.oracle.crashed()
    story.oracle.tick(WALL_MS + 1_000)
    story.oracle.rolled_back()
    with broken("I4"):
        story.started(EPOCH)


def test_restored_backup_may_lack_what_came_after_it_and_count_anew(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    story.lease(leased(1))
    story.say("ack", 1)
    story.oracle.crashed()
    story.oracle.rolled_back()
    story.lsn = 3
    story.wall_ms += 5_000
    story.read_all(shown(1), fresh=True)
    story.started(EPOCH + 5)
    story.submit(2, metadata={"m": "3"})
    story.lease(leased(1))


# --- I5: stale tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["ack", "fail", "release", "extend"])
def test_token_that_was_followed_by_another_is_refused(story, verb):
    story.submit()
    story.lease(leased(), grant=1)
    story.wait(30_000)
    story.lease(leased(attempt=2, crashes=1), grant=2)
    story.say(verb, grant=1, code="lease_lost")
    with broken("I5"):
        story.say(verb, grant=1)


def test_token_that_was_released_is_refused(story):
    story.submit()
    story.lease(leased())
    story.say("release")
    with broken("I5"):
        story.say("fail")


def test_word_that_was_sent_in_time_and_answered_late_is_believed(story):
    story.submit()
    story.lease(leased(), grant=1)
    request, body = spoken("release")
    request_id = story.ask("release", request)
    story.ask_again(request_id, "release", request)
    story.lease(leased(), grant=2)
    story.tell(request_id, body)


def test_word_that_was_sent_again_when_the_next_token_was_known_is_refused(story):
    story.submit()
    story.lease(leased(), grant=1)
    story.wait(30_000)
    story.lease(leased(attempt=2, crashes=1), grant=2)
    request, body = spoken("release")
    request_id = story.ask("release", request)
    story.ask_again(request_id, "release", request)
    with broken("I5"):
        story.tell(request_id, body, lsn=story.lsn + 1)


def test_word_on_a_job_that_nobody_knows_is_refused(story):
    with broken("I5"):
        story.say("ack")


def test_verdict_is_one_of_three(story):
    story.submit()
    story.lease(leased())
    with broken("I5"):
        story.say("ack", code="wrong_state")


def test_verdicts_that_are_not_those_of_the_jobs_named_are_refused(story):
    story.submit()
    with broken("I14"):
        story.do("cancel", {"ids": [[1, 1]]}, {"count": 0, "cursor": None, "results": [[1, 1, "ok"]]})
    with broken("I14"):
        story.do("cancel", {"ids": [[1, 2]]}, {"count": 1, "cursor": None, "results": [[1, 1, "ok"]]})
    story.lease(leased())
    request, _ = spoken("ack")
    request_id = story.ask("ack", request)
    with broken("I14"):
        story.tell(request_id, {"results": [[1, 2, "ok"]]}, lsn=story.lsn + 1)


# --- I6: at most once ----------------------------------------------------------------------------


ONCE: Any = {"delivery": "at_most_once"}


def test_at_most_once_job_is_not_handed_out_again_over_a_restart(story):
    story.submit(**ONCE)
    story.lease(leased(**ONCE))
    story.restart(60_000)
    story.wait(60_000)
    with broken("I6"):
        story.lease(leased(attempt=2, **ONCE), grant=1)


def test_at_most_once_job_that_was_failed_is_not_handed_out_again(story):
    story.submit(**ONCE)
    story.lease(leased(**ONCE))
    story.say("fail")
    with broken("I6"):
        story.lease(leased(attempt=2, errors=1, **ONCE), grant=2)


def test_at_most_once_job_is_not_sent_to_a_retried_lease(story):
    story.submit(**ONCE)
    request_id = story.ask("lease", {"queues": ["q"]})
    story.lsn += 1
    story.tell(request_id, leased_body(leased(**ONCE)))
    story.ask_again(request_id, "lease", {"queues": ["q"]})
    with broken("I6"):
        story.tell(request_id, leased_body(leased(**ONCE)))


def test_at_most_once_job_that_was_released_or_requeued_is(story):
    story.submit(**ONCE)
    story.lease(leased(**ONCE))
    story.say("release")
    story.lease(leased(**ONCE), grant=2)
    story.say("fail", grant=2)
    story.sweep("requeue", 1)
    story.lease(leased(attempt=2, **ONCE), grant=3)


# --- I7: order -----------------------------------------------------------------------------------


def three_jobs(story: Story) -> None:
    """Priority 0, 5 and 0."""
    story.submit(1)
    story.submit(2, priority=5, metadata={"m": "2"})
    story.submit(3, metadata={"m": "3"})


FIRST, SECOND, THIRD = leased(2, priority=5, metadata={"m": "2"}), leased(1), leased(3, metadata={"m": "3"})


def test_lease_takes_what_stands_first(story):
    three_jobs(story)
    with broken("I7"):
        story.lease(SECOND)


def test_lease_hands_out_in_order(story):
    three_jobs(story)
    with broken("I7"):
        story.lease(SECOND, FIRST, THIRD, count=3)


def test_lease_that_has_room_leaves_nothing(story):
    three_jobs(story)
    with broken("I7"):
        story.lease(FIRST, SECOND, count=3)


def test_lease_in_order_is_believed(story):
    three_jobs(story)
    story.lease(FIRST, SECOND, THIRD, count=3)
    story.lease()


def test_lease_does_not_come_back_empty_while_something_is_ready(story):
    story.submit()
    with broken("I7"):
        story.lease()


def test_lease_takes_from_its_first_queue_first(story):
    story.submit(1)
    story.submit(2, queue="r", metadata={"m": "2"})
    other = leased(2, queue="r", metadata={"m": "2"})
    with broken("I7"):
        story.lease(other, queues=["q", "r"])


def test_lease_hands_out_in_the_order_of_its_queues(story):
    story.submit(1)
    story.submit(2, queue="r", metadata={"m": "2"})
    other = leased(2, queue="r", metadata={"m": "2"})
    with broken("I7"):
        story.lease(other, leased(1), queues=["q", "r"], count=2)


def test_job_that_came_back_takes_its_place(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    story.lease(leased(1))
    story.say("release")
    with broken("I7"):
        story.lease(leased(2, metadata={"m": "2"}), grant=2)


def test_job_that_asks_for_another_lease_time_may_end_a_reply_unseen(story):
    story.submit(1)
    story.submit(2, lease_ms=5_000, delay_ms=1, metadata={"m": "2"})
    story.submit(3, metadata={"m": "3"})
    story.wait(1)
    story.lease(leased(1), count=3)


def test_passed_over_job_may_be_in_a_reply_that_is_still_to_come(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    other = story.ask("lease", {"queues": ["q"]}, TWO)
    story.lsn += 1
    story.lease(leased(2, metadata={"m": "2"}), grant=2)
    story.tell(other, leased_body(leased(1)), lsn=story.lsn - 1, session=TWO)


def test_passed_over_job_that_no_reply_accounts_for_is_noticed_when_the_last_came(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    story.submit(3, queue="r", metadata={"m": "3"})
    other = story.ask("lease", {"queues": ["r", "q"]}, TWO)
    story.lease(leased(2, metadata={"m": "2"}), grant=2)
    story.lsn += 1
    with broken("I7"):
        story.tell(other, leased_body(leased(3, queue="r", metadata={"m": "3"}), grant=3), session=TWO)


def test_passed_over_job_may_have_gone_to_who_will_never_tell(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    other = story.ask("lease", {"queues": ["q"]}, TWO)
    story.oracle.unknown(TWO, other)
    story.lease(leased(2, metadata={"m": "2"}), grant=2)
    story.oracle.finish()


def test_passed_over_job_may_have_been_in_the_first_answer_to_a_request_sent_twice(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    other = story.ask("lease", {"queues": ["q"]}, TWO)
    story.ask_again(other, "lease", {"queues": ["q"]}, TWO)
    story.lease(leased(2, metadata={"m": "2"}), grant=2)
    story.tell(other, leased_body(), session=TWO)
    story.lease(grant=3)


# --- I8: attempts --------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [1, 3])
def test_attempts_are_counted_one_by_one(story, attempt):
    story.submit()
    story.lease(leased())
    story.say("fail", retry_in_ms=0)
    with broken("I8"):
        story.lease(leased(attempt=attempt, errors=1), grant=2)
    story.lease(leased(attempt=2, errors=1), grant=3)


def test_attempt_that_was_released_is_given_back(story):
    story.submit()
    story.lease(leased())
    story.say("release")
    with broken("I8"):
        story.lease(leased(attempt=2), grant=2)
    story.lease(leased(attempt=1), grant=3)


def test_attempts_that_nobody_can_have_made_are_not_shown(story):
    story.submit()
    with broken("I8"):
        story.get(shown(attempt=1))
    story.lease(leased())
    with broken("I8"):
        story.get(shown(1, "leased", 0))


@pytest.mark.parametrize("fields", [{"errors": 0}, {"errors": 2}, {"errors": 1, "crashes": 1}])
def test_errors_and_crashes_are_counted(story, fields):
    story.submit()
    story.lease(leased())
    story.say("fail", retry_in_ms=0)
    with broken("I8"):
        story.lease(leased(attempt=2, **fields), grant=2)


def test_job_is_not_tried_more_often_than_it_may_be(story):
    story.submit(max_retries=0, max_crashes=1)
    story.lease(leased())
    story.wait(30_000)
    with broken("I8"):
        story.lease(leased(attempt=2, errors=1), grant=2)
    with broken("I8"):
        story.lease(leased(attempt=2, crashes=2), grant=3)
    story.lease(leased(attempt=2, crashes=1), grant=4)


def test_lease_that_a_restart_has_ended_counts_as_no_crash(story):
    story.submit()
    story.lease(leased())
    story.restart()
    story.read_all(shown(1, "leased", 1), fresh=True)
    story.wait(30_000)
    with broken("I8"):
        story.lease(leased(attempt=2, crashes=1), grant=1)
    story.lease(leased(attempt=2), grant=2)


def test_attempts_that_nobody_was_told_of_may_have_been(story):
    story.submit()
    other = story.ask("lease", {"queues": ["q"]}, TWO)
    story.oracle.unknown(TWO, other)
    story.wait(60_000)
    story.lease(leased(attempt=3, crashes=2), grant=3)


# --- I9: not before its time ---------------------------------------------------------------------


def test_delayed_job_is_not_handed_out_a_millisecond_early(story):
    story.submit(delay_ms=500)
    story.wait(499)
    with broken("I9"):
        story.lease(leased())
    story.wait(1)
    story.lease(leased(), grant=2)


def test_dated_job_waits_for_the_wall_clock(story):
    story.submit(run_at_ms=WALL_MS + 500)
    story.ms += 100_000
    story.wall_ms += 499
    with broken("I9"):
        story.lease(leased())
    story.wall_ms += 1
    story.lease(leased(), grant=2)


def test_dated_job_may_go_when_the_wall_clock_has_been_there_for_a_moment(story):
    story.submit(run_at_ms=WALL_MS + 3_600_000)
    story.oracle.tick(WALL_MS + 3_600_000)
    story.oracle.tick(WALL_MS)
    story.lease(leased())


@pytest.mark.parametrize(("failures", "least_ms"), [(1, 800), (2, 1_600)])
def test_retry_waits_at_least_for_its_backoff(story, failures, least_ms):
    story.submit()
    for number in range(failures):
        story.wait(60_000)
        story.lease(leased(attempt=number + 1, errors=number), grant=number + 1)
        story.say("fail", grant=number + 1)
    story.wait(least_ms - 1)
    with broken("I9"):
        story.lease(leased(attempt=failures + 1, errors=failures), grant=8)
    story.wait(1)
    story.lease(leased(attempt=failures + 1, errors=failures), grant=9)


def test_job_that_is_shown_ready_before_its_time_is_noticed(story):
    story.submit(delay_ms=500)
    story.wait(499)
    with broken("I9"):
        story.get(shown())


def test_time_that_a_crash_took_from_the_engine_clock_is_taken_from_nobody(story):
    request_id = story.ask("submit", {"queue": "q", "metadata": MARKER, "delay_ms": 500})
    story.ms -= 300  # the newest record was so old
    story.restart()
    story.ask_again(request_id, "submit", {"queue": "q", "metadata": MARKER, "delay_ms": 500})
    story.lsn += 1
    story.tell(request_id, {"job_id": 1})
    story.wait(500)
    story.lease(leased())


# --- I10: a request that comes twice -------------------------------------------------------------


def test_request_that_was_answered_is_answered_the_same_again(story):
    story.submit()
    story.ask_again(1, "submit", {"queue": "q", "metadata": MARKER})
    with broken("I10"):
        story.tell(1, {"job_id": 2})
    story.ask_again(1, "submit", {"queue": "q", "metadata": MARKER})
    story.tell(1, {"job_id": 1})
    story.ask_again(1, "submit", {"queue": "q", "metadata": MARKER})
    with broken("I10"):
        story.refuse(1, "busy")


def test_lease_that_was_answered_is_answered_with_what_is_left_of_it(story):
    story.submit(1)
    story.submit(2, metadata={"m": "2"})
    request_id = story.ask("lease", {"queues": ["q"]})
    story.lsn += 1
    story.tell(request_id, leased_body(leased(1)))
    for jobs, grant in (([leased(1)], 2), ([leased(2, metadata={"m": "2"})], 1)):
        story.ask_again(request_id, "lease", {"queues": ["q"]})
        with broken("I10"):
            story.tell(request_id, leased_body(*jobs, grant=grant))
    story.ask_again(request_id, "lease", {"queues": ["q"]})
    story.tell(request_id, leased_body(leased(1)))


def test_answer_that_is_forgotten_is_no_answer(story):
    story.submit()
    story.ask_again(1, "submit", {"queue": "q", "metadata": MARKER})
    story.refuse(1, "position_lost")


# --- I11: counts ---------------------------------------------------------------------------------


def test_queues_count_what_is_listed(story):
    story.submit()
    with broken("I11"):
        story.oracle.check_listing(
            [shown()], [{"queue": "q", "ready": 2}], story.lsn, False, engine_ms=story.ms, wall_ms=WALL_MS
        )


def test_list_holds_what_was_asked_for(story):
    story.submit()
    with broken("I11"):
        story.do("list", {"filter": {"state": "dead"}}, {"jobs": [shown()], "cursor": None}, changes=False)


# --- I14: LSNs and ids ---------------------------------------------------------------------------


def test_reply_does_not_fall_behind_what_was_known_when_it_was_asked_for(story):
    story.submit()
    request_id = story.ask("ping", {}, TWO)
    with broken("I14"):
        story.tell(request_id, {}, lsn=story.lsn - 1, session=TWO)


def test_reply_may_be_older_than_one_that_came_while_it_was_under_way(story):
    request_id = story.ask("ping", {}, TWO)
    story.submit()
    story.tell(request_id, {}, lsn=story.lsn - 1, session=TWO)


def test_change_has_an_lsn_of_its_own(story):
    story.do("ping", {}, {}, changes=False)
    request_id = story.ask("submit", {"queue": "q", "metadata": MARKER})
    with broken("I14"):
        story.tell(request_id, {"job_id": 1})


def test_ids_rise_with_lsns(story):
    story.submit(5)
    with broken("I14"):
        story.submit(4, metadata={"m": "2"})


def test_ids_of_a_bulk_submit_are_consecutive(story):
    groups = [{"queue": "q", "payloads": [b"a", b"b"], "metadata": {"m": str(number)}} for number in (1, 2)]
    with broken("I14"):
        story.do("submit_many", {"groups": groups}, {"jobs": [[1, 2, False], [4, 2, False]]})


def test_bulk_submit_makes_the_jobs_it_says(story):
    groups = [{"queue": "q", "payloads": [b"a", b"b"], "metadata": {"m": str(number)}} for number in (1, 2)]
    story.do("submit_many", {"groups": groups}, {"jobs": [[1, 2, False], [3, 2, False]]})
    jobs = [leased(1, payload=b"a"), leased(2, payload=b"b"), leased(3, payload=b"b", metadata={"m": "2"})]
    with broken("I15"):
        story.lease(*jobs, count=3)


# --- I15: nothing that was seen is undone --------------------------------------------------------


def test_crash_does_not_undo_what_a_read_has_shown(story):
    story.submit()
    story.ask("submit", {"queue": "q", "metadata": {"m": "2"}}, TWO)
    story.lsn += 1
    story.get(shown(2, metadata={"m": "2"}))
    story.lease(leased())
    story.restart()
    with broken("I1"):
        story.read_all(shown(1, "leased", 1))
    with broken("I4"):
        story.read_all(shown(), shown(2, metadata={"m": "2"}))


def test_everything_is_read_at_an_lsn_that_is_not_behind_what_was_known(story):
    story.submit()
    story.lsn -= 1
    with broken("I15"):
        story.read_all(shown())


def test_result_that_was_acked_is_shown(story):
    story.submit()
    story.lease(leased())
    story.say("ack", result=b"17", encoding="text")
    with broken("I15"):
        story.get(shown(1, "done", 1))
    with broken("I15"):
        story.get(shown(1, "done", 1, result=b"17"))
    story.get(shown(1, "done", 1, result=b"17", result_encoding="text"))


def test_error_that_was_told_is_shown(story):
    story.submit()
    story.lease(leased())
    story.say("fail", error="oops", retry_in_ms=700)
    with broken("I15"):
        story.get(shown(1, "delayed", 1, errors=1, due_ms_left=700))


def test_what_was_shown_of_a_job_stays_while_nothing_happens_to_it(story):
    story.submit()
    story.lease(leased())
    story.say("fail", error="no", dead=True)
    dead = shown(1, "dead", 1, errors=1, error="no", reason="killed")
    story.get(dead)
    story.restart()
    story.read_all({**dead, "attempts": []} if "attempts" in dead else dead)
    with broken("I15"):
        story.read_all({**dead, "attempts": [{"attempt": 1}]})
    with broken("I15"):
        story.read_all({**dead, "created_wall_ms": WALL_MS + 1})


def test_job_that_was_handed_out_again_shows_other_facts_at_the_same_wall_clock(story):
    story.submit()
    story.lease(leased())
    story.get(shown(1, "leased", 1))
    story.ask("fail", {"items": [[token(1), [[1, 1]]]], "error": "oops"})
    story.wall_ms -= 1
    story.lease(leased(attempt=2, errors=1), grant=2)
    story.get(shown(1, "leased", 2, errors=1, error="oops"))


def test_lease_that_began_after_a_restart_has_no_grace_whoever_tells_of_it_first(story):
    story.submit()
    story.lease(leased())
    story.restart()
    story.read_all(shown(1, "leased", 1), fresh=True)
    story.wait(30_000)
    request_id = story.ask("lease", {"queues": ["q"]})
    story.lsn += 2
    story.get(shown(1, "leased", 2))
    story.tell(request_id, leased_body(leased(attempt=2), grant=1, epoch=story.epoch), lsn=story.lsn - 1)
    story.wait(30_000)
    story.lease(leased(attempt=3, crashes=1), grant=2)


def test_store_is_the_same_and_its_clock_does_not_fall_behind_a_fact(story):
    story.wait(10_000)
    story.submit()
    story.oracle.crashed()
    with broken("I15"):
        story.started(EPOCH + 1, store_id="t")
    with broken("I15"):
        story.started(EPOCH + 1, engine_ms=10_999)
    story.started(EPOCH + 1)


def test_job_that_was_cancelled_stays_so(story):
    story.submit()
    story.sweep("cancel", 1)
    with broken("I15"):
        story.lease(leased())


def test_sweep_takes_only_what_it_may(story):
    story.submit()
    story.lease(leased())
    with broken("I4"):
        story.sweep("cancel", 1)
    with broken("I4"):
        story.sweep("purge", 1)
    with broken("I4"):
        story.sweep("requeue", 1)
    story.sweep("cancel", 1, code="wrong_state")


def test_sweep_does_not_refuse_what_it_must_take(story):
    story.submit()
    with broken("I15"):
        story.sweep("cancel", 1, code="wrong_state")


def test_sweep_by_filter_may_have_taken_any_job_of_its_queue(story):
    story.submit()
    story.do("cancel", {"filter": {"queue": "q"}}, {"count": 1, "cursor": None, "results": []})
    story.get(shown(1, "cancelled"))


def test_sweep_by_filter_that_took_nothing_took_nothing(story):
    story.submit()
    body = {"count": 0, "cursor": None, "results": []}
    story.do("cancel", {"filter": {"queue": "q"}}, body, changes=False)
    with broken("I15"):
        story.get(shown(1, "cancelled"))


# --- I18, I19: the end ---------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["retries", "crashes", "abandoned", "refused", "killed"])
def test_dead_job_has_used_up_what_its_reason_says(story, reason):
    story.submit()
    story.lease(leased())
    story.ask("fail", spoken("fail")[0], TWO)
    with broken("I18"):
        story.get(shown(1, "dead", 1, errors=1, reason=reason))


def test_job_that_has_used_up_its_retries_is_dead(story):
    story.submit(max_retries=0)
    story.lease(leased())
    story.say("fail")
    with broken("I18"):
        story.get(shown(1, "delayed", 1, errors=1, max_retries=0, due_ms_left=900))
    story.get(shown(1, "dead", 1, errors=1, max_retries=0, reason="retries"))


def test_nobody_has_seen_the_job_that_should_be_dead_fail(story):
    story.submit(max_retries=0)
    story.ask("lease", {"queues": ["q"]}, TWO)
    with broken("I18"):
        story.get(shown(1, "leased", 2, errors=1, max_retries=0))


@pytest.mark.parametrize("state", ["ready", "leased"])
def test_nothing_is_left_at_the_end(story, state):
    story.submit()
    story.ask("lease", {"queues": ["q"]}, TWO)
    with broken("I19"):
        story.read_all(shown(1, state, int(state == "leased")), final=True)


def test_job_whose_time_is_far_away_may_wait_at_the_end_and_one_whose_time_has_come_may_not(story):
    story.submit(delay_ms=1_000)
    story.read_all(shown(1, "delayed", due_ms_left=1_000), final=True)
    story.wait(1_000)
    with broken("I19"):
        story.read_all(shown(1, "delayed", due_ms_left=0), final=True)


# --- what is no rule -----------------------------------------------------------------------------


def test_internal_error_is_never_right(story):
    request_id = story.ask("ping", {})
    with broken("CODE"):
        story.refuse(request_id, "internal")


def test_marks_are_hit(story):
    story.submit()
    story.lease(leased())
    story.wait(30_000)
    story.lease(leased(attempt=2, crashes=1), grant=2)
    story.say("ack", grant=1, code="lease_lost")
    story.refuse(story.ask("submit", {}), "busy")
    assert {name: count for name, count in story.marks.counts.items() if count} == {
        "job handed out in the millisecond in which a lease ran out": 1,
        "stale token refused": 1,
        "refused: busy": 1,
    }
