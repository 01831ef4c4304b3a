"""The client's end of a connection: bytes and values only."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jqd.core.commands import (
    PROTOCOL_VERSION,
    Ack,
    CancelRequested,
    Get,
    Hello,
    Lease,
    Leased,
    OrderGiven,
    Ping,
    Pong,
    Release,
    Submit,
    Submitted,
    Welcome,
)
from jqd.core.model import ANSWERS_PER_SESSION_MAX, FRAME_BYTES_MAX
from jqd.errors import (
    BadFrame,
    Busy,
    ConnectionLost,
    Draining,
    InvalidArgument,
    JqdError,
    PayloadTooLarge,
    StoreRolledBack,
    Unauthenticated,
    VersionMismatch,
)
from jqd.protocol import connection, framing, messages
from jqd.protocol.connection import ClientConnection, Request, Session, State

WELCOME = Welcome(
    version=PROTOCOL_VERSION, minor=0, server="s", store_id="i", epoch=1, start_lsn=1, engine_ms=0, wall_ms=0,
    limits={},
)  # fmt: skip
PONG = Pong(wall_ms=1, engine_ms=1)


def session() -> Session:
    return Session(Hello(version=PROTOCOL_VERSION, session=bytes(16)))


def reply(request_id: int, body: msgspec.Struct | JqdError, lsn: int = 1) -> bytes:
    if isinstance(body, JqdError):
        return framing.to_frame(messages.encode_error(request_id, lsn, body))
    return framing.to_frame(messages.encode_reply(request_id, lsn, body))


def sent(data: bytes) -> list[messages.Request]:
    """The requests in what a connection wants to send."""
    reader = framing.FrameReader(FRAME_BYTES_MAX)
    reader.feed(data)
    requests = []
    while (frame := reader.next_frame()) is not None:
        requests.append(messages.decode_request(bytes(frame)))
    return requests


def decoded(request: messages.Request) -> Any:
    return messages.decode_command(request)


def ids(data: bytes) -> list[int]:
    return [request.request_id for request in sent(data)]


def greet(one: ClientConnection) -> None:
    assert greet_as(one, WELCOME, 1) == []


def greet_as(one: ClientConnection, welcome: Welcome, lsn: int) -> list[tuple[Request, Any]]:
    """Make a stream and let the server say this; return what it ends."""
    one.open()
    (hello,) = sent(one.data_to_send())
    answers = one.receive_data(reply(hello.request_id, welcome, lsn))
    assert one.state is State.READY
    return answers


def ready(*, in_flight_max: int = 1_024, of: Session | None = None) -> ClientConnection:
    one = ClientConnection(of or session(), in_flight_max=in_flight_max)
    greet(one)
    return one


CANCEL = CancelRequested(items=[(7, [(1, 2), (9, 1)]), (8, [(3, 1)])])


def test_jobs_that_are_to_end_are_told_once_for_all_connections_of_a_session():
    told: list[tuple[int, int]] = []
    shared = Session(session().hello, lambda job_id, token: told.append((job_id, token)))
    one, two = ready(of=shared), ready(of=shared)
    event = framing.to_frame(messages.encode_event("cancel", 5, CANCEL))
    for each in (one, two, one):
        assert each.receive_data(event) == []
    assert told == [(1, 7), (2, 7), (9, 7), (3, 8)]
    newer = CancelRequested(items=[(10, [(1, 1)])])
    two.receive_data(framing.to_frame(messages.encode_event("cancel", 6, newer)))
    assert told[4:] == [(1, 10)]


def test_events_told_are_remembered_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(connection, "_TOLD_MAX", 3)
    told: list[int] = []
    one = Session(session().hello, lambda job_id, token: told.append(job_id))
    one.cancel_requested(CANCEL)
    one.cancel_requested(CANCEL)
    assert told == [1, 2, 9, 3, 1, 2, 9, 3]
    assert len(one._told) == 3


def test_events_that_nobody_wants_or_knows_are_skipped():
    one = ready()
    for name in ("cancel", "of_tomorrow"):
        assert one.receive_data(framing.to_frame(messages.encode_event(name, 5, CANCEL))) == []
    assert one.failure is None


def test_an_order_is_told_as_it_came_by_each_connection():
    told: list[str] = []
    shared = Session(session().hello, on_order=told.append)
    one, two = ready(of=shared), ready(of=shared)
    for each, order in ((one, "quiet"), (two, "quiet"), (one, "of_tomorrow"), (ready(), "stop")):
        event = messages.encode_event("order", 5, OrderGiven(order=order))
        assert each.receive_data(framing.to_frame(event)) == [] and each.failure is None
    assert told == ["quiet", "quiet", "of_tomorrow"]


def test_each_welcome_is_told():
    greeted: list[int] = []
    shared = Session(session().hello, on_greeted=lambda: greeted.append(1))
    one, _ = ready(of=shared), ready(of=shared)
    assert len(greeted) == 2
    one.closed()
    greet(one)
    assert len(greeted) == 3


def test_event_that_cannot_be_read_is_a_failure_of_the_stream():
    one = ready()
    one.receive_data(framing.to_frame(messages.encode((0, "cancel", 5, {"items": 7}))))
    assert isinstance(one.failure, BadFrame)


def lose(answers: Iterable[tuple[Request, object]]) -> list[tuple[Request, bool]]:
    """Which requests ended, and whether their outcome is unknown."""
    ended = []
    for request, error in answers:
        assert isinstance(error, ConnectionLost)
        ended.append((request, error.outcome_unknown))
    return ended


# --- greeting ---------------------------------------------------------------------------------


def test_hello_goes_first_and_alone_and_requests_wait_for_the_welcome():
    one = ClientConnection(session())
    one.request(Ping())
    assert one.data_to_send() == b""
    one.open()
    (hello,) = sent(one.data_to_send())
    assert hello.verb == "hello" and decoded(hello).session == bytes(16)
    assert one.data_to_send() == b""
    one.receive_data(reply(hello.request_id, WELCOME))
    assert one.welcome == WELCOME
    assert [request.verb for request in sent(one.data_to_send())] == ["ping"]


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (Unauthenticated("no key"), Unauthenticated),
        (msgspec.structs.replace(WELCOME, version=9), VersionMismatch),
    ],
)
def test_a_refused_greeting_is_a_failure_of_the_stream(answer, failure):
    one = ClientConnection(session())
    one.open()
    (hello,) = ids(one.data_to_send())
    one.receive_data(reply(hello, answer))
    assert type(one.failure) is failure and one.state is State.GREETING
    one.receive_data(reply(hello, WELCOME))
    assert one.state is State.GREETING, "nothing is read after a failure"
    one.closed()
    greet(one)


def test_a_first_reply_that_is_not_to_hello_is_a_bad_frame():
    one = ClientConnection(session())
    one.open()
    one.data_to_send()
    one.receive_data(reply(77, PONG))
    assert type(one.failure) is BadFrame


def test_what_arrives_without_a_stream_is_dropped():
    one = ClientConnection(session())
    assert one.receive_data(b"\0\0\0\0garbage") == [] and one.failure is None


# --- requests and replies ---------------------------------------------------------------------


@given(st.permutations(range(8)), st.lists(st.integers(1, 400), max_size=20), st.data())
def test_replies_in_any_order_cut_anywhere_reach_their_requests(order, cuts, data):
    one = ready()
    requests = [one.request(Get(job_id=n + 1)) if n % 2 else one.request(Submit()) for n in range(8)]
    one.data_to_send()
    bodies = [Busy(f"no. {n}") if n % 2 else Submitted(job_id=n + 100) for n in range(8)]
    stream = b"".join(reply(requests[n].id, bodies[n]) for n in order)
    answers = []
    position = 0
    for size in [*cuts, len(stream)]:
        answers += one.receive_data(stream[position : position + size])
        position += size
    assert [request for request, _ in answers] == [requests[n] for n in order]
    for (_, body), n in zip(answers, order, strict=True):
        if n % 2:
            assert type(body) is Busy and str(body) == f"no. {n}"
        else:
            assert body == bodies[n]
    assert one.failure is None and not one.wants_stream


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.booleans()), max_size=30))
def test_ids_only_rise_and_belong_to_one_request(steps):
    shared = session()
    ones = [ready(of=shared), ready(of=shared)]
    owner: dict[int, Request] = {}
    for which, count, cut in steps:
        one = ones[which]
        made = [one.request(Ping()) for _ in range(count)]
        newest = shared.newest_id
        one.data_to_send()
        assert [request.id for request in made] == list(range(newest + 1, newest + 1 + count))
        for request in made:
            assert owner.setdefault(request.id, request) is request
        if cut:
            one.closed()
            greet(one)
            one.data_to_send()


def test_the_window_holds_back_what_is_too_much():
    one = ready(in_flight_max=3)
    requests = [one.request(Ping()) for _ in range(5)]
    assert len(sent(one.data_to_send())) == 3
    assert one.data_to_send() == b""
    one.receive_data(reply(requests[1].id, PONG))
    assert len(sent(one.data_to_send())) == 1


def test_much_is_handed_out_in_slices(monkeypatch):
    monkeypatch.setattr(connection, "SLICE_BYTES", 1_000)
    one = ready()
    for _ in range(4):
        one.request(Submit(payload=bytes(600)))
    assert [len(sent(one.data_to_send())) for _ in range(3)] == [2, 2, 0]


def test_a_request_that_does_not_fit_into_a_frame_is_refused():
    one = ready()
    with pytest.raises(PayloadTooLarge, match=f"submit request = .* {FRAME_BYTES_MAX}"):
        one.request(Submit(payload=bytes(FRAME_BYTES_MAX)))
    assert not one.wants_stream


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (Submit(queue="q\udcff"), "^submit: .*surrogates not allowed"),
        (Submit(priority=1 << 70), "^submit: can't serialize"),
    ],
)
def test_what_msgpack_cannot_say_is_refused(command, why):
    one = ready()
    with pytest.raises(InvalidArgument, match=why):
        one.request(command)
    assert not one.wants_stream


def test_what_the_caller_changes_later_does_not_matter():
    one = ready()
    command = Submit(payload=b"before")
    one.request(command)
    command.payload = b"after"
    (request,) = sent(one.data_to_send())
    assert decoded(request).payload == b"before"


def test_a_reply_to_nobody_is_a_bad_frame_and_answers_before_it_count():
    one = ready()
    request = one.request(Ping())
    one.data_to_send()
    answers = one.receive_data(reply(request.id, PONG) * 2)
    assert answers == [(request, PONG)]
    assert type(one.failure) is BadFrame and "answered before" in str(one.failure)


def test_an_unreadable_body_ends_only_its_request():
    one = ready()
    requests = [one.request(Submit()), one.request(Ping())]
    one.data_to_send()
    answers = one.receive_data(reply(requests[0].id, PONG) + reply(requests[1].id, PONG))
    assert lose(answers[:1]) == [(requests[0], True)]
    assert answers[1] == (requests[1], PONG) and one.failure is None


@pytest.mark.parametrize("garbage", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\1\x90"])
def test_garbage_is_a_failure_of_the_stream(garbage):
    one = ready()
    request = one.request(Ping())
    one.data_to_send()
    assert one.receive_data(garbage) == []
    assert isinstance(one.failure, BadFrame | PayloadTooLarge)
    assert one.closed() == [], "what the server garbled is asked again"
    assert one.wants_stream
    greet(one)
    assert ids(one.data_to_send()) == [request.id]


def test_an_unknown_event_is_skipped():
    one = ready()
    one.receive_data(framing.to_frame(messages.encode((0, "job_done", 5, {}))))
    assert one.failure is None


# --- lost streams -----------------------------------------------------------------------------


def test_unanswered_requests_are_sent_again_with_their_ids_before_new_ones():
    one = ready(in_flight_max=3)
    requests = [one.request(Submit()) for _ in range(3)]
    later = one.request(Submit())
    first = one.data_to_send()
    one.receive_data(reply(requests[1].id, Submitted(job_id=1)))
    assert one.closed() == []
    greet(one)
    again = sent(one.data_to_send())
    assert [request.request_id for request in again] == [requests[0].id, requests[2].id, later.id]
    assert again[0].args == sent(first)[0].args
    assert later.id > requests[2].id


def test_a_request_that_broke_every_stream_is_not_sent_again():
    one = ready()
    write, read = one.request(Submit()), one.request(Ping())
    for _ in range(connection.SENDS_MAX - 1):
        one.data_to_send()
        assert one.closed() == []
        greet(one)
    one.data_to_send()
    assert lose(one.closed()) == [(write, True), (read, False)]
    assert not one.wants_stream


def test_what_the_server_may_have_forgotten_is_not_sent_again():
    shared = session()
    one = ready(of=shared)
    write, read = one.request(Ack(items=[])), one.request(Ping())
    one.data_to_send()
    shared.newest_id = write.id + ANSWERS_PER_SESSION_MAX
    assert lose(one.closed()) == [(write, True)]
    greet(one)
    assert ids(one.data_to_send()) == [read.id]


@pytest.mark.parametrize(("asked", "kept"), [(512, True), (513, False)])
def test_a_lease_that_lies_far_back_when_it_is_sent_again_is_asked_anew(asked, kept):
    """Others ask on while its connection waits to be made again: when it breaks the lease is young."""
    shared = session()
    one = ready(of=shared)
    lease, read = one.request(Lease()), one.request(Ping())
    one.data_to_send()
    old = lease.id
    assert one.closed() == []
    greet(one)
    shared.newest_id = old + asked
    assert ids(one.data_to_send()) == [old if kept else old + asked + 1, read.id]


def test_one_answer_before_the_edge_is_still_sent_again():
    shared = session()
    one = ready(of=shared)
    write = one.request(Submit())
    one.data_to_send()
    shared.newest_id = write.id + ANSWERS_PER_SESSION_MAX - 1
    assert one.closed() == [] and one.wants_stream


@pytest.mark.parametrize(("said", "again"), [(BadFrame("out of step"), False), (Draining("bye"), True)])
def test_a_word_about_the_stream_decides_whether_the_same_is_sent_again(said, again):
    one = ready()
    request = one.request(Submit())
    one.data_to_send()
    one.receive_data(reply(0, said))
    assert type(one.failure) is type(said)
    assert lose(one.closed()) == ([] if again else [(request, True)])
    assert one.wants_stream == again


def test_giving_up_tells_what_may_have_happened():
    one = ready(in_flight_max=2)
    write, read, unsent = one.request(Submit()), one.request(Ping()), one.request(Submit())
    one.data_to_send()
    one.closed()
    ended = one.give_up("the server is gone")
    assert lose(ended) == [(write, True), (read, False), (unsent, False)]
    assert str(ended[0][1]) == "submit: the server is gone (outcome unknown)"
    assert str(ended[2][1]) == "submit: the server is gone (nothing was changed)"
    assert not one.wants_stream and one.give_up("again") == []


def test_a_refusal_is_what_unsent_requests_end_in():
    one = ready(in_flight_max=1)
    one.request(Submit())
    unsent = one.request(Submit())
    one.data_to_send()
    refusal = Unauthenticated("key revoked")
    ended = dict(one.give_up("refused", refusal))
    assert ended[unsent] is refusal and len(ended) == 2


# --- withdrawn --------------------------------------------------------------------------------


def test_a_withdrawn_request_is_not_sent_and_not_sent_again():
    one = ready()
    under_way = one.request(Submit())
    one.data_to_send()
    unsent = one.request(Submit())
    for request in (under_way, unsent):
        one.withdraw(request)
    assert not one.wants_stream and one.data_to_send() == b""
    assert one.closed() == []
    greet(one)
    assert one.data_to_send() == b"" and one.give_up("x") == []


def test_a_late_reply_to_a_withdrawn_request_is_handed_out():
    one = ready(in_flight_max=1)
    lease = one.request(Lease())
    one.data_to_send()
    one.withdraw(lease)
    one.request(Release(items=[]))
    assert one.data_to_send() == b"", "it keeps its place in the window"
    late = Leased(token=5, lease_ms_left=1, wall_ms=1, jobs=[])
    assert one.receive_data(reply(lease.id, late)) == [(lease, late)]
    assert len(sent(one.data_to_send())) == 1


# --- a store that went back -------------------------------------------------------------------

# A backup from before LSN 50 was restored, or the same daemon was started again.
RESTORED = msgspec.structs.replace(WELCOME, epoch=9, start_lsn=50)
RESTARTED = msgspec.structs.replace(WELCOME, epoch=9, start_lsn=61)


def seen_60(of: Session) -> ClientConnection:
    """Return a connection whose session was told LSN 60."""
    one = ready(of=of)
    request = one.request(Ping())
    one.data_to_send()
    one.receive_data(reply(request.id, PONG, 60))
    return one


def test_every_request_from_before_ends_in_it_once_and_what_comes_after_is_asked():
    one = seen_60(session())
    write, read = one.request(Submit()), one.request(Ping())
    one.data_to_send()
    unsent = one.request(Submit())
    withdrawn = one.request(Submit())
    one.withdraw(withdrawn)
    assert one.closed() == []
    ended = dict(greet_as(one, RESTORED, 51))
    assert ended.keys() == {write, read, unsent}
    assert {request: error.outcome_unknown for request, error in ended.items()} == {
        write: True, read: False, unsent: False
    }  # fmt: skip
    for error in ended.values():
        assert type(error) is StoreRolledBack and not error.retryable
        assert error.details["seen_lsn"] == 60 and error.details["lsn"] == 51
    assert str(ended[write]) == (
        "submit: the store went back: LSN 60 was there in epoch 1, and epoch 9 began at LSN 50 and is at 51 "
        "(an older backup was restored, or acknowledged work was lost); outcome unknown"
    )
    assert one.data_to_send() == b"" and not one.wants_stream, "nothing of it is sent to the store of today"
    again = one.request(Submit())
    assert ids(one.data_to_send()) == [again.id]
    assert one.receive_data(reply(again.id, Submitted(job_id=1), 52)) == [(again, Submitted(job_id=1))]
    one.closed()
    assert greet_as(one, RESTORED, 53) == []


def test_restart_of_the_same_store_ends_nothing():
    one = seen_60(session())
    request = one.request(Submit())
    one.data_to_send()
    one.closed()
    assert greet_as(one, RESTARTED, 61) == []
    assert ids(one.data_to_send()) == [request.id]


def test_what_one_connection_was_told_counts_for_all_and_ends_what_waits_on_each():
    shared = session()
    other, one = ready(of=shared), seen_60(shared)
    first, second = one.request(Submit()), other.request(Submit())
    one.data_to_send(), other.data_to_send()
    one.closed(), other.closed()
    ((request, error),) = greet_as(other, RESTORED, 50)
    assert request is second and type(error) is StoreRolledBack
    after = one.request(Submit())
    ((request, error),) = greet_as(one, RESTORED, 50)
    assert request is first and type(error) is StoreRolledBack
    assert ids(one.data_to_send()) == [after.id], "whoever asked it had been told"


def test_reply_of_the_run_before_that_comes_late_may_be_what_tells():
    shared = session()
    one, other = ready(of=shared), ready(of=shared)
    other.closed()
    assert greet_as(other, RESTORED, 50) == [], "nothing from LSN 50 on had been heard"
    first, second = one.request(Ping()), one.request(Submit())
    one.data_to_send()
    answers = one.receive_data(reply(first.id, PONG, 55))
    assert answers[0] == (first, PONG)
    ((request, error),) = answers[1:]
    assert request is second and type(error) is StoreRolledBack
    assert error.details["seen_lsn"] == 55 and error.details["epoch"] == 9


def test_parked_request_of_another_connection_ends_when_it_hears_something():
    shared = session()
    other, one = ready(of=shared), seen_60(shared)
    parked, ping = other.request(Lease()), other.request(Ping())
    other.data_to_send()
    one.closed()
    assert greet_as(one, RESTORED, 50) == []
    answers = other.receive_data(reply(ping.id, PONG, 40))
    assert answers[0] == (ping, PONG), "what was answered stays answered"
    ((request, error),) = answers[1:]
    assert request is parked and type(error) is StoreRolledBack
    late = Leased(token=5, lease_ms_left=1, wall_ms=1, jobs=[])
    assert other.receive_data(reply(parked.id, late, 41)) == [(parked, late)]
    assert shared.history.count == 1


def test_welcome_is_compared_with_what_was_known_when_its_hello_went_out():
    shared = session()
    one, other = ready(of=shared), ClientConnection(shared)
    other.open()
    (hello,) = sent(other.data_to_send())
    request = one.request(Ping())
    one.data_to_send()
    one.receive_data(reply(request.id, PONG, 60))  # said after the welcome, and read before it
    other.receive_data(reply(hello.request_id, WELCOME, 40))
    assert other.state is State.READY and shared.rolled_back_since(0) is None


def test_somebody_who_has_heard_of_it_is_not_told_again():
    one = seen_60(shared := session())
    one.closed()
    greet_as(one, RESTORED, 50)
    error = shared.rolled_back_since(0)
    assert error is not None and not error.outcome_unknown and error.details["seen_lsn"] == 60
    assert shared.rolled_back_since(1) is None
