"""The checkers have to be right before they may judge: good histories pass, each lie is found for its own reason.

A case makes a story that is true, which both checkers accept, and returns the one lie that is then told about it:
something that a daemon with a bug, or a client with one, would have made of it. `witness` and `search` are the reasons
that they must give; None: it cannot be seen from there (the search believes no LSN and no log).
"""

import base64
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgpack
import pytest

from jqd.core import commands as c
from tests.history import search, witness
from tests.history.operations import Body, Fact, History, Operation, Violation
from tests.history.story import Client, Fate, Story, random_story

Lie = Callable[[History], None]
Make = Callable[[Story, Client, Client], Lie]
# Histories by chance that must pass.
GOOD, PARTS = 1_000, 4


class Case(NamedTuple):
    make: Make
    witness: str | None
    search: str | None


CASES: dict[str, Case] = {}


def lie(*, witness: str | None, search: str | None) -> Callable[[Make], Make]:
    def enter(make: Make) -> Make:
        CASES[make.__name__] = Case(make, witness, search)
        return make

    return enter


# --- small verbs ----------------------------------------------------------------------------------


def submit(story: Story, client: Client, fate: Fate = Fate.ANSWERED, **fields: Any) -> Operation:
    marker = {"marker": f"m{story.core.state.pages.next_id}"}
    return story.ask(client, c.Submit(queue="mail", payload=b"x", metadata=marker, **fields), fate)


def lease(story: Story, client: Client, fate: Fate = Fate.ANSWERED, **fields: Any) -> Operation:
    return story.ask(client, c.Lease(queues=["mail"], **fields), fate)


def ack(story: Story, client: Client, held: Operation, fate: Fate = Fate.ANSWERED) -> Operation:
    return story.ask(client, c.Ack(items=[(held.body["token"], ranges_of(held), None)]), fate)


def fail(story: Story, client: Client, held: Operation, **fields: Any) -> Operation:
    return story.ask(client, c.Fail(items=[(held.body["token"], ranges_of(held))], error="bad", **fields))


def get(story: Story, client: Client, job_id: int) -> Operation:
    return story.ask(client, c.Get(job_id=job_id))


def ranges_of(held: Operation) -> list[tuple[int, int]]:
    return [(job["job_id"], 1) for job in held.body["jobs"]]


def pretend(one: Operation, body: Body, lsn: int) -> None:
    """Let a client have been told that its request was carried out."""
    one.status = one.said = "ok"
    one.body, one.lsn, one.returned = body, lsn, one.invoked + 1_000


def of_kind(history: History, kind: str) -> list[Fact]:
    return [fact for fact in history.facts if fact.kind == kind]


def answers_beside(history: History, fact: Fact) -> list[Body]:
    (beside,) = [each for each in of_kind(history, "RequestsAnswered") if each.record == fact.record]
    answers: list[Body] = beside.fields["answers"]
    return answers


# --- what was acknowledged is lost, or undone -------------------------------------------------------


@lie(witness="acknowledged and not in the log", search="lost")
def acknowledged_submit_is_lost(story, ann, bob):
    lost = submit(story, ann, Fate.VANISHED)
    return lambda history: pretend(lost, {"job_id": 1}, 2)


@lie(witness="acknowledged and not in the log", search="no order")
def acknowledged_ack_is_undone(story, ann, bob):
    submit(story, ann)
    held = lease(story, ann, lease_ms=1_000)
    lost = ack(story, ann, held, Fate.VANISHED)
    story.pass_time(1_200)
    ack(story, bob, lease(story, bob))
    return lambda history: pretend(lost, {"results": [[1, 1, "ok"]]}, held.lsn + 1)


@lie(witness="acknowledged and not in the log", search="no order")
def stale_token_is_accepted(story, ann, bob):
    submit(story, ann)
    held = lease(story, ann)
    ack(story, ann, held)
    stale = ack(story, ann, held)

    def tell(history):
        assert stale.body == {"results": [[1, 1, "lease_lost"]]}
        stale.body = {"results": [[1, 1, "ok"]]}

    return tell


