"""submit and submit_many."""

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.core.changes import JobsSubmitted
from jqd.core.engine import FailStop
from jqd.errors import InvalidArgument, PayloadTooLarge
from tests.support.core import WALL_MS, Core


def many(core: Core, *groups: c.SubmitGroup) -> list[tuple[int, int, bool]]:
    return core.do(c.SubmitMany(groups=list(groups))).jobs  # type: ignore[no-any-return]


def test_submit_makes_a_ready_job_with_the_documented_defaults(core):
    job_id = core.submit(b"work")
    assert core.get(job_id) == c.JobInfo(
        job_id=1,
        queue="default",
        state="ready",
        attempt=0,
        created_wall_ms=WALL_MS,
        changed_wall_ms=WALL_MS,
        payload_bytes=4,
        payload=b"work",
        encoding="raw",
        priority=0,
        tenant="default",
        delivery="at_least_once",
        max_retries=3,
        max_crashes=5,
        lease_ms=30_000,
    )


def test_every_option_of_a_submit_is_kept(core):
    fields = {
        "queue": "mail",
        "priority": -5,
        "max_retries": 0,
        "max_crashes": 1_000,
        "lease_ms": 86_400_000,
        "encoding": "json",
        "task": "send",
        "metadata": {"to": "you"},
        "tenant": "acme",
        "group": "user-17",
    }
    shown = core.get(core.submit(b"{}", **fields))
    assert {name: getattr(shown, name) for name in fields} == fields


def test_ids_are_dense_from_one(core):
    assert [core.submit() for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group": "g/1"}, f"group = 'g/1': a name must match {model.NAME_PATTERN}"),
        ({"tenant": "a b"}, f"tenant = 'a b': a name must match {model.NAME_PATTERN}"),
        ({"queue": "-x"}, f"queue = '-x': a name must match {model.NAME_PATTERN}"),
        ({"queue": "a/b"}, f"queue = 'a/b': a name must match {model.NAME_PATTERN}"),
        ({"queue": "a\n"}, rf"queue = 'a\n': a name must match {model.NAME_PATTERN}"),
        ({"queue": "ä"}, rf"queue = '\xe4': a name must match {model.NAME_PATTERN}"),
        ({"task": "../etc"}, f"task = '../etc': a name must match {model.NAME_PATTERN}"),
        ({"metadata": {"k": "v" * 4096}}, "metadata = 4097 bytes: the limit is 4096"),
        ({"metadata": {"ä" * 1024: "ö" * 1025}}, "metadata = 4098 bytes: the limit is 4096"),
        ({"delay_ms": 5, "run_at_ms": 6}, "delay_ms = 5 and run_at_ms = 6: give one of them"),
        ({"delay_ms": 0, "run_at_ms": 0}, "delay_ms = 0 and run_at_ms = 0: give one of them"),
        (
            {"delivery": "at_most_once", "max_retries": 1},
            "max_retries = 1: with delivery at_most_once it must be 0",
        ),
    ],
)
def test_bad_field_is_refused_by_name_value_and_limit(core, fields, message):
    lsn = core.state.lsn
    with pytest.raises(InvalidArgument) as single:
        core.submit(**fields)
    assert str(single.value) == message
    good = c.SubmitGroup(payloads=[b""])
    with pytest.raises(InvalidArgument) as bulk:
        many(core, good, c.SubmitGroup(payloads=[b""], **fields))
    assert str(bulk.value) == f"groups[1].{message}"
    assert core.state.lsn == lsn, "nothing has changed"


def test_refused_field_is_refused_again_although_its_neighbours_are_known(core):
    core.submit(queue="q")
    for _ in range(2):
        with pytest.raises(InvalidArgument):
            core.submit(queue="q", delay_ms=1, run_at_ms=1)


def test_metadata_of_the_limit_is_taken(core):
    assert core.get(core.submit(metadata={"k": "v" * 4095})).metadata == {"k": "v" * 4095}


def test_longest_name_is_taken(core):
    name = "a" * 128
    assert core.get(core.submit(queue=name, task=name)).queue == name


def test_payload_over_the_limit_is_refused_and_at_the_limit_taken(core):
    with pytest.raises(PayloadTooLarge) as refusal:
        core.submit(b"x" * (model.PAYLOAD_BYTES_MAX + 1))
    assert str(refusal.value) == "payload = 1048577 bytes: the limit is 1048576"
    assert core.get(core.submit(b"x" * model.PAYLOAD_BYTES_MAX)).payload_bytes == model.PAYLOAD_BYTES_MAX


