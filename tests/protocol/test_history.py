"""Which welcomes contradict what was heard: none of a store that only goes on, every one of a store that went back."""

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from jqd.core.commands import PROTOCOL_VERSION, Welcome
from jqd.protocol.history import History, Mark, Run

WELCOME = Welcome(
    version=PROTOCOL_VERSION, minor=0, server="s", store_id="a", epoch=0, start_lsn=0, engine_ms=0, wall_ms=0,
    limits={},
)  # fmt: skip


def welcome(epoch: int, start_lsn: int, store_id: str = "a") -> Welcome:
    return structs.replace(WELCOME, epoch=epoch, start_lsn=start_lsn, store_id=store_id)


def met(history: History, epoch: int, start_lsn: int, lsn: int, store_id: str = "a") -> Run:
    """Send a hello and hear its welcome, with nothing in between."""
    return history.welcomed(welcome(epoch, start_lsn, store_id), lsn, history.mark())


def test_first_welcome_is_believed():
    history = History()
    met(history, 7, 100, 120)
    assert history.count == 0 and history.mark() == Mark(history.newest, 120)


def test_restart_begins_behind_what_was_heard():
    history = History()
    met(history, 7, 1, 60)
    met(history, 8, 61, 61)
    assert history.count == 0


@pytest.mark.parametrize("start_lsn", [2, 46, 60])
@pytest.mark.parametrize("later", [0, 1_000])
def test_run_that_begins_at_or_below_what_was_heard_follows_a_restored_backup(start_lsn, later):
    # Also if others have brought it beyond that LSN since.
    history = History()
    met(history, 7, 1, 60)
    met(history, 9, start_lsn, start_lsn + later)
    assert history.count == 1 and history.last is not None
    assert "LSN 60 was there in epoch 7" in history.last.reason
    assert f"epoch 9 began at LSN {start_lsn} and is at {start_lsn + later}" in history.last.reason
    assert history.last.details == {
        "store_id": "a", "epoch": 9, "lsn": start_lsn + later,
        "seen_store_id": "a", "seen_epoch": 7, "seen_lsn": 60,
    }  # fmt: skip


def test_it_is_said_once_and_the_new_position_counts():
    history = History()
    mark = Mark(met(history, 7, 1, 60), 60)
    met(history, 9, 46, 47)
    history.welcomed(welcome(9, 46), 48, mark)  # another connection, whose hello was sent before
    met(history, 9, 46, 49)
    assert history.count == 1
    met(history, 10, 46, 47)  # the same backup, once more
    assert history.count == 2
    met(history, 11, 48, 48)
    assert history.count == 2
    met(history, 12, 48, 48)
    assert history.count == 3


def test_lower_epoch_is_a_rollback_only_if_the_hello_came_after_the_higher_one():
    history = History()
    before = Mark(met(history, 7, 1, 20), 20)
    met(history, 9, 60, 61)
    late = history.welcomed(welcome(7, 1), 59, before)  # it was on its way all the time
    assert history.count == 0 and history.newest is not None and history.newest.epoch == 9
    assert late is before.run
    met(history, 8, 60, 60)
    assert history.count == 1 and history.newest.epoch == 8


def test_welcome_may_be_overtaken_by_replies_of_other_connections():
    history = History()
    run = met(history, 7, 1, 20)
    mark = history.mark()
    run.seen_lsn = 90
    assert history.welcomed(welcome(7, 1), 20, mark) is run
    assert history.count == 0 and run.seen_lsn == 90


def test_same_run_below_what_was_heard_is_another_copy_that_began_in_the_same_second():
    history = History()
    met(history, 7, 1, 20).seen_lsn = 90
    met(history, 7, 1, 50)
    assert history.count == 1 and history.newest is not None and history.newest.seen_lsn == 50
    met(history, 7, 2, 90)
    assert history.count == 2


