"""Which workers there are: what they say, what they hold, and what they are told to do."""

from typing import Any

import pytest

from jqd.core import commands as c
from jqd.core import model
from jqd.core.workers import Workers
from jqd.errors import InvalidArgument, Overloaded, WorkerNotFound
from tests.support.core import WALL_MS, Core
from tests.support.effort import steps_of

ONE, TWO = b"1" * 16, b"2" * 16
GRACE_MS = model.DISCONNECT_GRACE_MS


@pytest.fixture
def core():
    return Core()


def workers(core: Core, **fields: Any) -> list[c.WorkerInfo]:
    return core.do(c.ListWorkers(**fields)).workers  # type: ignore[no-any-return]


def beat(core: Core, caller: model.Caller, **fields: Any) -> c.Registered:
    return core.do(c.Register(**fields), caller)  # type: ignore[no-any-return]


def orders(core: Core) -> list[str]:
    found = [event.order for _, event in core.engine.events]
    core.engine.events.clear()
    return found


def test_a_worker_is_shown_as_it_says(core):
    caller = core.hello(ONE, worker="mailer")
    said = {"queues": ["a", "b"], "concurrency": 7, "host": "box", "pid": 42, "version": "1.2"}
    reply = beat(core, caller, **said)
    assert (reply.order, reply.beat_ms) == (None, model.WORKER_BEAT_MS)
    core.move(1_500)
    (info,) = workers(core)
    assert {name: getattr(info, name) for name in said} == said
    assert (info.worker_id, info.worker, info.state, info.order) == (
        reply.worker_id,
        "mailer",
        "running",
        None,
    )
    assert (info.leased, info.jobs, info.heard_ms_ago) == (0, [], 1_500)
    assert info.since_wall_ms == info.state_since_wall_ms == WALL_MS


def test_nothing_of_it_is_a_fact(core):
    before = core.state.lsn
    caller = core.hello(ONE)
    beat(core, caller)
    core.do(c.TellWorkers(order="stop", all=True))
    assert core.state.lsn == before
    core.check()


def test_its_id_follows_from_its_session_and_does_not_tell_it(core):
    ids = {beat(core, core.hello(session)).worker_id for session in (ONE, TWO)}
    assert len(ids) == 2 and all(len(each) == 12 for each in ids)
    assert not any(ONE.hex()[:4] in each for each in ids)
    core.restart()
    assert beat(core, core.hello(ONE)).worker_id in ids


def test_a_change_of_state_has_its_own_date(core):
    caller = core.hello(ONE)
    beat(core, caller)
    core.move(1_000)
    beat(core, caller, state="quiet")
    core.move(1_000)
    beat(core, caller, state="quiet", concurrency=3)
    (info,) = workers(core)
    assert (info.since_wall_ms, info.state_since_wall_ms) == (WALL_MS, WALL_MS + 1_000)
    assert (info.state, info.concurrency, info.heard_ms_ago) == ("quiet", 3, 0)


