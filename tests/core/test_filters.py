"""The filter language: what each field and operator means, what is refused and where, what a text may cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jqd.core import commands as c
from jqd.core import filters, model
from jqd.core.model import Job, JobState, Now
from jqd.errors import InvalidArgument, WrongState
from tests.support.core import Core

NOW = Now(0, 0)


@pytest.fixture
def jobs(core: Core) -> Core:
    """Six jobs: 1 done, 2 dead by errors, 3 dead by refusal, 4 delayed, 5 and 6 ready; ten minutes apart."""
    core.submit(b"", queue="mail", task="send", priority=5)
    core.submit(b"", queue="mail", max_retries=0, metadata={"trace": "a1", "odd key": "x"})
    core.submit(b"", queue="mail", metadata={"trace": "B2"})
    leased = core.lease("mail", count=3)
    core.ack(leased.token, 1)
    core.fail(leased.token, 2, error="SMTP 451 Timed Out")
    core.ack(leased.token, 3, result_error="no such address ☹")
    core.wait(600_000)
    core.submit(b"", queue="web", delay_ms=3_600_000, priority=-5)
    core.submit(b"", queue="web", task="resize", tenant="acme", group="user-17")
    core.wait(1_000)
    core.submit(b"", queue="web-2", task="send")
    return core


def found(core: Core, where: str) -> list[int]:
    return [job.job_id for job in core.do(c.ListJobs(filter=c.JobFilter(where=where))).jobs]


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("state = dead", [2, 3]),
        ("state != dead", [1, 4, 5, 6]),
        ("state in (done, delayed)", [1, 4]),
        ("reason = refused", [3]),
        ("reason != refused", [1, 2, 4, 5, 6]),
        ("reason in (retries, refused)", [2, 3]),
        ("queue = web", [4, 5]),
        ("queue contains WEB", [4, 5, 6]),
        ("tenant = default", [1, 2, 3, 4, 6]),
        ("tenant in (acme, globex)", [5]),
        ("group contains USER", [5]),
        ("group = ''", [1, 2, 3, 4, 6]),
        ("task in (send, resize)", [1, 5, 6]),
        ("task = ''", [2, 3, 4]),
        ("metadata.trace = a1", [2]),
        ("metadata.trace contains b", [3]),
        ("metadata.trace != ''", [2, 3]),
        ('metadata."odd key" = x', [2]),
        ("metadata.other = x", []),
        ("error contains 'timed out'", [2]),
        ('error contains "☹"', [3]),
        ("error = 'SMTP 451 Timed Out'", [2]),
        ("error != ''", [2, 3]),
        ("priority = 5", [1]),
        ("priority < 0", [4]),
        ("priority <= -5", [4]),
        ("priority >= 5", [1]),
        ("priority != 0", [1, 4]),
        ("priority in (-5, 5)", [1, 4]),
        ("attempt > 0", [1, 2, 3]),
        ("errors >= 1", [2, 3]),
        ("crashes = 0", [1, 2, 3, 4, 5, 6]),
        ("age > 1s", [1, 2, 3]),
        ("age >= 1s", [1, 2, 3, 4, 5]),
        ("age < 1000ms", [6]),
        ("age <= 1", [4, 5, 6]),
        ("age > 9m59s", [1, 2, 3]),
        ("age > 1h30m", []),
        ("state_age >= 10m1s", [1, 2, 3]),
        ("state_age < 1", [6]),
        ("state = dead and error contains smtp", [2]),
        ("state = done or queue = web", [1, 4, 5]),
        ("queue = web and state = ready or state = done", [1, 5]),
        ("queue = web and (state = ready or state = done)", [5]),
        ("not queue = mail", [4, 5, 6]),
        ("not (queue = mail or state = ready)", [4]),
        ("not not state = dead", [2, 3]),
        ("NOT state = dead AND queue CONTAINS web OR state IN (dead)", [2, 3, 4, 5, 6]),
        ("  priority=5 or(task='send')and\n\tage<1s ", [1, 6]),
        (r"""error != "a\"b\\" and error != 'it\'s' and state = done""", [1]),
    ],
)
def test_a_filter_finds_the_jobs_that_it_says(jobs, where, ids):
    assert found(jobs, where) == ids


@pytest.mark.parametrize(
    ("where", "position", "what"),
    [
        (" ", 1, "expected a field, found the end"),
        ("state", 6, "expected one of = != in after state, found the end"),
        ("state =", 8, "expected a value, found the end"),
        ("state = asleep", 9, "state = 'asleep': it is one of delayed ready leased done dead cancelled expired"),
        ("reason in (killed, bored)", 20, "reason = 'bored': it is one of retries crashes refused abandoned killed"),
        ("state < dead", 7, "expected one of = != in after state, found '<'"),
        ("queue > a", 7, "expected one of = != in contains after queue, found '>'"),
        ("age = 5s", 5, "expected one of < <= > >= after age, found '='"),
        ("priority contains 5", 10, "expected one of = != < <= > >= in after priority, found 'contains'"),
        ("priority = high", 12, "'high': a whole number of at most 9 digits"),
        ("priority = 1234567890", 12, "'1234567890': a whole number of at most 9 digits"),
        ("age > 1.5h", 7, "'1.5h': a duration such as 500ms, 30s, 1h30m, 2d, in whole numbers"),
        ("age > 1234567890123", 7, "'1234567890123': a duration such as"),
        ("age > -1", 7, "'-1': a duration such as"),
        ("color = red", 1, "no field is called 'color': there are state reason queue tenant group task error "),
        ("metadata = x", 1, "metadata needs a key: metadata.KEY"),
        ("metadata. = x", 1, "metadata needs a key: metadata.KEY"),
        ("'state' = dead", 1, "expected a field, found 'state'"),
        ("and = x", 1, "expected a field, found 'and'"),
        ("queue = and", 9, "and is a word of the language: as a value it needs quotes"),
        ("queue = (a)", 9, "expected a value, found '('"),
        ("queue in a", 10, "expected (, found 'a'"),
        ("queue in ()", 11, "expected a value, found ')'"),
        ("queue in (a b)", 13, "expected ), found 'b'"),
        ("queue = a b", 11, "expected and, or, or the end, found 'b'"),
        ("queue = a 'and' task = b", 11, "expected and, or, or the end, found 'and'"),
        ("(queue = a", 11, "expected ), found the end"),
        ("queue = a and", 14, "expected a field, found the end"),
        ("queue = ä", 9, "'\\xe4' stands in no word: other texts than [A-Za-z0-9_.:-]+ need quotes"),
        ("queue  ~ a", 8, "'~' stands in no word"),
        ("error = 'open", 9, "a text without its closing quote"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_filter_is_told_with_its_position(core, where, position, what):
    with pytest.raises(InvalidArgument) as refusal:
        core.do(c.ListJobs(filter=c.JobFilter(where=where)))
    assert str(refusal.value).startswith(f"filter.where, character {position}: {what}")
    assert refusal.value.details == {"position": position}


def test_depth_and_comparisons_are_bounded(core):
    core.submit()
    deep = model.FILTER_DEPTH_MAX
    assert found(core, "(" * deep + "queue = default" + ")" * deep) == [1]
    assert found(core, "not " * deep + "queue = default") == [1]
    with pytest.raises(InvalidArgument, match="character 17: nested deeper than 16"):
        found(core, "(" * deep + "not queue = default" + ")" * deep)
    values = ["a"] * (model.FILTER_COMPARISONS_MAX - 1)
    assert found(core, f"queue in ({','.join(values)}, default)") == [1]
    with pytest.raises(InvalidArgument, match="character 87: more than 32 comparisons"):
        found(core, f"queue in ({','.join(values)}, b) or task = c")


@pytest.mark.parametrize(
    ("where", "states"),
    [
        ("state = dead and priority = 1", {"dead"}),
        ("state = dead or priority = 1", set(model.STATE_NAMES)),
        ("state = dead or state = done", {"dead", "done"}),
        ("not state in (dead, done)", set(model.STATE_NAMES) - {"dead", "done"}),
        ("not (state = dead and priority = 1)", set(model.STATE_NAMES)),
        ("not (state = dead or priority = 1)", set(model.STATE_NAMES) - {"dead"}),
        ("state = dead and state != dead", set()),
        ("priority = 1", set(model.STATE_NAMES)),
    ],
)
def test_a_filter_knows_in_which_states_a_job_may_meet_it(where, states):
    parsed = filters.parse(where, NOW)
    assert {state.wire_name for state in parsed.states} == states
    assert parsed.names_state is ("state" in where)


# --- in the verbs -----------------------------------------------------------------------------


def test_bulk_actions_take_a_filter_and_act_in_one_decision(jobs):
    assert jobs.do(c.Requeue(filter=c.JobFilter(where="error contains smtp"), dry_run=True)).count == 1
    assert jobs.states(2, 3) == ["dead", "dead"]
    lsn = jobs.state.lsn
    assert jobs.do(c.Requeue(filter=c.JobFilter(where="error contains smtp or priority = 9"))).count == 1
    assert jobs.state.lsn == lsn + 1
    assert jobs.states(2, 3) == ["ready", "dead"]
    assert jobs.do(c.Cancel(filter=c.JobFilter(queue="web", where="age >= 1s"))).count == 2
    assert jobs.states(4, 5, 6) == ["cancelled", "cancelled", "ready"]


def test_a_filter_that_names_states_takes_the_place_of_the_usual_ones(jobs):
    assert jobs.do(c.Purge(filter=c.JobFilter(where="priority < 100"), dry_run=True)).count == 3
    assert jobs.do(c.Purge(filter=c.JobFilter(where="state = dead and priority < 100"))).count == 2
    assert jobs.states(2, 3) == ["gone", "gone"]


@pytest.mark.parametrize(("kind", "states"), [(c.Cancel, "done"), (c.Purge, "done"), (c.Requeue, "ready")])
def test_a_filter_that_names_only_states_that_the_verb_does_not_take_is_refused(jobs, kind, states):
    with pytest.raises(WrongState, match=f"filter.where means no job in .*: {kind.verb} takes "):
        jobs.do(kind(filter=c.JobFilter(where=f"state = {states}")))


def test_filter_state_and_where_must_both_hold(jobs):
    assert (
        jobs.do(c.Purge(filter=c.JobFilter(state="dead", where="reason = refused"), dry_run=True)).count == 1
    )
    assert jobs.do(c.Purge(filter=c.JobFilter(state="ready", where="state = dead"), dry_run=True)).count == 0


# --- what it costs ----------------------------------------------------------------------------


def test_a_call_ends_after_so_many_steps_and_says_where_to_go_on(core, monkeypatch):
    monkeypatch.setattr(model, "SCAN_JOBS_MAX", 12)
    core.submit_jobs(10, queue="q")
    core.submit_jobs(10, queue="other")
    work = core.state.work
    page = core.do(c.ListJobs(filter=c.JobFilter(where="task = x or task = y")))
    assert (page.jobs, page.cursor) == ([], 5)  # three steps each: the job and two comparisons
    assert core.state.work - work == 12
    page = core.do(c.ListJobs(filter=c.JobFilter(where="state = dead and task = x")))
    assert (page.jobs, page.cursor) == ([], 13)  # one step: the state rules it out before the test
    cursor, ids = 0, []
    while cursor is not None:
        page = core.do(c.ListJobs(filter=c.JobFilter(queue="other", where="task = ''"), cursor=cursor))
        ids += [job.job_id for job in page.jobs]
        cursor = page.cursor
    assert ids == list(range(11, 21))


def test_the_costliest_filter_over_many_jobs_keeps_a_call_bounded(core):
    """A turn of the loop does no more for it than for any other call: others are served in between."""
    core.submit_jobs(10_000, queue="a")
    core.submit_jobs(500, queue="b", metadata={"k": "x" * 4_000})
    dearest = " or ".join(["metadata.k contains y"] * model.FILTER_COMPARISONS_MAX)
    cursor, calls, most = 0, 0, 0
    while cursor is not None:
        work = core.state.work
        swept = core.do(c.Cancel(filter=c.JobFilter(where=dearest), cursor=cursor))
        cursor, calls, most = swept.cursor, calls + 1, max(most, core.state.work - work)
    one_job = 1 + model.FILTER_COMPARISONS_MAX * (1 + 4_000 // 32)
    assert most <= model.SCAN_JOBS_MAX + one_job
    assert calls > 500 * one_job // (model.SCAN_JOBS_MAX + one_job)


def test_searching_a_long_text_costs_steps(core):
    core.submit(max_retries=0)
    token, _ = core.held()
    core.fail(token, 1, error="x" * model.ERROR_TEXT_BYTES_MAX)
    work = core.state.work
    assert found(core, "error contains y or error contains x") == [1]
    assert core.state.work - work == 1 + 2 + 2 * model.ERROR_TEXT_BYTES_MAX // 32


# --- any text ---------------------------------------------------------------------------------

words = st.sampled_from(
    ["state", "dead", "=", "!=", "<", "and", "or", "not", "in", "contains", "(", ")", ",", "age", "1h", "priority",
     "5", "metadata.", "metadata.k", "'t'", '"', "\\", "ä", " "]
)  # fmt: skip


@given(st.lists(words, max_size=40).map(" ".join) | st.text(max_size=60))
def test_any_text_is_a_filter_or_an_invalid_argument_with_a_position(text):
    job = Job(1, model.JobOptions(), b"", JobState.READY, NOW, NOW)
    try:
        parsed = filters.parse(text, NOW)
    except InvalidArgument as error:
        assert error.details["position"] in range(1, len(text) + 2)
    else:
        assert parsed.test(job) in (True, False)
        assert parsed.cost(job) <= model.FILTER_COMPARISONS_MAX
        assert not parsed.test(job) or job.state in parsed.states