@lie(witness="acknowledged and not in the log", search="no order")
def one_job_has_two_leases(story, ann, bob):
    submit(story, ann)
    held = lease(story, ann)
    other = lease(story, bob)
    ack(story, ann, held)

    def tell(history):
        assert not other.body["jobs"]
        other.body = held.body | {"token": held.body["token"] + 1}

    return tell


@lie(witness="wrong reply", search="no order")
def read_shows_what_is_undone_later(story, ann, bob):
    submit(story, ann)
    held = lease(story, ann)
    seen = get(story, bob, 1)
    get(story, bob, 1)
    ack(story, ann, held)
    return lambda history: seen.body.update(state="done")


@lie(witness="LSNs against real time", search="no order")
def read_is_older_than_what_its_reader_knew(story, ann, bob):
    submit(story, ann)
    held = lease(story, ann)
    before = get(story, ann, 1)
    ack(story, ann, held)
    after = get(story, ann, 1)

    def tell(history):
        after.body, after.lsn = before.body, before.lsn

    return tell


# --- what nobody asked for, or what happened twice ----------------------------------------------------


@lie(witness="never asked for", search="unexpected")
def job_comes_from_nowhere(story, ann, bob):
    ghost = submit(story, ann)
    return lambda history: history.operations.remove(ghost)


@lie(witness="carried out twice", search="duplicated")
def request_that_is_sent_again_is_carried_out_again(story, ann, bob):
    first, again = submit(story, ann), submit(story, ann)

    def tell(history):
        history.operations.remove(again)
        first.ids += again.ids
        shown = [
            job for one in history.operations if one.verb in ("lease", "list") for job in one.body["jobs"]
        ]
        for job in shown:
            job["metadata"] = first.args["metadata"]

    return tell


@lie(witness="carried out twice", search=None)
def log_answers_one_request_twice(story, ann, bob):
    submit(story, ann)

    def tell(history):
        first, last = of_kind(history, "RequestsAnswered")[0], history.facts[-1]
        history.facts.append(Fact(last.lsn + 1, last.record + 1, last.engine_ms, first.kind, first.fields))

    return tell


@lie(witness="refused and carried out", search="unexpected")
def refused_submit_is_carried_out(story, ann, bob):
    one = submit(story, ann)

    def tell(history):
        one.status, one.said, one.body = "busy", "busy", {}

    return tell


@lie(witness="wrong reply", search="half a request")
def bulk_submit_is_there_in_part(story, ann, bob):
    group = c.SubmitGroup(queue="mail", payloads=[b"1", b"2", b"3"], metadata={"marker": "bulk"})
    story.ask(ann, c.SubmitMany(groups=[group]), Fate.UNKNOWN)

    def tell(history):
        listing = history.operations[-1]
        listing.body["jobs"] = [job for job in listing.body["jobs"] if job["job_id"] != 2]

    return tell


@lie(witness="unexplained fact", search=None)
def log_has_a_fact_of_nobody(story, ann, bob):
    submit(story, ann)
    story.ask(ann, c.Cancel(ids=[(1, 1)]), Fate.UNKNOWN)
    return lambda history: answers_beside(history, of_kind(history, "JobsCancelled")[0]).clear()


@lie(witness="answered without facts", search=None)
def log_remembers_an_answer_to_what_did_not_happen(story, ann, bob):
    submit(story, ann)
    story.ask(ann, c.Cancel(ids=[(7, 1)]), Fate.UNKNOWN)
    nothing = story.last

    def tell(history):
        reply = msgpack.packb({"count": 0, "cursor": None, "results": [[7, 1, "job_not_found"]]})
        answer = {"request_id": nothing.ids[0], "reply_base64": base64.b64encode(reply).decode()}
        answers_beside(history, of_kind(history, "JobsSubmitted")[0]).append(answer)

    return tell


@lie(witness="other answer remembered", search=None)
def retry_would_be_told_something_else(story, ann, bob):
    submit(story, ann)
    held = lease(story, ann)
    ack(story, ann, held, Fate.UNKNOWN)

    def tell(history):
        (answer,) = answers_beside(history, of_kind(history, "JobsDone")[0])
        reply = msgpack.packb({"results": [[1, 1, "ok"], [2, 1, "ok"]]})
        answer["reply_base64"] = base64.b64encode(reply).decode()

    return tell