def test_what_it_holds_is_what_the_server_knows(core):
    one, two = core.hello(ONE), core.hello(TWO)
    beat(core, one)
    beat(core, two)
    ids = [core.submit(b"x", priority=n // 4) for n in range(6)]
    core.do(c.Lease(count=2), one)  # the last two, which come first
    core.do(c.Lease(count=1), two)
    token = core.do(c.Lease(count=2), one).token
    core.do(c.Lease(), core.hello(b"3" * 16))  # of nobody who is registered
    core.do(c.Ack(items=[(token, [(ids[1], 1)], None)]))
    shown = {info.leased: info.jobs for info in workers(core)}
    assert shown == {3: [(ids[2], 1), (ids[4], 2)], 1: [(ids[0], 1)]}


def test_of_many_ranges_the_first_ones_are_shown(core, monkeypatch):
    monkeypatch.setattr(model, "WORKER_RANGES_MAX", 2)
    caller = core.hello(ONE)
    beat(core, caller)
    ids = [core.submit(b"x", priority=-(n % 2)) for n in range(8)]
    core.do(c.Lease(count=4), caller)
    (info,) = workers(core)
    assert (info.leased, info.jobs) == (4, [(ids[0], 1), (ids[2], 1)])


def test_pages_hold_every_worker_once_in_order_of_the_ids(core):
    ids = [beat(core, core.hello(bytes([n]) * 16)).worker_id for n in range(5)]
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = core.do(c.ListWorkers(cursor=cursor, limit=2))
        assert len(page.workers) <= 2
        found += [info.worker_id for info in page.workers]
        cursor = page.cursor
    assert found == sorted(ids)


def test_a_page_ends_before_the_limit_of_a_reply(core, monkeypatch):
    monkeypatch.setattr(model, "REPLY_BYTES_MAX", 1_000)
    ids = [beat(core, core.hello(bytes([n]) * 16), host="h" * 128).worker_id for n in range(3)]
    page = core.do(c.ListWorkers())
    assert [info.worker_id for info in page.workers] == sorted(ids)[:1] and page.cursor == min(ids)
    assert [info.worker_id for info in workers(core, cursor=page.cursor)] == sorted(ids)[1:2]


# --- coming and going -------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [True, False])
def test_it_is_gone_when_its_last_connection_has_been_gone_for_the_grace(core, lost):
    caller = core.hello(ONE)
    core.hello(ONE)
    beat(core, caller)
    core.leave(caller)
    core.move(GRACE_MS)
    assert len(workers(core)) == 1, "another connection is there"
    core.leave(caller, lost=lost)
    core.move(GRACE_MS - 1)
    assert len(workers(core)) == 1
    core.move(1)
    assert workers(core) == []


def test_who_comes_back_within_the_grace_is_the_same_worker(core):
    caller = core.hello(ONE)
    beat(core, caller, pid=7)
    core.leave(caller)
    core.move(GRACE_MS - 1)
    core.hello(ONE)
    core.move(GRACE_MS)
    assert [(info.pid, info.since_wall_ms) for info in workers(core)] == [(7, WALL_MS)]


def test_a_connection_that_never_registered_leaves_nothing_behind(core):
    core.leave(core.hello(ONE))
    core.move(GRACE_MS)
    assert workers(core) == [] and not core.engine.workers._leaving


def test_without_a_session_there_is_no_worker(core):
    with pytest.raises(InvalidArgument, match="register: .* session"):
        core.execute(c.Register())


def test_names_of_queues_are_checked(core):
    caller = core.hello(ONE)
    with pytest.raises(InvalidArgument, match="queues = '/etc'"):
        core.execute(c.Register(queues=["mail", "/etc"]), caller)
    assert workers(core) == []


def test_more_workers_than_the_limit_are_refused_until_one_has_gone(core, monkeypatch):
    monkeypatch.setattr(model, "WORKERS_MAX", 1)
    one, two = core.hello(ONE), core.hello(TWO)
    beat(core, one)
    with pytest.raises(Overloaded, match="1 workers are registered: the limit is 1"):
        core.execute(c.Register(), two)
    beat(core, one, state="quiet")  # who is there already is not one more
    core.leave(one)
    core.move(GRACE_MS)
    beat(core, two)
    assert len(core.engine.workers) == 1


def test_a_restart_forgets_them_and_they_say_it_again(core):
    beat(core, core.hello(ONE), state="quiet")
    core.restart()
    assert workers(core) == []
    beat(core, core.hello(ONE), state="quiet")
    assert [info.state for info in workers(core)] == ["quiet"]


# --- orders -----------------------------------------------------------------------------------


def test_an_order_goes_to_each_connection_at_once_and_comes_back_with_each_beat(core):
    caller = core.hello(ONE, worker="mailer")
    core.hello(ONE, worker="mailer")
    worker_id = beat(core, caller).worker_id
    assert core.do(c.TellWorkers(order="quiet", workers=["mailer"])).told == [(worker_id, "mailer")]
    assert orders(core) == ["quiet", "quiet"]
    assert [info.order for info in workers(core)] == ["quiet"]
    assert [beat(core, caller).order for _ in range(2)] == ["quiet", "quiet"]
    assert beat(core, caller, state="quiet").order is None
    assert beat(core, caller, state="quiet").order is None
    assert [info.order for info in workers(core)] == [None]
    assert orders(core) == []


def test_an_order_waits_for_a_worker_that_is_away(core):
    caller = core.hello(ONE)
    worker_id = beat(core, caller).worker_id
    core.leave(caller)
    assert core.do(c.TellWorkers(order="stop", workers=[worker_id])).told == [(worker_id, "")]
    assert orders(core) == []
    assert beat(core, core.hello(ONE)).order == "stop"


@pytest.mark.parametrize(
    ("order", "said", "open_order"),
    [
        ("quiet", "running", "quiet"),
        ("quiet", "quiet", None),
        ("quiet", "stopping", None),
        ("resume", "running", None),
        ("resume", "quiet", "resume"),
        ("resume", "stopping", None),
        ("stop", "running", "stop"),
        ("stop", "quiet", "stop"),
        ("stop", "stopping", None),
    ],
)
def test_an_order_is_open_until_the_worker_is_in_the_state_that_it_was_told(core, order, said, open_order):
    caller = core.hello(ONE)
    beat(core, caller)
    core.do(c.TellWorkers(order=order, all=True))
    assert beat(core, caller, state=said).order == open_order


def test_the_newest_order_counts(core):
    caller = core.hello(ONE)
    beat(core, caller)
    for order in ("quiet", "resume"):
        core.do(c.TellWorkers(order=order, all=True))
    assert orders(core) == ["quiet", "resume"]
    assert beat(core, caller).order is None


@pytest.mark.parametrize(("order", "count"), [("quiet", 1), ("resume", 1), ("stop", 2)])
def test_one_that_stops_is_told_nothing_else(core, order, count):
    beat(core, core.hello(ONE), state="stopping")
    beat(core, core.hello(TWO), state="running")
    assert len(core.do(c.TellWorkers(order=order, all=True)).told) == count


def test_a_label_may_be_that_of_several_and_an_id_is_that_of_one(core):
    ids = [beat(core, core.hello(each, worker="mailer")).worker_id for each in (ONE, TWO)]
    beat(core, core.hello(b"3" * 16, worker="other"))
    both = [(each, "mailer") for each in sorted(ids)]
    assert core.do(c.TellWorkers(order="quiet", workers=["mailer"])).told == both
    assert core.do(c.TellWorkers(order="quiet", workers=[*ids, "mailer"])).told == both
    assert core.do(c.TellWorkers(order="quiet", workers=[ids[0]])).told == [(ids[0], "mailer")]
    assert len(core.do(c.TellWorkers(order="quiet", workers=["other", "mailer"])).told) == 3
    assert len(core.do(c.TellWorkers(order="quiet", workers=["mailer", "other"])).told) == 3
    assert len(core.do(c.TellWorkers(order="quiet", all=True)).told) == 3


def test_a_name_that_nobody_has_is_an_error_and_nobody_is_told(core):
    caller = core.hello(ONE, worker="mailer")
    beat(core, caller)
    with pytest.raises(WorkerNotFound, match="worker 'mailr': none with this id or label is registered"):
        core.execute(c.TellWorkers(order="stop", workers=["mailer", "mailr"]))
    assert orders(core) == [] and beat(core, caller).order is None
    assert core.do(c.TellWorkers(order="quiet", all=True)).told


def test_all_of_nobody_is_nobody(core):
    assert core.do(c.TellWorkers(order="stop", all=True)).told == []


@pytest.mark.parametrize("fields", [{}, {"workers": ["a"], "all": True}])
def test_some_or_all_are_to_be_said(core, fields):
    with pytest.raises(InvalidArgument, match="tell_workers: give workers, or all = true"):
        core.execute(c.TellWorkers(order="stop", **fields))


def test_what_is_looked_at_counts_as_work(core):
    """So that nobody who asks for all workers again and again keeps the others waiting."""
    for n in range(4):
        beat(core, core.hello(bytes([n]) * 16))
    for command in (c.ListWorkers(), c.TellWorkers(order="resume", all=True)):
        before = core.state.work
        core.execute(command)
        assert core.state.work - before >= 4


def test_a_registry_alone_knows_nobody():
    assert len(Workers()) == 0


def test_a_label_that_is_named_a_thousand_times_is_looked_up_once(core):
    for number in range(9):
        beat(core, core.hello(bytes([number]) * 16, worker="same"))

    def tell(*names: str) -> int:
        return steps_of(lambda: core.execute(c.TellWorkers(order="quiet", workers=list(names))))

    assert tell(*["same"] * 1_000) == tell("same")
