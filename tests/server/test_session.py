"""A session with a real engine and a house of cardboard: bytes in, bytes out, no socket and no clock."""

import pytest

from jqd.core import commands, engine, model, submitting
from jqd.core.changes import JobsSubmitted
from jqd.core.engine import Engine, FailStop
from jqd.core.model import Now
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.errors import Busy, Draining, JqdError, StorageFull
from jqd.server import session as session_module
from jqd.server.session import TURN_WORK_MAX, Output, Session
from tests.support.wire import Answer, answers_in, frame, framed, hello, request

NOW = Now(1_000, 1_700_000_000_000)
SESSION = b"s" * 16
SERVER = Identity(server="jqd test", store_id="0" * 32)
# Bytes whose replies show every kind of request: taken, parked never, refused, unknown.
CONVERSATION = b"".join(
    [
        hello(1, session=SESSION, worker="w"),
        request(2, "submit", payload=b"one", queue="mail"),
        request(3, "submit_many", groups=[{"queue": "mail", "payloads": [b"two", b"three"]}]),
        request(4, "lease", queues=["mail"], count=2),
        request(5, "no_such_verb"),
        request(6, "submit", priority=1 << 40),
        request(7, "list"),
        request(8, "stats"),
        request(2, "submit", payload=b"one", queue="mail"),
        request(9, "get", job_id=77),
    ]
)


class House:
    """What a session needs from the daemon around it, and the turns that the driver would make."""

    def __init__(self) -> None:
        self.engine = Engine(State(), SERVER)
        self.engine.start(NOW, "0")
        self.engine.take_batch()
        self.output_bytes_max = 1 << 30
        self.refusals: dict[type, JqdError] = {}
        self.asked: list[tuple[str, int]] = []
        self.reports: list[tuple[str, Exception]] = []
        self.snapshots = 0
        self.unsent_grants: dict[int, int] = {}

    @property
    def refusing(self):
        return bool(self.refusals)

    def refuse(self, command, request_bytes):
        self.asked.append((command.verb, request_bytes))
        if type(command) in self.refusals:
            raise self.refusals[type(command)]

    def make_snapshot(self):
        self.snapshots += 1

    def process_figures(self):
        return {"connections": 7}

    def report(self, event, error):
        self.reports.append((event, error))

    def peer(self, **args: object) -> "Peer":
        peer = Peer(self)
        peer.say(hello(1, **args))
        assert peer.hear()[0].status == "ok"
        return peer

    def end_turn(self) -> None:
        """Let time do what is due, and hand parked answers to their sessions."""
        self.engine.finish_turn(NOW)
        for ticket, request_id, answer in self.engine.outbox:
            assert isinstance(ticket, Peer)
            ticket.session.answer(request_id, answer)
        self.engine.outbox.clear()
        for ticket, body in self.engine.events:
            assert isinstance(ticket, Peer)
            ticket.session.tell(commands.EVENT_NAMES[type(body)], body)
        self.engine.events.clear()
        self.engine.take_batch()