def test_what_an_earlier_run_had_said_may_be_heard_late_and_tells_as_much():
    history = History()
    old = met(history, 7, 1, 20)
    met(history, 9, 50, 51)
    old.seen_lsn = 49
    history.heard(old)
    assert history.count == 0
    old.seen_lsn = 50
    history.heard(old)
    history.heard(old)
    assert history.count == 1 and history.newest is not None and history.newest.epoch == 9


def test_other_store_is_said_in_other_words():
    history = History()
    mark = Mark(met(history, 7, 1, 60), 60)
    met(history, 9, 5_000, 5_001, "b")
    assert history.count == 1 and history.last is not None
    assert history.last.reason == (
        "another store answers: b, epoch 9, LSN 5001; before it was a, epoch 7, LSN 60"
    )
    history.welcomed(welcome(7, 1), 58, mark)  # late, of the one before
    met(history, 9, 5_000, 5_002, "b")
    assert history.count == 1
    met(history, 7, 1, 70)  # the first one again
    assert history.count == 2


# --- any order ------------------------------------------------------------------------------------


class Link:
    """A connection: what was said on it and not heard yet, in order."""

    def __init__(self, mark: Mark | None, run: int) -> None:
        self.mark = mark
        self.server_run = run  # whoever took the connection
        self.said: list[tuple[Welcome | None, int]] = []
        self.run: Run | None = None


class Told(NamedTuple):
    """A run that went back, and what had been heard when its first hello was sent."""

    run: int
    was_due: bool


class World:
    """A store, its daemon's runs, and one client that hears whatever it is told, late and out of order."""

    def __init__(self) -> None:
        self.history = History()
        self.lsn = 0
        self.epoch = 0
        self.start_lsn = 0
        self.copies: list[int] = []
        self.links: list[Link] = []
        self.restart(0)

    def restart(self, lsn: int) -> None:
        self.lsn = lsn + 1
        self.epoch += 1
        self.start_lsn = self.lsn

    def open(self) -> Link:
        link = Link(self.history.mark(), self.epoch)
        link.said.append((welcome(self.epoch, self.start_lsn), self.lsn))
        self.links.append(link)
        return link

    def hear(self, link: Link) -> None:
        said, lsn = link.said.pop(0)
        if said is not None:
            link.run = self.history.welcomed(said, lsn, link.mark)
            return
        assert link.run is not None
        link.run.seen_lsn = max(link.run.seen_lsn, lsn)
        if link.run is not self.history.newest:
            self.history.heard(link.run)

    def do(self, step: tuple[str, int]) -> None:
        what, number = step
        live = [link for link in self.links if link.server_run == self.epoch]
        audible = [link for link in self.links if link.said]
        match what:
            case "facts":
                self.lsn += number
            case "restart":
                self.restart(self.lsn)
            case "open":
                self.open()
            case "reply" if live:
                live[number % len(live)].said.append((None, self.lsn))
            case "hear" if audible:
                self.hear(audible[number % len(audible)])
            case "copy":
                self.copies.append(self.lsn)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["facts", "restart", "open", "reply", "reply", "hear", "hear", "copy"]),
        st.integers(0, 9),
    ),
    max_size=60,
)


@given(STEPS)
def test_store_that_only_goes_on_is_never_suspected(steps):
    world = World()
    for step in steps:
        world.do(step)
        assert world.history.count == 0


@given(STEPS, st.data())
def test_every_restored_copy_is_noticed_by_the_next_welcome(steps, data: Any):
    world = World()
    for step in steps:
        world.do(step)
    newest = world.history.newest
    older = [lsn for lsn in [*world.copies, 0] if newest is not None and lsn < newest.seen_lsn]
    if not older:
        return
    world.restart(data.draw(st.sampled_from(older)))
    for step in data.draw(STEPS):  # whatever is heard late, and whatever others do meanwhile
        if step[0] not in ("restart", "open"):
            world.do(step)
    link = world.open()
    world.hear(link)
    assert world.history.count == 1
    for each in world.links:
        while each.said:
            world.hear(each)
    assert world.history.count == 1, "it is said once"
