"""The client's end of the protocol, without I/O: who asked what, what may be sent, which reply is whose.

Knows:         hello first, request ids, the window of unanswered requests, what may be sent again
               after a connection was lost and what may not; that nothing goes on as if nothing had been when
               the store was rolled back (history.py).
Must not know: sockets, asyncio, clocks, threads, how a caller waits, what a reply means.

    shell                                connection
    open()                               CLOSED   -> GREETING    a byte stream is there: hello goes out
    receive_data() with the welcome      GREETING -> READY       requests go out, up to the window; if the
                                                                 store was rolled back, those from before end
    closed()                             any      -> CLOSED      unanswered requests line up again

A shell does three things in turn: it hands over what arrived (`receive_data`) and delivers the
answers it gets back, writes what there is to write (`data_to_send`), and when `failure` is set or
the stream ends it says `closed()`. One object outlives many streams.

Sending again is safe because the server answers a state-changing request once by (session, request
id). It remembers ANSWERS_PER_SESSION_MAX answers, so a request whose id lies further back than that is
not sent again: its caller learns that the outcome is unknown. A lease is then asked anew under a new
id, since the jobs of a lost one come back by themselves. How far back that is shows when it is sent: while
this connection waits to be made again, others of the session go on.
Source: protocol.md "Requests", "Sessions"; shape after websockets' Protocol.
"""

from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Final

from msgspec import Raw, Struct

from jqd.core.commands import (
    PROTOCOL_VERSION,
    CancelRequested,
    Command,
    Hello,
    Lease,
    OrderGiven,
    Welcome,
)
from jqd.core.model import ANSWERS_PER_SESSION_MAX, FRAME_BYTES_MAX, IN_FLIGHT_MAX
from jqd.errors import (
    WIRE_ERRORS,
    BadFrame,
    ConnectionLost,
    InvalidArgument,
    JqdError,
    PayloadTooLarge,
    StoreRolledBack,
    VersionMismatch,
)
from jqd.protocol import framing, messages
from jqd.protocol.history import History, Mark, Run
from jqd.protocol.messages import ReceivedReply

# A request that was under way each time the connection broke may be what breaks it.
SENDS_MAX: Final = 5
# What is handed to the socket at a time: enough for one big write, small beside a socket's buffer limit.
SLICE_BYTES: Final = 256 << 10
# A lease that lies further back than that when it is sent again is asked anew: while it is under way, what other
# connections of the session ask must not push it out of the server's memory.
_LEASE_AGE_MAX: Final = ANSWERS_PER_SESSION_MAX // 2
# Jobs of which a session remembers that it handed an event on: as many as one request can mark.
_TOLD_MAX: Final = 10_000
# [id, verb, args] around the arguments: 1 + 9 + 65 bytes at most.
_ENVELOPE_BYTES_MAX: Final = 80


class State(Enum):
    CLOSED = "no byte stream"
    GREETING = "hello is on its way, the welcome is not here"
    READY = "requests may go out"