class Peer:
    """The other end of one session. It is the ticket of its parked requests."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.session = Session(house, self)

    def say(self, data: bytes) -> None:
        self.session.receive(data, NOW)

    def output(self) -> Output:
        self.house.end_turn()
        return self.session.take_output()

    def hear(self) -> list[Answer]:
        """End the turn and take what was said to the socket."""
        output = self.output()
        self.session.output_sent(output)
        return answers_in(output.data)

    def ask(self, *requests: bytes) -> list[Answer]:
        self.say(b"".join(requests))
        return self.hear()


@pytest.fixture
def house():
    return House()


@pytest.fixture
def peer(house):
    return house.peer()


# --- handshake --------------------------------------------------------------------------------


def test_hello_is_answered_with_who_the_server_is(house):
    peer = Peer(house)
    (answer,) = peer.ask(hello(5))
    assert (answer.request_id, answer.status) == (5, "ok")
    assert answer.body["server"] == "jqd test"
    assert answer.body["limits"]["in_flight"] == 1_024
    assert peer.session.greeted and not peer.session.closing


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (request(3, "submit", payload=b"x"), "bad_frame"),
        (request(3, "ping"), "bad_frame"),
        (request(3, "no_such_verb"), "unknown_command"),
        (hello(3, version=99), "version_mismatch"),
        (hello(3, version="1"), "invalid_argument"),
        (hello(3, key="jqd_x"), "unauthenticated"),
        (hello(3, session=b"short"), "invalid_argument"),
        (hello(3, surprise=1), "invalid_argument"),
        (hello(3, on_disconnect="release"), "invalid_argument"),
        (hello(3, session=SESSION, on_disconnect="other"), "invalid_argument"),
    ],
)
def test_anything_but_a_good_hello_first_ends_the_connection(house, said, code):
    peer = Peer(house)
    (answer,) = peer.ask(said + request(4, "ping"))
    assert (answer.request_id, answer.status) == (3, code)
    assert peer.session.closing and not peer.session.greeted
    peer.say(hello(5))
    assert peer.hear() == []


def test_second_hello_is_refused_and_the_connection_goes_on(peer):
    first, second = peer.ask(hello(2), request(3, "ping"))
    assert (first.request_id, first.status) == (2, "invalid_argument")
    assert (second.request_id, second.status) == (3, "ok")


def test_hello_is_refused_when_the_sessions_are_full(house, monkeypatch):
    monkeypatch.setattr(model, "SESSIONS_MAX", 1)
    house.peer(session=b"a" * 16).ask(request(2, "submit", payload=b"x"))
    peer = Peer(house)
    (answer,) = peer.ask(hello(2, session=SESSION))
    assert answer.status == "overloaded" and answer.body["retryable"]
    assert peer.session.closing


# --- bytes that are no requests ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "payload_too_large", "1195725856 bytes: the limit is 4096"),
        (b"\x00\x00\x10\x01", "payload_too_large", "4097 bytes: the limit is 4096"),
        (b"\x7f\xff\xff\xff", "payload_too_large", "2147483647 bytes: the limit is 4096"),
        (b"\x00\x00\x00\x00", "bad_frame", "length = 0"),
        (framed(b"\xc1garbage"), "bad_frame", "no request"),
        (frame({"verb": "hello"}), "bad_frame", "no request"),
        (frame([1, "hello"]), "bad_frame", "no request"),
        (frame([1, "hello", {}, 4]), "bad_frame", "no request"),
        (frame([0, "hello", {"version": 1}]), "bad_frame", ">= 1"),
        (frame([-1, "hello", {"version": 1}]), "bad_frame", ">= 1"),
        (framed(b"\x91" * 4_000), "bad_frame", "no request"),
    ],
)
def test_garbage_before_hello_is_answered_once_and_ends_the_connection(house, said, code, words):
    peer = Peer(house)
    (answer,) = peer.ask(said + hello())
    assert (answer.request_id, answer.status) == (0, code)
    assert words in answer.body["message"]
    assert peer.session.closing and not peer.session.unfinished


def test_frame_limit_is_raised_by_hello(peer):
    (answer,) = peer.ask(request(2, "submit", payload=b"x" * 100_000))
    assert answer.status == "ok"
    (answer,) = peer.ask(b"\x7f\xff\xff\xff")
    assert answer.status == "payload_too_large"
    assert f"2147483647 bytes: the limit is {16 << 20}" in answer.body["message"]
    assert peer.session.closing


def test_requests_before_garbage_are_carried_out_and_answered_first(house, peer):
    answers = peer.ask(request(2, "submit", payload=b"x"), b"\x00\x00\x00\x00", request(3, "ping"))
    assert [(each.request_id, each.status) for each in answers] == [(2, "ok"), (0, "bad_frame")]
    assert house.engine.state.pages.next_id == 2


def test_parked_lease_does_not_keep_a_refused_connection(house, peer):
    peer.ask(request(2, "lease", wait_ms=30_000))
    assert not peer.session.has_ended
    peer.say(b"\x00\x00\x00\x00")
    assert not peer.session.has_ended
    assert [each.status for each in peer.hear()] == ["bad_frame"]
    assert peer.session.has_ended
    peer.session.close(NOW)
    house.peer().ask(request(2, "submit", payload=b"x"))
    assert house.engine.state.job(1).attempt == 0


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (request(2, "no_such_verb"), "unknown_command"),
        (request(2, "submit", surprise=1), "invalid_argument"),
        (request(2, "submit", priority="high"), "invalid_argument"),
        (frame([2, "submit", 3]), "invalid_argument"),
        (request(2, "get", job_id=9), "job_not_found"),
        (request(2, "submit", payload=b"x" * (model.PAYLOAD_BYTES_MAX + 1)), "payload_too_large"),
    ],
)
def test_refused_request_leaves_the_connection_alone(peer, said, code):
    first, second = peer.ask(said, request(3, "ping"))
    assert (first.request_id, first.status) == (2, code)
    assert (second.request_id, second.status) == (3, "ok")
    assert peer.session.in_flight == 0


# --- however the network cuts -----------------------------------------------------------------


def replies(*parts: bytes) -> bytes:
    peer = Peer(House())
    for part in parts:
        peer.say(part)
    output = peer.output()
    assert output.replies == 10
    return output.data


def test_conversation_cut_at_any_byte_has_the_same_replies():
    whole = replies(CONVERSATION)
    for at in range(1, len(CONVERSATION)):
        assert replies(CONVERSATION[:at], CONVERSATION[at:]) == whole


def test_conversation_byte_by_byte_has_the_same_replies():
    assert replies(*(bytes([each]) for each in CONVERSATION)) == replies(CONVERSATION)


def test_frame_cut_at_any_byte_changes_nothing():
    said = request(2, "submit", payload=b"payload")
    for at in range(len(said)):
        house = House()
        peer = house.peer()
        peer.say(said[:at])
        assert peer.hear() == []
        peer.session.close(NOW)
        assert house.engine.state.pages.next_id == 1


# --- back-pressure ----------------------------------------------------------------------------


def test_in_flight_limit_stops_and_goes_on(peer):
    peer.say(b"".join(request(number, "ping") for number in range(2, 2_002)))
    assert peer.session.in_flight == 1_024
    assert peer.session.unfinished and not peer.session.has_room
    output = peer.output()
    assert len(answers_in(output.data)) == 1_024
    peer.session.resume(NOW)
    assert not peer.session.has_output, "unsent replies are in flight"
    peer.session.output_sent(output)
    assert peer.session.in_flight == 0 and peer.session.has_room
    peer.session.resume(NOW)
    assert [each.request_id for each in peer.hear()] == list(range(1_026, 2_002))
    assert not peer.session.unfinished


def test_parked_lease_is_in_flight(peer):
    peer.say(
        request(2, "lease", wait_ms=1_000) + b"".join(request(number, "ping") for number in range(3, 1_500))
    )
    assert len(peer.hear()) == 1_023
    assert peer.session.in_flight == 1


def test_session_is_told_of_held_jobs_that_are_to_end(house):
    worker, other = house.peer(session=b"w" * 16), house.peer()
    worker.ask(request(2, "submit", payload=b"x"))
    (leased,) = worker.ask(request(3, "lease"))
    other.ask(request(2, "cancel", ids=[[1, 1]], running=True))
    house.end_turn()
    in_flight = worker.session.in_flight
    (event,) = worker.hear()
    assert event[:2] == (0, "cancel") and event.lsn == house.engine.state.lsn
    assert event.body == {"items": [[leased.body["token"], [[1, 1]]]]}
    assert worker.session.in_flight == in_flight == 0
    (extended,) = worker.ask(request(4, "extend", items=[[leased.body["token"], [[1, 1]]]]))
    assert extended.body["cancel_marked"] == [[1, 1]]


def test_full_pipe_does_not_keep_another_waiting(house, peer):
    big = [{"payloads": [b""] * 10_000}]
    for number in range(2, 12):
        assert peer.ask(request(number, "submit_many", groups=big))[0].status == "ok"
    greedy, modest = house.peer(), house.peer()
    work = house.engine.state.work
    greedy.say(b"".join(request(number, "lease", count=10_000) for number in range(2, 22)))
    # One request may pass the limit, none may begin behind it.
    assert TURN_WORK_MAX <= house.engine.state.work - work <= TURN_WORK_MAX + 2 * 10_000
    assert greedy.session.unfinished
    assert modest.ask(request(2, "ping"))[0].status == "ok"
    turns = 1
    while greedy.session.unfinished:
        greedy.hear()
        greedy.session.resume(NOW)
        turns += 1
    assert turns >= 10
    assert greedy.session.in_flight == len(greedy.hear())


def test_jobs_that_have_nothing_in_common_are_more_work_than_their_number(house, peer):
    """A thousand of them are worth 9,000 in a row: two such requests go into a turn, and the others are served then."""
    count = 1_000
    bystander = house.peer()
    numbers = iter(range(2, 1_000_000))

    def turns_of(verb: str, **args: object) -> list[int]:
        """Let one peer ask it six times at once; return how many were answered in each turn."""
        greedy = house.peer()
        greedy.say(b"".join(request(next(numbers), verb, **args) for _ in range(6)))
        turns = []
        while answers := greedy.hear():
            assert {each.status for each in answers} == {"ok"}
            turns.append(len(answers))
            assert bystander.ask(request(next(numbers), "ping"))[0].status == "ok"
            greedy.session.resume(NOW)
        house.end_turn()
        return turns

    groups = [{"payloads": [b""], "tenant": f"t{n}"} for n in range(count)]
    peer.ask(request(next(numbers), "submit_many", groups=groups))
    held = []
    for _ in range(count):
        (leased,) = peer.ask(request(next(numbers), "lease"))
        held.append([leased.body["token"], [[leased.body["jobs"][0]["job_id"], 1]]])
    assert turns_of("extend", items=held) == [2, 2, 2]
    assert turns_of("extend", items=held, progress_percent=5) == [1] * 6
    assert turns_of("ack", items=[[*item, b"done"] for item in held]) == [2, 4]  # five of them find nothing
    groups = [{"payloads": [b""], "group": f"{n}"} for n in range(count)]
    assert turns_of("submit_many", groups=groups) == [2, 4]  # what comes along comes with the first one
    assert turns_of("cancel", ids=[[count + 1, count]]) == [1, 5]


def test_reads_that_look_at_many_jobs_count_as_work(house, peer):
    peer.ask(request(2, "submit_many", groups=[{"payloads": [b""] * 10_000}]))
    peer.say(b"".join(request(number, "list", filter={"state": "dead"}) for number in range(3, 13)))
    assert peer.session.unfinished
    assert len(peer.hear()) == 1


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("ack", {"items": [[5, [[1, 10_000]], None]]}),
        ("extend", {"items": [[5, [[90_001, 10_000]]]]}),
        ("cancel", {"ids": [[90_001, 10_000]]}),
        ("requeue", {"ids": [[1, 10_000]]}),
        ("purge", {"ids": [[1, 10_000]], "dry_run": True}),
        ("queues", {}),
        ("stats", {}),
    ],
)
def test_request_that_changes_nothing_counts_what_it_looks_at_as_work(house, peer, verb, args):
    groups = [{"queue": f"q{number}", "payloads": [b""]} for number in range(10_000)]
    peer.ask(request(2, "submit_many", groups=groups))
    peer.say(b"".join(request(number, verb, **args) for number in range(3, 13)))
    assert peer.session.unfinished
    assert len(peer.hear()) == 1


def test_lease_asked_again_counts_what_it_looks_at_as_work(house):
    peer = house.peer(session=b"s" * 16)
    peer.ask(request(2, "submit_many", groups=[{"payloads": [b""] * 10_000}]))
    (leased,) = peer.ask(request(3, "lease", count=10_000))
    peer.ask(request(4, "ack", items=[[leased.body["token"], [[1, 9_999]], None]]))
    peer.say(request(3, "lease", count=10_000) * 10)
    assert peer.session.unfinished
    (again,) = peer.hear()
    assert [job["job_id"] for job in again.body["jobs"]] == [10_000]


def test_unsent_output_limit_stops_and_goes_on(house, peer):
    house.output_bytes_max = 64 << 10
    peer.ask(request(2, "submit", payload=b"x" * 50_000))
    peer.say(b"".join(request(number, "get", job_id=1) for number in range(3, 8)))
    output = peer.output()
    assert output.replies == 2
    assert peer.session.unfinished and not peer.session.has_room
    peer.session.resume(NOW)
    assert not peer.session.has_output
    peer.session.output_sent(output)
    assert peer.session.unsent_bytes == 0
    peer.session.resume(NOW)
    assert len(peer.hear()) == 2


# --- failures ---------------------------------------------------------------------------------


def test_failure_before_the_first_change_is_internal_and_changes_nothing(house, peer, monkeypatch):
    def broken(command, state, caller, now, emit):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setitem(engine.DECISIONS, commands.Submit, broken)
    lsn = house.engine.state.lsn
    first, second = peer.ask(request(2, "submit", payload=b"x"), request(3, "ping"))
    assert first.status == "internal" and "secret" not in first.body["message"]
    assert second.status == "ok"
    assert house.engine.state.lsn == lsn
    ((event, error),) = house.reports
    assert event == "command_failed" and isinstance(error, ZeroDivisionError)


def test_failure_after_the_first_change_is_not_survived(peer, monkeypatch):
    def broken(command, state, caller, now, emit):
        submitting.submit(command, state, caller, now, emit)
        raise ZeroDivisionError

    monkeypatch.setitem(engine.DECISIONS, commands.Submit, broken)
    with pytest.raises(FailStop):
        peer.say(request(2, "submit", payload=b"x"))


@pytest.mark.parametrize(
    "error", [Busy("full", retry_after_ms=100), Draining("stopping", retry_after_ms=1_000)]
)
def test_request_that_the_house_refuses_changes_nothing(house, peer, error):
    house.refusals[commands.Submit] = error
    first, second = peer.ask(request(2, "submit", payload=b"x"), request(3, "ping"))
    assert first.status == error.code and first.body["retryable"]
    assert first.body["retry_after_ms"] == error.retry_after_ms
    assert second.status == "ok"
    assert house.engine.state.pages.next_id == 1
    assert peer.session.in_flight == 0


def test_refused_request_is_carried_out_when_it_is_sent_again(house):
    peer = house.peer(session=SESSION)
    house.refusals[commands.Submit] = Busy("full")
    assert peer.ask(request(2, "submit", payload=b"x"))[0].status == "busy"
    house.refusals.clear()
    assert peer.ask(request(2, "submit", payload=b"x"))[0].body == {"job_id": 1}


def test_retry_of_what_went_through_is_answered_and_not_refused(house):
    peer = house.peer(session=SESSION)
    submit = request(2, "submit", payload=b"x")
    lease = request(3, "lease")
    said = peer.ask(submit, lease)
    house.end_turn()
    for command in (commands.Submit, commands.Lease):
        house.refusals[command] = StorageFull("full")
    # Over a new connection, as after a lost one, and before that in the very turn of the first try.
    again = house.peer(session=SESSION)
    answers = again.ask(submit, lease, request(4, "submit"), submit, request(5, "submit"))
    assert [each.status for each in answers] == ["ok", "ok", "storage_full", "ok", "storage_full"]
    assert [answers[0].body, answers[3].body] == [said[0].body] * 2
    assert answers[1].body["token"] == said[1].body["token"]
    assert house.engine.state.pages.next_id == 2


def test_retry_in_the_same_turn_is_answered_and_not_refused(house):
    peer = house.peer(session=SESSION)
    peer.say(request(2, "submit", payload=b"x"))
    house.refusals[commands.Submit] = Busy("full")
    peer.say(request(2, "submit", payload=b"x") + request(3, "submit"))
    assert [each.status for each in peer.hear()] == ["ok", "ok", "busy"]
    assert house.engine.state.pages.next_id == 2


def test_every_submit_of_a_run_is_asked_about_with_its_size(house, peer):
    house.refusals[commands.Purge] = Busy("full")
    said = [request(number, "submit", payload=bytes(number)) for number in range(2, 6)]
    assert [each.status for each in peer.ask(*said)] == ["ok"] * 4
    assert house.asked == [("submit", len(frame) - 4) for frame in said]


def test_stats_has_the_figures_of_the_house(peer):
    (answer,) = peer.ask(request(2, "stats"))
    assert answer.body["process"] == {"connections": 7}


# --- parked leases ----------------------------------------------------------------------------


def test_parked_lease_is_answered_when_a_job_comes(house, peer):
    assert peer.ask(request(2, "lease", wait_ms=1_000)) == []
    house.peer().ask(request(2, "submit", payload=b"x"))
    output = peer.output()
    (answer,) = answers_in(output.data)
    assert answer.request_id == 2
    assert output.tokens == [answer.body["token"]]
    assert peer.session.in_flight == 1
    peer.session.output_sent(output)
    assert peer.session.in_flight == 0


def test_second_parked_lease_on_a_connection_is_refused(peer):
    (answer,) = peer.ask(request(2, "lease", wait_ms=1_000), request(3, "lease", wait_ms=1_000))
    assert (answer.request_id, answer.status) == (3, "invalid_argument")


def test_closed_session_gives_its_parked_lease_up(house, peer):
    peer.ask(request(2, "lease", wait_ms=1_000))
    peer.session.close(NOW)
    house.peer().ask(request(2, "submit", payload=b"x"))
    assert not peer.session.has_output
    assert house.engine.state.job(1).attempt == 0


def test_parked_answer_says_an_error(peer):
    peer.ask(request(2, "lease", wait_ms=1_000))
    peer.session.answer(2, Draining("stopping"))
    (answer,) = peer.hear()
    assert (answer.request_id, answer.status) == (2, "draining")


# --- replies that never reached their socket ----------------------------------------------------


def lost(peer: Peer) -> None:
    """Let the socket be closed before this turn's replies reach it."""
    output = peer.output()
    peer.session.close(NOW)
    peer.session.output_lost(output, NOW)
    peer.house.end_turn()