@lie(witness="other jobs", search=None)
def log_finishes_another_job_than_the_reply_says(story, ann, bob):
    submit(story, ann)
    submit(story, ann)
    ack(story, ann, lease(story, ann, count=2))
    return lambda history: of_kind(history, "JobsDone")[0].fields.update(ranges=[(1, 1)])


@lie(witness="unexplained fact", search="no order")
def lease_is_taken_back_from_who_was_told_of_it(story, ann, bob):
    submit(story, ann)
    lost = lease(story, ann, Fate.UNKNOWN)
    story.take_back(lost)
    held = lease(story, bob)
    ack(story, bob, held)

    def tell(history):
        pretend(lost, held.body | {"token": held.body["token"] - 1}, held.lsn - 4)

    return tell


@lie(witness="unexplained fact", search=None)
def log_submits_more_than_was_asked(story, ann, bob):
    submit(story, ann)
    return lambda history: of_kind(history, "JobsSubmitted")[0].fields["payloads"].append("one more")


@lie(witness="wrong reply", search="duplicated")
def two_submits_are_told_the_same_job(story, ann, bob):
    submit(story, ann)
    other = submit(story, bob)
    return lambda history: other.body.update(job_id=1)


@lie(witness="wrong reply", search="lost")
def job_that_was_shown_is_gone(story, ann, bob):
    submit(story, ann, Fate.UNKNOWN)
    get(story, bob, 1)
    return lambda history: history.operations[-1].body["jobs"].clear()


@lie(witness="wrong reply", search="no order")
def sweep_finds_jobs_in_a_queue_that_is_not_there(story, ann, bob):
    submit(story, ann)
    swept = story.ask(ann, c.Cancel(filter=c.JobFilter(queue="mail")))
    return lambda history: swept.args["filter"].update(queue="images")


# --- who holds a job ----------------------------------------------------------------------------------


@lie(witness="wrong reply", search="no order")
def holder_is_told_that_its_lease_is_lost(story, ann, bob):
    submit(story, ann)
    held = lease(story, ann)
    told = story.ask(ann, c.Extend(items=[(held.body["token"], [(1, 1)])]))
    ack(story, ann, held)

    def tell(history):
        told.body = {"results": [[1, 1, "lease_lost"]], "lease_ms_left": 0}

    return tell


def refused_though_it_holds(verb: Callable[[Story, Client, Operation], Operation]) -> Make:
    def make(story: Story, ann: Client, bob: Client) -> Lie:
        submit(story, ann)
        held = lease(story, ann)
        stale = Operation(actor="", session="", worker="", verb="", args={}, invoked=0)
        stale.body = {"token": 7, "jobs": [{"job_id": 1}]}
        refused = verb(story, ann, stale)
        ack(story, ann, held)

        def tell(history: History) -> None:
            assert refused.body["results"] == [[1, 1, "lease_lost"]]
            refused.args["items"][0][0] = held.body["token"]

        return tell

    return make


CASES["ack_of_the_holder_is_refused"] = Case(
    refused_though_it_holds(ack), "acknowledged and not in the log", "no order"
)
CASES["fail_of_the_holder_is_refused"] = Case(
    refused_though_it_holds(fail), "acknowledged and not in the log", "no order"
)


@lie(witness="other jobs", search=None)
def ack_is_taken_long_after_the_lease_has_ended(story, ann, bob):
    submit(story, ann)
    held = lease(story, ann, lease_ms=9_000)
    for _ in range(20):  # no standstill: something happens all the time
        story.pass_time(100)
        submit(story, bob)
    ack(story, ann, held)

    def tell(history):
        held.args["lease_ms"] = held.body["lease_ms_left"] = 1_000

    return tell