class Session:
    """What all connections of one client share: the words of its hello, request ids that only rise, and what was
    heard of the store.

    Args:
        hello: sent first on each connection; must carry the client's session (random bytes that the
            shell makes), without which a request cannot be sent again.
        on_cancel: gets (job id, token) of each held job that is to end, once for all connections; must not raise.
        on_order: gets what this worker is to do, from each connection; must not raise.
        on_greeted: called when a connection was made, or made again; must not raise.
    """

    __slots__ = ("_told", "hello", "history", "newest_id", "on_cancel", "on_greeted", "on_order")

    def __init__(
        self,
        hello: Hello,
        on_cancel: Callable[[int, int], None] | None = None,
        on_order: Callable[[str], None] | None = None,
        on_greeted: Callable[[], None] | None = None,
    ) -> None:
        assert hello.session is not None
        self.hello = hello
        self.history = History()
        self.newest_id = 0
        self.on_cancel = on_cancel
        self.on_order = on_order
        self.on_greeted = on_greeted
        self._told: dict[tuple[int, int], None] = {}  # of on_cancel, the newest _TOLD_MAX

    def cancel_requested(self, event: CancelRequested) -> None:
        """Hand on what every connection of the session is told."""
        if self.on_cancel is None:
            return
        for token, ranges in event.items:
            for first, count in ranges:
                for job_id in range(first, first + count):
                    if (job_id, token) not in self._told:
                        self._told[job_id, token] = None
                        if len(self._told) > _TOLD_MAX:
                            del self._told[next(iter(self._told))]
                        self.on_cancel(job_id, token)

    def next_id(self) -> int:
        self.newest_id += 1
        return self.newest_id

    def rolled_back_since(self, rollbacks: int) -> StoreRolledBack | None:
        """Return the exception for somebody who has heard of only so many rollbacks, if there were more."""
        last = self.history.last
        if last is None or self.history.count == rollbacks:
            return None
        return StoreRolledBack(last.reason, outcome_unknown=False, details=last.details)


class Request:
    """One request on its way. `id` is 0 until it is sent for the first time.

    rollbacks: how many its caller could have heard of when it was made.
    """

    __slots__ = ("_args", "id", "kind", "rollbacks", "sends", "withdrawn")

    def __init__(self, kind: type[Command[Any]], args: bytes, rollbacks: int) -> None:
        self.kind = kind
        self.rollbacks = rollbacks
        self._args = args  # encoded when it was asked: what the caller changes later does not matter
        self.id = 0
        self.sends = 0
        self.withdrawn = False

    @property
    def outcome_unknown(self) -> bool:
        """Whether it may have changed something although no reply came."""
        return self.sends > 0 and self.kind.writes


# A request with its reply, or with the error that it ended in.
Answered = tuple[Request, Struct | JqdError]