def test_lease_whose_reply_is_lost_is_taken_back_without_an_attempt(house, peer):
    peer.ask(request(2, "submit", payload=b"x"))
    (first,) = peer.ask(request(3, "lease"))
    peer.ask(request(4, "release", items=[[first.body["token"], [[1, 1]]]]))
    peer.say(request(5, "lease"))
    lost(peer)
    (answer,) = house.peer().ask(request(2, "lease"))
    assert answer.body["jobs"][0]["attempt"] == 1
    assert answer.body["token"] == first.body["token"] + 2, "the token that was lost is not used again"


def test_parked_lease_whose_reply_is_lost_is_taken_back(house, peer):
    peer.ask(request(2, "lease", wait_ms=1_000))
    house.peer().ask(request(2, "submit", payload=b"x"))
    lost(peer)
    (answer,) = house.peer().ask(request(2, "lease"))
    assert [job["attempt"] for job in answer.body["jobs"]] == [1]


def test_only_the_lost_lease_is_taken_back(house, peer):
    peer.ask(request(2, "submit_many", groups=[{"payloads": [b"", b""]}]))
    peer.ask(request(3, "lease"))
    peer.say(request(4, "lease"))
    lost(peer)
    (answer,) = house.peer().ask(request(2, "lease", count=10))
    assert [job["job_id"] for job in answer.body["jobs"]] == [2]