@lie(witness="wrong reply", search=None)
def lease_that_is_asked_again_has_what_it_lost(story, ann, bob):
    submit(story, ann)
    again = story.ask(
        ann, c.Lease(queues=["mail"], lease_ms=1_000), Fate.SENT_AGAIN, lambda: story.pass_time(1_500)
    )
    held = lease(story, bob)
    ack(story, bob, held)

    def tell(history):
        assert again.body["jobs"] == []
        token = of_kind(history, "JobsLeased")[0].fields["token"]
        again.body = {"token": token, "jobs": [held.body["jobs"][0] | {"attempt": 1}], "lease_ms_left": 1_000}
        again.body["jobs"][0].pop("crashes")

    return tell


# --- what is handed out -----------------------------------------------------------------------------


@lie(witness="wrong reply", search="no order")
def lease_gives_what_stands_behind_another(story, ann, bob):
    submit(story, ann)
    submit(story, ann, priority=3)
    held = lease(story, bob)
    ack(story, bob, held)

    def tell(history):
        assert held.body["jobs"][0]["job_id"] == 2
        held.body["jobs"][0].update(job_id=1, metadata={"marker": "m1"})

    return tell


@lie(witness="wrong reply", search="order")
def lease_passes_over_a_ready_job(story, ann, bob):
    submit(story, ann)
    submit(story, ann)
    held = lease(story, ann)
    other = lease(story, ann)
    for each in (held, other):
        ack(story, ann, each)

    def tell(history):
        # Each reply, and each ack, is about the other job: every job for itself has a good life.
        for one in (held, other):
            job = one.body["jobs"][0]
            job["job_id"] = 3 - job["job_id"]
            job["metadata"] = {"marker": f"m{job['job_id']}"}
        for one in [each for each in history.operations if each.verb == "ack"]:
            ((token, ((job_id, count),), result),) = one.args["items"]
            one.args["items"] = [[token, [[3 - job_id, count]], result]]
            one.body = {"results": [[3 - job_id, 1, "ok"]]}

    return tell


@lie(witness="wrong reply", search="order")
def lease_finds_nothing_where_something_is(story, ann, bob):
    submit(story, ann)
    seen = get(story, ann, 1)
    ack(story, ann, lease(story, ann))
    nothing = lease(story, ann)

    def tell(history):
        nothing.invoked, nothing.returned, nothing.lsn = seen.invoked, seen.returned, seen.lsn

    return tell


@lie(witness="wrong reply", search="order")
def jobs_of_one_lease_stand_in_another_order(story, ann, bob):
    submit(story, ann)
    submit(story, ann)
    held = lease(story, bob, count=2)
    ack(story, bob, held)
    return lambda history: held.body["jobs"].reverse()


@lie(witness="wrong reply", search="order")
def queues_of_one_lease_are_served_in_another_order(story, ann, bob):
    submit(story, ann)
    story.ask(ann, c.Submit(queue="images", metadata={"marker": "i"}))
    held = story.ask(ann, c.Lease(queues=["images", "mail"], count=2))
    ack(story, ann, held)
    return lambda history: held.body["jobs"].reverse()


@lie(witness="wrong reply", search="no order")
def attempt_is_counted_wrong(story, ann, bob):
    submit(story, ann)
    fail(story, ann, lease(story, ann), retry_in_ms=0)
    held = lease(story, bob)
    ack(story, bob, held)
    return lambda history: held.body["jobs"][0].update(attempt=1)


@lie(witness="impossible", search="no order")
def token_falls(story, ann, bob):
    submit(story, ann)
    story.ask(ann, c.Release(items=[(lease(story, ann).body["token"], [(1, 1)])]))
    first = story._moments[-2].operation
    held = lease(story, bob)
    end = ack(story, bob, held)

    def tell(history):
        token = first.body["token"] - 1
        leased = of_kind(history, "JobsLeased")[1]
        leased.fields["token"] = token
        (answer,) = answers_beside(history, leased)
        answer["token"] = str(token)
        held.body["token"] = token
        end.args["items"][0][0] = token

    return tell


@lie(witness="impossible", search=None)
def epoch_falls(story, ann, bob):
    submit(story, ann)
    story.restart()
    return lambda history: of_kind(history, "DaemonStarted")[1].fields.update(epoch=1)


