"""When new jobs are refused for want of space, what is said about it, and what one turn may still take."""

import pytest

from jqd.errors import StorageFull
from jqd.server import watermark as watermark_module
from jqd.server.watermark import CLOSE_BYTES, RESERVE_BYTES_MAX, Watermark, reserve_bytes
from jqd.storage.base import Space

LOW = 1_000_000


@pytest.fixture
def said(monkeypatch):
    lines: list[tuple[str, dict[str, object]]] = []
    for level in ("warning", "info"):
        monkeypatch.setattr(
            watermark_module.log, level, lambda event, **fields: lines.append((event, fields))
        )
    return lines


@pytest.fixture
def told():
    return []


@pytest.fixture
def mark(told, said):
    return Watermark(LOW, told.append)


def space(free_bytes: int, *, lost: bool = False) -> Space:
    return Space(free_bytes, reserve_is_lost=lost)


def refusal(mark: Watermark, request_bytes: int = 1, waiting_bytes: int = 0) -> str:
    with pytest.raises(StorageFull) as caught:
        mark.admit(request_bytes, waiting_bytes)
    assert caught.value.retryable and caught.value.retry_after_ms == 1_000
    return str(caught.value)


def test_store_without_a_bound_takes_everything(mark):
    mark.admit(1 << 40, 1 << 40)
    assert not mark.is_full
    assert mark.figures() == {}


def test_submit_is_refused_below_the_mark_and_taken_again_above_it(mark, said, told):
    mark.see(space(LOW + 1_000))
    mark.admit(100, 0)
    mark.admitted_bytes = 0
    mark.see(space(LOW))
    assert refusal(mark) == (
        "1000000 bytes are free on the disk: new jobs need 1000000 (low_space_bytes); the request has 1 bytes"
    )
    mark.see(space(LOW - 1))
    assert mark.figures() == {"disk_free_bytes": LOW - 1, "low_space_bytes": LOW, "storage_full": 1}
    mark.see(space(LOW + 1_000))
    mark.admit(100, 0)
    assert mark.figures()["storage_full"] == 0
    about = {"limit_bytes": LOW, "reserve_is_lost": False}
    assert said == [
        ("storage_full", {"free_bytes": LOW, **about}),
        ("storage_available", {"free_bytes": LOW + 1_000, **about}),
    ]
    assert told == [
        "new jobs are refused: 1000000 bytes are free on the disk: new jobs need 1000000 (low_space_bytes)",
        "",
    ]


def test_lost_reserve_refuses_however_much_is_free(mark, said):
    mark.see(space(1 << 40, lost=True))
    assert "the reserve for a full disk is used up" in refusal(mark)
    assert said[0][1]["reserve_is_lost"] is True
    mark.see(space(1 << 40))
    mark.admit(1, 0)


def test_reserve_that_is_lost_while_new_jobs_are_refused_is_said_too(mark, said, told):
    mark.see(space(LOW))
    for _ in range(2):
        mark.see(space(0, lost=True))
    mark.see(space(0))
    assert [fields["reserve_is_lost"] for _, fields in said] == [False, True]
    assert told[-1].endswith("the reserve for a full disk is used up")


def test_what_waits_and_what_was_admitted_counts_against_what_was_free(mark):
    mark.see(space(LOW + 1_000))
    assert "1000900 bytes are free" in refusal(mark, request_bytes=900, waiting_bytes=100)
    mark.admit(600, 100)
    assert "1000300 bytes are free" in refusal(mark, request_bytes=300, waiting_bytes=100)
    mark.admit(200, 100)
    mark.admitted_bytes = 0
    mark.admit(200, 0)


def test_nobody_has_to_ask_while_there_is_room_for_a_whole_turn(mark):
    mark.see(space(LOW + CLOSE_BYTES + 500))
    assert mark.ask_from_bytes == 500
    mark.see(space(LOW + CLOSE_BYTES))
    assert mark.ask_from_bytes == 0


@pytest.mark.parametrize(("low", "reserve"), [(1 << 20, 1 << 20), (256 << 20, RESERVE_BYTES_MAX)])
def test_small_disk_gets_a_small_reserve(low, reserve):
    assert reserve_bytes(low) == reserve