def test_lost_second_copy_of_a_reply_takes_nothing_back(house, peer):
    peer.ask(request(2, "submit", payload=b"x"))
    (first,) = house.peer(session=SESSION).ask(request(3, "lease"))
    again = house.peer(session=SESSION)
    again.say(request(3, "lease"))
    lost(again)
    (verdict,) = peer.ask(request(4, "ack", items=[[first.body["token"], [[1, 1]], None]]))
    assert verdict.body["results"] == [[1, 1, "ok"]]


def test_lost_first_copy_takes_nothing_back_that_was_sent_again(house, peer):
    peer.ask(request(2, "submit", payload=b"x"))
    first = house.peer(session=SESSION)
    first.say(request(3, "lease"))  # its reply still waits for the disk when the connection breaks,
    output = first.output()
    first.session.close(NOW)
    again = house.peer(session=SESSION)
    (answer,) = again.ask(request(3, "lease"))  # and the client has asked again before the disk is done
    first.session.output_lost(output, NOW)
    house.end_turn()
    assert [job["job_id"] for job in answer.body["jobs"]] == [1]
    (verdict,) = again.ask(request(4, "ack", items=[[answer.body["token"], [[1, 1]], None]]))
    assert verdict.body["results"] == [[1, 1, "ok"]]


def test_both_copies_lost_takes_the_lease_back(house, peer):
    peer.ask(request(2, "submit", payload=b"x"))
    first, again = house.peer(session=SESSION), house.peer(session=SESSION)
    first.say(request(3, "lease"))
    output = first.output()
    first.session.close(NOW)
    again.say(request(3, "lease"))
    second = again.output()
    again.session.close(NOW)
    first.session.output_lost(output, NOW)
    again.session.output_lost(second, NOW)
    house.end_turn()
    (answer,) = house.peer().ask(request(2, "lease"))
    assert [job["attempt"] for job in answer.body["jobs"]] == [1]