def test_submit_with_a_delay_waits_for_the_engine_clock(core):
    job_id = core.submit(delay_ms=1_000)
    assert (core.get(job_id).state, core.get(job_id).due_ms_left) == ("delayed", 1_000)
    core.wait(999)
    assert core.states(job_id) == ["delayed"]
    core.wait(1)
    assert core.states(job_id) == ["ready"]


def test_submit_with_a_date_waits_for_the_wall_clock(core):
    job_id = core.submit(run_at_ms=WALL_MS + 1_000)
    shown = core.get(job_id)
    assert (shown.state, shown.run_at_ms, shown.due_ms_left) == ("delayed", WALL_MS + 1_000, None)
    core.wait(999)
    assert core.states(job_id) == ["delayed"]
    core.wait(1)
    assert core.states(job_id) == ["ready"]


@pytest.mark.parametrize("fields", [{"delay_ms": 0}, {"run_at_ms": WALL_MS}, {"run_at_ms": 0}])
def test_time_that_is_now_or_over_means_ready(core, fields):
    assert core.states(core.submit(**fields)) == ["ready"]


def test_at_most_once_without_max_retries_means_none(core):
    assert core.get(core.submit(delivery="at_most_once")).max_retries == 0
    assert core.get(core.submit(delivery="at_most_once", max_retries=0)).max_retries == 0


def test_principal_is_in_the_fact(core):
    core.execute(c.Submit(), model.Caller(principal="key7"))
    (change,) = core.write()
    assert isinstance(change, JobsSubmitted)
    assert change.principal == "key7"


def test_submit_many_answers_with_consecutive_ranges_in_request_order(core):
    groups = [
        c.SubmitGroup(payloads=[b"a", b"b"], queue="x"),
        c.SubmitGroup(payloads=[b"c"], queue="y", delay_ms=10),
        c.SubmitGroup(payloads=[b"d", b"e"], queue="x", priority=1),
    ]
    assert many(core, *groups) == [(1, 2, False), (3, 1, False), (4, 2, False)]
    assert [core.get(job_id).payload for job_id in range(1, 6)] == [b"a", b"b", b"c", b"d", b"e"]
    assert core.states(*range(1, 6)) == ["ready", "ready", "delayed", "ready", "ready"]
    assert core.lease_ids("x", count=9) == [4, 5, 1, 2]


def test_submit_many_with_a_payload_too_large_adds_nothing(core):
    big = b"x" * (model.PAYLOAD_BYTES_MAX + 1)
    with pytest.raises(PayloadTooLarge) as refusal:
        many(core, c.SubmitGroup(payloads=[b""]), c.SubmitGroup(payloads=[b"", big]))
    assert str(refusal.value) == "groups[1].payloads[1] = 1048577 bytes: the limit is 1048576"
    assert core.submit() == 1


def test_submit_many_counts_the_jobs_of_all_groups(core):
    half = c.SubmitGroup(payloads=[b""] * 5_000)
    with pytest.raises(InvalidArgument) as refusal:
        many(core, half, half, c.SubmitGroup(payloads=[b""]))
    assert str(refusal.value) == "groups = 10001 jobs in all: the limit is 10000 a request"
    assert many(core, half, half) == [(1, 5_000, False), (5_001, 5_000, False)]


def test_jobs_with_equal_options_share_them(core):
    core.submit(queue="q", priority=3)
    core.submit(queue="q", priority=3, delay_ms=5)
    core.submit_jobs(2, queue="q", priority=3)
    assert len({id(core.job(job_id).options) for job_id in range(1, 5)}) == 1
    core.submit(queue="q", priority=3, metadata={"a": "b"})
    assert core.job(5).options.metadata == {"a": "b"}


def test_options_are_there_as_long_as_jobs_have_them(core):
    for priority in (1, 2, 1):
        core.submit(priority=priority)
    assert core.job(1).options is core.job(3).options
    before = core.state.memory.bytes
    core.purge(2)
    core.check()
    core.submit(priority=2)
    assert core.state.memory.bytes == before
    core.check()


def test_table_of_known_fields_begins_anew_when_it_is_full(core, monkeypatch):
    monkeypatch.setattr("jqd.core.state._KNOWN_FIELDS_MAX", 2)
    for priority in (1, 2, 3, 1, 1):
        core.submit(priority=priority)
    assert [core.get(job_id).priority for job_id in range(1, 6)] == [1, 2, 3, 1, 1]
    assert core.job(1).options is core.job(4).options is core.job(5).options
    assert len(core.state.options_by_fields) <= 2