@lie(witness="other jobs", search="no order")
def job_is_handed_out_before_its_time(story, ann, bob):
    early = submit(story, ann, delay_ms=2_000)
    story.pass_time(2_500)
    ack(story, bob, lease(story, bob))
    return lambda history: early.args.update(delay_ms=60_000)


@lie(witness="other jobs", search="no order")
def job_is_tried_more_often_than_it_may_be(story, ann, bob):
    asked = submit(story, ann, max_retries=1)
    fail(story, ann, lease(story, ann), retry_in_ms=0)
    ack(story, bob, lease(story, bob))

    return lambda history: pretend_option(history, asked, max_retries=0)


@lie(witness="impossible", search="no order")
def job_that_is_to_run_at_most_once_is_sent_twice(story, ann, bob):
    asked = submit(story, ann, lease_ms=1_000, max_retries=0)
    lease(story, ann)
    story.pass_time(1_500)
    ack(story, bob, lease(story, bob))

    def tell(history):
        shown = [
            job for one in history.operations for job in one.body.get("jobs", ()) if isinstance(job, dict)
        ]
        for fields in (asked.args, *shown):
            fields["delivery"] = "at_most_once"

    return tell


# --- time -------------------------------------------------------------------------------------------


@lie(witness="impossible", search="no order")
def lease_ends_before_its_time(story, ann, bob):
    submit(story, ann)
    held = lease(story, ann, lease_ms=1_000)
    story.pass_time(1_500)
    ack(story, bob, lease(story, bob))

    def tell(history):
        held.args["lease_ms"] = held.body["lease_ms_left"] = 5_000

    return tell


@lie(witness="impossible", search=None)
def restart_costs_a_crash(story, ann, bob):
    submit(story, ann)
    lease(story, ann, lease_ms=1_000)
    story.restart()
    story.pass_time(1_500)
    return lambda history: of_kind(history, "JobsRetried")[0].fields.update(cause="crash")


def pretend_retry(history: History, after_ms: int) -> None:
    """Let the first retry have come at another time."""
    retried = of_kind(history, "JobsRetried")[0]
    retried.fields["jobs"] = [(1, retried.engine_ms + after_ms)]


@lie(witness="impossible", search=None)
def backoff_is_too_short(story, ann, bob):
    submit(story, ann)
    fail(story, ann, lease(story, ann))
    story.pass_time(1_500)
    return partial(pretend_retry, after_ms=700)


@lie(witness="impossible", search=None)
def retry_comes_at_another_time_than_was_asked(story, ann, bob):
    submit(story, ann)
    fail(story, ann, lease(story, ann), retry_in_ms=300)
    story.pass_time(500)
    return partial(pretend_retry, after_ms=200)


def crashed(story: Story, ann: Client, **fields: Any) -> Operation:
    """Let a lease run out, with a retry or without."""
    asked = submit(story, ann, lease_ms=1_000, **fields)
    lease(story, ann)
    story.pass_time(1_500)
    return asked


def pretend_option(history: History, asked: Operation, **option: int) -> None:
    """Let a job have been submitted with another option, and shown so."""
    asked.args.update(option)
    for one in history.operations:
        for job in one.body.get("jobs", ()) if one.verb == "list" else ():
            job.update(option)


@lie(witness="impossible", search="no order")
def job_survives_more_crashes_than_it_may(story, ann, bob):
    asked = crashed(story, ann)
    ack(story, bob, lease(story, bob))
    return lambda history: pretend_option(history, asked, max_crashes=0)


@lie(witness="impossible", search="no order")
def job_dies_of_fewer_crashes_than_it_survives(story, ann, bob):
    asked = crashed(story, ann, max_crashes=0)
    return lambda history: pretend_option(history, asked, max_crashes=2)


@lie(witness="impossible", search=None)
def job_dies_of_what_it_cannot_die_of(story, ann, bob):
    crashed(story, ann, max_crashes=0)
    return lambda history: of_kind(history, "JobsDied")[0].fields.update(reason="abandoned")