def test_lost_reply_of_a_submit_is_answered_again_to_the_same_session(house):
    first = house.peer(session=SESSION)
    first.say(request(2, "submit", payload=b"x"))
    lost(first)
    (answer,) = house.peer(session=SESSION).ask(request(2, "submit", payload=b"x"))
    assert answer.body == {"job_id": 1}
    assert house.engine.state.pages.next_id == 2


def test_output_counts_are_exact(peer):
    peer.say(request(2, "ping") + request(3, "ping"))
    output = peer.session.take_output()
    assert (output.replies, output.tokens, peer.session.in_flight) == (2, [], 2)
    assert peer.session.unsent_bytes == len(output.data)
    assert not peer.session.has_output
    peer.session.output_sent(output)
    assert (peer.session.in_flight, peer.session.unsent_bytes) == (0, 0)


# --- the peer closes its sending side ---------------------------------------------------------


def test_requests_sent_before_the_sending_side_was_closed_are_answered(peer):
    peer.say(request(2, "submit", payload=b"x"))
    peer.session.end_of_requests()
    assert not peer.session.has_ended
    assert [answer.request_id for answer in peer.hear()] == [2]
    assert peer.session.has_ended


def test_requests_kept_for_later_are_carried_out_after_the_sending_side_was_closed(peer, monkeypatch):
    monkeypatch.setattr(model, "IN_FLIGHT_MAX", 2)
    peer.say(b"".join(request(number, "ping") for number in (2, 3, 4)))
    peer.session.end_of_requests()
    assert [answer.request_id for answer in peer.hear()] == [2, 3]
    assert not peer.session.has_ended
    peer.session.resume(NOW)
    assert [answer.request_id for answer in peer.hear()] == [4]
    assert peer.session.has_ended