# --- runs ---------------------------------------------------------------------------------------


def run_of(*submits: c.Submit) -> list[tuple[int, c.Submit]]:
    return list(enumerate(submits, 1))


def test_neighbours_of_a_run_that_differ_in_their_payload_only_are_one_fact(core):
    alike = [c.Submit(payload=b"%d" % n, queue="mail", priority=3) for n in range(5)]
    other = c.Submit(payload=b"x", queue="mail")
    answers = core.submit_run(run_of(*alike, other, *alike))
    assert answers == [c.Submitted(job_id=n) for n in range(1, 12)]
    facts = [change for change in core.turn() if isinstance(change, JobsSubmitted)]
    assert [(fact.first_id, len(fact.payloads)) for fact in facts] == [(1, 5), (6, 1), (7, 5)]
    assert [core.job(n).payload for n in (1, 5, 6, 7, 11)] == [b"0", b"4", b"x", b"0", b"4"]
    core.check()


def test_in_a_run_each_submit_is_refused_by_itself(core):
    good = c.Submit(payload=b"good")
    large = c.Submit(payload=bytes(model.PAYLOAD_BYTES_MAX + 1))
    run = run_of(good, large, c.Submit(group="g/"), good, c.Submit(queue="/"), large, good)
    code = "payload_too_large"
    assert core.submit_run(run) == [
        c.Submitted(job_id=1),
        code,
        "invalid_argument",
        c.Submitted(job_id=2),
        "invalid_argument",
        code,
        c.Submitted(job_id=3),
    ]
    core.turn()
    assert [core.job(n).payload for n in (1, 2, 3)] == [b"good"] * 3
    core.check()


def test_a_run_of_which_nothing_is_good_changes_nothing(core):
    lsn = core.state.lsn
    assert core.submit_run(run_of(c.Submit(group="g/"), c.Submit(group="g/"))) == ["invalid_argument"] * 2
    assert core.turn() == []
    assert core.state.lsn == lsn


@pytest.mark.parametrize("again", [[3, 4, 1], [1, 1, 2]])
def test_a_request_of_a_run_that_came_before_is_answered_as_before(core, again):
    caller = core.hello(b"s" * 16)
    core.submit_run([(n, c.Submit()) for n in (1, 2, 3)], caller)
    core.turn()
    run = [(10, c.Submit()), *((n, c.Submit()) for n in again)]
    expected = {1: 1, 2: 2, 3: 3, 10: 4, 4: 5}
    assert core.submit_run(run, caller) == [c.Submitted(job_id=expected[n]) for n, _ in run]
    core.turn()
    core.check()


def test_a_request_of_a_run_that_came_earlier_in_the_turn_is_answered_as_before(core):
    caller = core.hello(b"s" * 16)
    core.turn()
    core.submit_run([(5, c.Submit()), (6, c.Submit())], caller)
    assert core.submit_run([(7, c.Submit()), (6, c.Submit())], caller) == [
        c.Submitted(job_id=3),
        c.Submitted(job_id=2),
    ]
    core.turn()


def test_a_request_that_comes_twice_in_one_run_is_carried_out_once(core):
    caller = core.hello(b"s" * 16)
    run = [(7, c.Submit()), (8, c.Submit()), (7, c.Submit())]
    assert core.submit_run(run, caller) == [c.Submitted(job_id=n) for n in (1, 2, 1)]
    core.turn()
    assert core.state.pages.next_id == 3


def test_a_request_of_a_run_too_old_to_be_remembered_is_refused_alone(core, monkeypatch):
    monkeypatch.setattr(model, "ANSWERS_PER_SESSION_MAX", 2)
    caller = core.hello(b"s" * 16)
    core.submit_run([(n, c.Submit()) for n in range(1, 6)], caller)
    core.turn()
    assert core.submit_run([(2, c.Submit()), (6, c.Submit())], caller) == [
        "position_lost",
        c.Submitted(job_id=6),
    ]
    core.turn()


def test_a_run_that_fails_after_its_first_change_ends_the_process(monkeypatch):
    core = Core()

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(JobsSubmitted, "apply", broken)
    with pytest.raises(FailStop):
        core.submit_run(run_of(c.Submit(), c.Submit()))