@lie(witness="impossible", search=None)
def job_waits_after_its_first_crash(story, ann, bob):
    crashed(story, ann)
    story.pass_time(1_500)
    return partial(pretend_retry, after_ms=1_000)


@lie(witness="impossible", search=None)
def lease_runs_out_that_nobody_has(story, ann, bob):
    crashed(story, ann)

    def tell(history):
        retried, last = of_kind(history, "JobsRetried")[0], history.facts[-1]
        history.facts.append(
            Fact(last.lsn + 1, last.record + 1, last.engine_ms, retried.kind, retried.fields)
        )

    return tell


@lie(witness="impossible", search=None)
def lease_is_taken_back_that_nobody_has(story, ann, bob):
    submit(story, ann)
    story.ask(ann, c.Cancel(ids=[(1, 1)]))

    def tell(history):
        last = history.facts[-1]
        fields = {"ranges": [(1, 1)]}
        history.facts.append(Fact(last.lsn + 1, last.record + 1, last.engine_ms, "JobsReleased", fields))

    return tell


@lie(witness="engine clock", search=None)
def engine_clock_runs_ahead(story, ann, bob):
    first, then = submit(story, ann), story.time_ns
    story.pass_time(500)
    second, now = submit(story, ann), story.time_ns

    def tell(history):
        first.invoked, second.returned = then - 1, now + 1
        later = of_kind(history, "JobsSubmitted")[1].lsn
        for fact in history.facts:
            fact.engine_ms += 2_000 * (fact.lsn >= later)

    return tell


@lie(witness="engine clock", search=None)
def engine_clock_goes_back(story, ann, bob):
    submit(story, ann)
    story.pass_time(500)
    submit(story, ann)

    def tell(history):
        later = of_kind(history, "JobsSubmitted")[1].record
        for fact in history.facts:
            fact.engine_ms -= 1_000 * (fact.record == later)

    return tell


# --- reads ------------------------------------------------------------------------------------------


@lie(witness="wrong reply", search=None)
def queue_is_counted_wrong(story, ann, bob):
    submit(story, ann)
    seen = story.ask(bob, c.Queues())
    return lambda history: seen.body["queues"][0].update(ready=2)


@lie(witness="wrong reply", search="lost")
def listing_leaves_a_job_out(story, ann, bob):
    submit(story, ann)
    submit(story, ann)
    return lambda history: history.operations[-1].body["jobs"].pop(0)


@lie(witness="wrong reply", search="no order")
def job_that_exists_is_not_found(story, ann, bob):
    submit(story, ann)
    seen = get(story, ann, 1)

    def tell(history):
        seen.status, seen.said, seen.body = "job_not_found", "job_not_found", {}

    return tell


@lie(witness="wrong reply", search="duplicated")
def job_is_shown_that_does_not_exist(story, ann, bob):
    submit(story, ann)
    seen, nothing = get(story, ann, 1), get(story, ann, 9)

    def tell(history):
        nothing.status = nothing.said = "ok"
        nothing.body = seen.body | {"job_id": 9}

    return tell


@lie(witness=None, search="not worked off")
def nobody_has_looked_at_the_end(story, ann, bob):
    submit(story, ann)
    return lambda history: history.operations.pop()


@lie(witness="wrong reply", search="not worked off")
def job_hangs_for_ever(story, ann, bob):
    submit(story, ann)
    return lambda history: history.operations[-1].body["jobs"][0].update(state="delayed")


# --- LSNs and order -----------------------------------------------------------------------------------


@lie(witness="hole in the log", search=None)
def log_has_a_hole(story, ann, bob):
    submit(story, ann)
    submit(story, ann)
    return lambda history: history.facts.remove(of_kind(history, "JobsSubmitted")[1])


@lie(witness="LSN of a reply", search=None)
def reply_is_below_its_own_facts(story, ann, bob):
    one = submit(story, bob)

    def tell(history):
        one.lsn = of_kind(history, "JobsSubmitted")[0].lsn - 1

    return tell