def test_parked_lease_ends_unanswered_when_the_sending_side_is_closed(house, peer):
    peer.say(request(2, "lease", wait_ms=1_000))
    assert peer.hear() == []
    peer.session.end_of_requests()
    assert peer.session.in_flight == 0 and peer.session.has_ended
    house.peer().ask(request(2, "submit", payload=b"x"))
    assert house.engine.state.ready_ids("default", 1) == [1]


def test_parked_wait_is_answered_before_the_end_when_the_sending_side_is_closed(house, peer):
    house.peer().ask(request(2, "submit", payload=b"x"))
    peer.say(request(2, "wait", ids=[[1, 1]], wait_ms=30_000))
    assert peer.hear() == []
    peer.session.end_of_requests()
    assert not peer.session.has_ended
    house.peer().say(request(2, "cancel", ids=[[1, 1]]))
    (answer,) = peer.hear()
    assert [job["state"] for job in answer.body["jobs"]] == ["cancelled"]
    assert peer.session.in_flight == 0 and peer.session.has_ended


def test_parked_waits_have_no_jobs_while_too_much_is_unread(house, peer):
    house.output_bytes_max = 100
    house.peer().ask(request(2, "submit", payload=b"x"))
    peer.say(b"".join(request(number, "wait", ids=[[1, 1]], wait_ms=30_000) for number in range(2, 6)))
    house.peer().say(request(2, "cancel", ids=[[1, 1]]))
    first, *others = peer.hear()
    assert len(first.body["jobs"]) == 1 and others
    assert all(answer.body["jobs"] == [] for answer in others[1:])
    (again,) = peer.ask(request(9, "wait", ids=[[1, 1]], wait_ms=30_000))
    assert len(again.body["jobs"]) == 1