class ClientConnection:
    """The state of one connection to a server, over any number of byte streams.

    Args:
        session: shared by all connections of one client.
        in_flight_max: requests that may be unanswered at a time; the rest waits here in order.
    """

    def __init__(self, session: Session, *, in_flight_max: int = IN_FLIGHT_MAX) -> None:
        self.state = State.CLOSED
        self.welcome: Welcome | None = None  # the newest
        self.failure: JqdError | None = None  # why the stream is of no use any more; say closed() then
        self._refused = False  # the server found fault with what was sent: the same bytes would find it again
        self._session = session
        self._history = session.history
        self._mark: Mark | None = None  # what had been heard when hello was sent
        self._run: Run | None = None  # whose replies these are
        self._rollbacks = session.history.count  # that this connection's requests were told of
        self._in_flight_max = in_flight_max
        self._reader = framing.FrameReader(FRAME_BYTES_MAX)
        self._hello_id = 0
        self._hello = b""
        self._waiting: deque[Request] = deque()  # to be sent, in order
        self._unanswered: dict[
            int, Request
        ] = {}  # sent on this stream, by id, in order; at most in_flight_max

    # --- the stream ---------------------------------------------------------------------------

    def open(self) -> None:
        """Begin a new byte stream."""
        assert self.state is State.CLOSED
        self.state = State.GREETING
        self.failure = None
        self._refused = False
        self._reader = framing.FrameReader(FRAME_BYTES_MAX)
        self._run = None
        self._mark = self._history.mark()
        self._hello_id = self._session.next_id()
        self._hello = framing.to_frame(messages.encode_request(self._hello_id, self._session.hello))

    def receive_data(self, data: bytes) -> list[Answered]:
        """Take what arrived.

        Returns: the requests that it answers, in the order of the replies. Withdrawn ones are among
                 them: the shell may have to give back what nobody waits for. What is wrong with the
                 stream itself is in `failure`.
        """
        answers: list[Answered] = []
        if self.state is State.CLOSED or self.failure is not None:
            return answers
        self._reader.feed(data)
        try:
            for frame in self._reader.frames():
                self._take(messages.decode_reply(frame), answers)
        except JqdError as error:
            self.failure = error
        if self._run is not None and self._run is not self._history.newest:
            self._history.heard(self._run)
        if self._rollbacks != self._history.count:
            self._end_history(answers)
        return answers

    def data_to_send(self) -> bytes:
        """Return what may be written now, about SLICE_BYTES at a time; b"" when there is nothing."""
        if self.state is State.GREETING:
            hello, self._hello = self._hello, b""
            return hello
        if self.state is State.CLOSED or not self._waiting:
            return b""
        parts: list[bytes] = []
        size = 0
        while self._waiting and len(self._unanswered) < self._in_flight_max and size < SLICE_BYTES:
            request = self._waiting.popleft()
            if request.withdrawn:
                continue
            if not request.id or (
                request.kind is Lease and self._session.newest_id - request.id > _LEASE_AGE_MAX
            ):
                request.id = self._session.next_id()
            body = messages.encode((request.id, request.kind.verb, Raw(request._args)))
            parts += framing.pack_length(len(body)), body
            size += len(body)
            request.sends += 1
            self._unanswered[request.id] = request
        return b"".join(parts)

    def closed(self) -> list[Answered]:
        """End the byte stream. What was not answered lines up again, before all that was not sent yet.

        Returns: the requests that must not be sent again, each with its ConnectionLost.
        """
        ended: list[Answered] = []
        again: list[Request] = []
        for request in self._unanswered.values():
            if request.withdrawn:
                continue
            if reason := self._why_not_again(request):
                ended.append((request, self._lost(request, reason)))
            else:
                again.append(request)
        self.state = State.CLOSED
        self._unanswered.clear()
        self._waiting.extendleft(reversed(again))
        return ended

    # --- requests -----------------------------------------------------------------------------

    def request(self, command: Command[Any]) -> Request:
        """Line up a request.

        Raises:
            PayloadTooLarge: it does not fit into a frame.
            InvalidArgument: a number or a text that msgpack cannot say. TypeError: neither number nor text.
        """
        try:
            args = messages.encode(command)
        except (OverflowError, UnicodeEncodeError) as error:
            raise InvalidArgument(f"{command.verb}: {error}") from None
        size = len(args) + _ENVELOPE_BYTES_MAX
        if size > FRAME_BYTES_MAX:
            raise PayloadTooLarge(
                f"{command.verb} request = {size} bytes: the limit of a frame is {FRAME_BYTES_MAX}"
            )
        request = Request(type(command), args, self._history.count)
        self._waiting.append(request)
        return request

    def withdraw(self, request: Request) -> None:
        """Say that nobody waits for a request any more: it is not sent (again). One that is under way
        keeps its place in the window until its reply comes.
        """
        request.withdrawn = True
        request._args = b""

    def give_up(
        self, reason: str, refusal: JqdError | None = None, kind: type[ConnectionLost] = ConnectionLost
    ) -> list[Answered]:
        """End every request.

        Args:
            reason: for the messages, after the verb.
            refusal: what a request that was never sent ends in; default: as the others.
            kind: of what they end in.
        Returns: all that were not answered, each with its error.
        """
        ended: list[Answered] = [
            (request, refusal if refusal and not request.sends else self._lost(request, reason, kind))
            for request in self._open_requests()
        ]
        self._unanswered.clear()
        self._waiting.clear()
        return ended

    @property
    def load(self) -> int:
        """How many requests have no answer yet, sent or not, withdrawn or not."""
        return len(self._waiting) + len(self._unanswered)

    @property
    def wants_stream(self) -> bool:
        """Whether somebody waits for an answer."""
        return next(self._open_requests(), None) is not None

    def _open_requests(self) -> Iterator[Request]:
        for requests in (self._unanswered.values(), self._waiting):
            yield from (request for request in requests if not request.withdrawn)

    # --- replies ------------------------------------------------------------------------------

    def _take(self, reply: ReceivedReply, answers: list[Answered]) -> None:
        """Raises: JqdError: the stream is of no use any more."""
        if (
            reply.request_id == 0
        ):  # about the stream as a whole; an event that this client does not know is skipped
            if reply.status in WIRE_ERRORS:
                error: JqdError = messages.decode_body(reply, Welcome)
                self._refused = not error.retryable
                raise error
            if reply.status == "cancel":
                self._session.cancel_requested(messages.decode_event(reply, CancelRequested))
            elif reply.status == "order" and self._session.on_order is not None:
                self._session.on_order(messages.decode_event(reply, OrderGiven).order)
        elif self.state is State.GREETING:
            self._greeted(reply)
        else:
            request = self._unanswered.pop(reply.request_id, None)
            if request is None:
                raise BadFrame(f"reply to request {reply.request_id}: not asked, or answered before")
            run = self._run
            assert run is not None
            run.seen_lsn = max(run.seen_lsn, reply.lsn)
            answers.append((request, self._body(reply, request)))

    def _greeted(self, reply: ReceivedReply) -> None:
        if reply.request_id != self._hello_id:
            raise BadFrame(f"reply to request {reply.request_id}: the first reply belongs to hello")
        body = messages.decode_body(reply, Welcome)
        if isinstance(body, JqdError):
            raise body
        if body.version != PROTOCOL_VERSION:
            raise VersionMismatch(
                f"server's protocol version = {body.version}: this client speaks {PROTOCOL_VERSION}"
            )
        self.welcome = body
        self.state = State.READY
        self._run = self._history.welcomed(body, reply.lsn, self._mark)
        if self._session.on_greeted is not None:
            self._session.on_greeted()

    def _end_history(self, answers: list[Answered]) -> None:
        """End every request that was made before a rollback was noticed: what it was about may be gone."""
        rollback = self._history.last
        assert rollback is not None
        self._rollbacks = self._history.count
        for request in [each for each in self._open_requests() if each.rollbacks < self._rollbacks]:
            unknown = request.outcome_unknown
            answers.append(
                (
                    request,
                    StoreRolledBack(
                        f"{request.kind.verb}: {rollback.reason}; {_outcome(unknown=unknown)}",
                        outcome_unknown=unknown,
                        details=rollback.details,
                    ),
                )
            )
            self.withdraw(request)  # one that is under way keeps its place: its reply will come
        self._waiting = deque(request for request in self._waiting if not request.withdrawn)

    def _body(self, reply: ReceivedReply, request: Request) -> Struct | JqdError:
        try:
            body: Struct | JqdError = messages.decode_body(reply, request.kind.reply)
        except BadFrame as error:  # frames are still in step: only this request is lost
            return self._lost(request, f"its reply cannot be read: {error}")
        return body

    def _why_not_again(self, request: Request) -> str:
        """Say why a request must not be sent again, or ""."""
        if self._refused:
            return f"the server ended the connection: {self.failure}"
        if request.sends >= SENDS_MAX:
            return f"the connection broke {request.sends} times while it was under way"
        if (
            request.kind.writes
            and request.kind is not Lease
            and self._session.newest_id - request.id >= ANSWERS_PER_SESSION_MAX
        ):
            return "the connection broke, and the server may have forgotten the answer by now"
        return ""

    @staticmethod
    def _lost(request: Request, reason: str, kind: type[ConnectionLost] = ConnectionLost) -> ConnectionLost:
        unknown = request.outcome_unknown
        return kind(f"{request.kind.verb}: {reason} ({_outcome(unknown=unknown)})", outcome_unknown=unknown)


def _outcome(*, unknown: bool) -> str:
    return "outcome unknown" if unknown else "nothing was changed"