@lie(witness="LSN of a reply", search=None)
def reply_is_beyond_its_own_turn(story, ann, bob):
    one = submit(story, bob)
    submit(story, bob)

    def tell(history):
        one.lsn = of_kind(history, "JobsSubmitted")[1].lsn

    return tell


@lie(witness="LSN of a reply", search=None)
def reply_knows_more_than_the_log_has(story, ann, bob):
    submit(story, ann)

    def tell(history):
        history.operations[-1].lsn = history.facts[-1].lsn + 1

    return tell


@lie(witness="LSNs against real time", search=None)
def lsn_falls_between_two_requests(story, ann, bob):
    submit(story, ann)
    first, second = get(story, ann, 5), get(story, bob, 6)

    def tell(history):
        first.lsn, second.invoked = first.lsn + 1, first.returned + 1
        second.returned = second.invoked + 1

    submit(story, bob)
    return tell


@lie(witness="order against real time", search=None)
def request_takes_effect_before_it_is_asked(story, ann, bob):
    early = submit(story, ann, Fate.UNKNOWN)
    later = submit(story, bob)
    then = story.time_ns

    def tell(history):
        later.invoked, later.returned, early.invoked = then - 1, then + 1, then + 2

    return tell


@lie(witness="client and server differ", search=None)
def client_tells_its_caller_something_else(story, ann, bob):
    submit(story, ann)
    held = lease(story, ann)
    ack(story, ann, held)
    stale = ack(story, ann, held)

    def tell(history):
        stale.said = "job_not_found"

    return tell


# --- the tests ------------------------------------------------------------------------------------------


def reason_of(check: Callable[[History], Counter[str]], history: History) -> str | None:
    try:
        check(history)
    except Violation as violation:
        return violation.reason
    return None


@pytest.mark.parametrize("name", CASES)
def test_each_lie_is_found_for_its_own_reason(name):
    case = CASES[name]
    story = Story(7)
    tell = case.make(story, story.client("ann"), story.client("bob"))
    story.drain()
    history = story.history()
    witness.check(history)
    search.check(history)
    tell(history)
    assert (reason_of(witness.check, history), reason_of(search.check, history)) == (
        case.witness,
        case.search,
    )


def test_there_are_twenty_lies_for_each_checker_that_can_see_them():
    assert sum(case.witness is not None for case in CASES.values()) >= 20
    assert sum(case.search is not None for case in CASES.values()) >= 20


def test_request_that_was_turned_away_is_no_contradiction():
    story = Story(3)
    ann = story.client("ann")
    submit(story, ann)
    refused = get(story, ann, 1)
    refused.status, refused.said, refused.body = "draining", "draining", {}
    story.drain()
    figures = witness.check(story.history()) + search.check(story.history())
    assert figures["jobs judged"] == 1


def test_job_with_too_many_requests_at_a_time_is_not_searched():
    story = Story(3)
    ann = story.client("ann")
    submit(story, ann)
    held = lease(story, ann)
    for _ in range(search.WIDTH_MAX):
        story.ask(ann, c.Extend(items=[(held.body["token"], [(1, 1)])]), Fate.UNKNOWN)
    ack(story, ann, held)
    story.drain()
    history = story.history()
    assert witness.check(history)["unknown"] == search.WIDTH_MAX
    assert search.check(history)["jobs not judged"] == 1


@pytest.mark.parametrize("part", range(PARTS))
def test_good_histories_pass(part):
    figures: Counter[str] = Counter()
    for seed in range(part, GOOD, PARTS):
        history = random_story(seed, steps=32).history()
        figures.update(witness.check(history) + search.check(history))
    # Each of these must have come up, else it was not tested.
    rare = {
        "unknown, in the log": 50,
        "sent again": 200,
        "starts": 500,
        "leases that ran out": 500,
        "recovered": 20,
        "leases judged": 2_000,
        "jobs judged": 2_000,
    }
    assert {name: figures[name] for name, least in rare.items() if figures[name] < least} == {}
    assert figures["unknown"] > figures["unknown, in the log"]
    assert figures["jobs not judged"] < figures["jobs judged"] / 100