# --- runs of submits ----------------------------------------------------------------------------


def submits(first: int, count: int, **args: object) -> list[bytes]:
    return [request(n, "submit", payload=b"%d" % n, **args) for n in range(first, first + count)]


def test_submits_that_come_together_are_carried_out_in_order_before_what_follows(house, peer):
    answers = peer.ask(*submits(2, 3), request(5, "queues"), *submits(6, 2), request(8, "get", job_id=5))
    assert [answer.request_id for answer in answers] == [2, 3, 4, 5, 6, 7, 8]
    assert [answers[n].body["job_id"] for n in (0, 1, 2, 4, 5)] == [1, 2, 3, 4, 5]
    assert answers[3].body["queues"][0]["ready"] == 3
    assert answers[6].body["payload"] == b"7"


def test_what_is_wrong_with_the_stream_is_said_after_the_submits_before_it(peer):
    answers = peer.ask(*submits(2, 2), frame(b""))
    assert [(answer.request_id, answer.status) for answer in answers] == [
        (2, "ok"),
        (3, "ok"),
        (0, "bad_frame"),
    ]
    assert peer.session.closing


def test_a_bad_submit_within_a_run_is_named_like_any_other(peer):
    bad = request(3, "submit", payload=b"x", priority=1 << 40)
    answers = peer.ask(*submits(2, 1), bad, *submits(4, 2))
    assert [answer.status for answer in answers] == ["ok", "invalid_argument", "ok", "ok"]
    assert "priority = 1099511627776" in answers[1].body["message"]
    assert [answers[n].body["job_id"] for n in (0, 2, 3)] == [1, 2, 3]


def test_a_run_does_not_pass_the_limit_of_requests_in_flight(peer):
    peer.say(b"".join(submits(2, model.IN_FLIGHT_MAX + 10)))
    assert peer.session.in_flight == model.IN_FLIGHT_MAX
    assert peer.session.unfinished
    assert len(peer.hear()) == model.IN_FLIGHT_MAX
    peer.session.resume(NOW)
    assert [answer.body["job_id"] for answer in peer.hear()] == list(
        range(model.IN_FLIGHT_MAX + 1, model.IN_FLIGHT_MAX + 11)
    )


def test_a_run_ends_with_the_work_of_a_turn(house, peer, monkeypatch):
    monkeypatch.setattr(session_module, "TURN_WORK_MAX", 10)
    peer.say(b"".join(submits(2, 25)))
    assert house.engine.state.pages.next_id == 11
    assert peer.session.unfinished


def test_submits_are_refused_one_by_one_while_the_server_drains(house, peer):
    house.refusals[commands.Submit] = Draining("the server is shutting down")
    answers = peer.ask(*submits(2, 3))
    assert [answer.status for answer in answers] == ["draining"] * 3


def test_a_run_that_fails_before_its_first_change_is_answered_and_reported(house, peer, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(submitting, "submit_run", broken)
    answers = peer.ask(*submits(2, 3), request(5, "ping"))
    assert [answer.status for answer in answers] == ["internal"] * 3 + ["ok"]
    assert [event for event, _ in house.reports] == ["command_failed"]


def test_a_run_that_fails_after_a_change_stops_the_process(house, peer, monkeypatch):
    monkeypatch.setattr(JobsSubmitted, "apply", lambda *_: 1 / 0)
    with pytest.raises(FailStop):
        peer.say(b"".join(submits(2, 3)))


def test_a_snapshot_is_asked_of_the_house_and_answered_with_its_lsn(house, peer):
    answers = peer.ask(request(2, "submit"), request(3, "snapshot"))
    assert answers[1].body == {"lsn": house.engine.state.lsn}
    assert house.snapshots == 1


# --- requests that are sent again while their first copy is still on its way -----------------------


def late_and_newer(house: House) -> tuple[Peer, Peer]:
    """Return a connection that its client has given up, and the one that it made then."""
    late, newer = Peer(house), Peer(house)
    assert late.ask(hello(1, session=SESSION))[0].status == "ok"
    assert newer.ask(hello(10, session=SESSION))[0].status == "ok"
    return late, newer


def states(house: House) -> list[str]:
    return [job.state.wire_name for job in house.engine.state.pages.jobs_from(0)]


@pytest.mark.parametrize("error", [Busy("no"), Draining("no"), StorageFull("no")])
def test_late_copy_of_a_refused_submit_is_not_carried_out(house, error):
    late, newer = late_and_newer(house)
    house.refusals = {commands.Submit: error}
    assert newer.ask(request(2, "submit"))[0].status == error.code
    house.refusals = {}
    assert late.ask(request(2, "submit"))[0].status == "position_lost"
    assert states(house) == []


def test_late_copy_of_a_lease_that_found_nothing_takes_no_job(house):
    late, newer = late_and_newer(house)
    assert newer.ask(request(2, "lease"))[0].body["jobs"] == []
    newer.ask(request(11, "submit"))
    assert late.ask(request(2, "lease"))[0].status == "position_lost"
    assert states(house) == ["ready"]


def test_late_copies_in_a_row_are_not_carried_out(house):
    late, newer = late_and_newer(house)
    house.refusals = {commands.Submit: Busy("no")}
    newer.ask(*submits(2, 3))
    house.refusals = {}
    answers = late.ask(*submits(2, 4))
    assert [answer.status for answer in answers] == ["position_lost"] * 3 + ["ok"]
    assert states(house) == ["ready"]


def test_submits_that_are_sent_again_in_a_row_leave_nothing_to_their_late_copies(house):
    late, newer = late_and_newer(house)
    too_large = [request(number, "submit", payload=b"x" * ((1 << 20) + 1)) for number in (2, 3)]
    assert {answer.status for answer in newer.ask(*too_large)} == {"payload_too_large"}
    assert {answer.status for answer in late.ask(*too_large)} == {"position_lost"}


def test_request_may_be_sent_again_over_ever_newer_connections(house):
    _, newer = late_and_newer(house)
    house.refusals = {commands.Submit: Busy("no")}
    newer.ask(request(2, "submit"))
    house.refusals = {}
    newest = Peer(house)
    newest.ask(hello(20, session=SESSION))
    assert newest.ask(request(2, "submit"))[0].status == "ok"
    assert newer.ask(request(2, "submit"))[0].status == "position_lost"
    assert newest.ask(request(2, "submit"))[0].body == {"job_id": 1}


def test_newest_connection_goes_on_with_runs_of_submits(house):
    late, newer = late_and_newer(house)
    newer.ask(request(2, "lease"))
    assert not house.engine.is_overtaken(SESSION, 10)
    assert house.engine.is_overtaken(SESSION, 1)
    assert [answer.status for answer in late.ask(*submits(3, 2))] == ["ok", "ok"]
    assert [answer.status for answer in newer.ask(*submits(11, 2))] == ["ok", "ok"]


def test_late_copies_of_reads_and_of_other_sessions_are_like_any_other(house):
    late, newer = late_and_newer(house)
    newer.ask(request(2, "lease"), request(3, "queues"))
    assert late.ask(request(3, "queues"))[0].status == "ok"
    for other in (house.peer(), house.peer(session=b"t" * 16)):
        assert other.ask(request(2, "lease"))[0].status == "ok"


def test_what_was_sent_again_is_kept_within_a_bound_and_for_the_life_of_the_connections(house, monkeypatch):
    monkeypatch.setattr(model, "ANSWERS_PER_SESSION_MAX", 2)
    late, newer = late_and_newer(house)
    newer.ask(*(request(number, "lease") for number in (2, 3, 4)))
    assert house.engine.claims[SESSION].hellos == {3: 10, 4: 10}
    newer.session.close(NOW)
    assert house.engine.claims
    late.session.close(NOW)
    assert house.engine.claims == {}
