"""One connection without its socket: bytes in, bytes out.

Knows:         the handshake, how many requests may be in flight, when to stop reading, what to answer
               to a request that cannot be carried out.
Must not know: asyncio, sockets, threads, clocks; the simulator runs this file as it stands.

The shell's contract (driver.py, and the simulator):

    receive(data, now)   bytes arrived; may be called only while `reading` is true
    end_of_requests()    no more bytes will arrive
    resume(now)          go on with bytes that were kept, when one of the limits below has room again
    answer(...)          the answer to a parked request came
    tell(...)            an event for this connection's session came
    take_output()        what this turn has to say; to be sent when the turn's record is durable
    output_sent(output)  it was handed to the socket; output_lost(output, now): the socket was closed

Back-pressure has three limits, each ends reading until there is room: requests in flight, replies not
yet sent, and work in one turn, so that one connection with a full pipe does not keep the others waiting.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, Protocol

from msgspec import Struct

from jqd.core import model
from jqd.core.commands import Command, Hello, Leased, ServerStats, SnapshotBegun, Submit, Waited
from jqd.core.engine import Body, Engine, FailStop
from jqd.core.model import Caller, Now
from jqd.errors import BadFrame, Internal, InvalidArgument, JqdError, ProtocolError
from jqd.protocol.framing import FrameReader, pack_length
from jqd.protocol.messages import (
    SubmitRequest,
    decode_command,
    decode_request,
    decode_submits,
    encode_error,
    encode_event,
    encode_reply,
)

# What one connection may do in one turn, in jobs (State.work); the request that passes it is still carried out. About 10 ms
# of the loop: one request may name 10,000 jobs. Those that have nothing in common are the work of 90,000, so that after
# such a request the others have their turn.
TURN_WORK_MAX: Final = 10_000


class House(Protocol):
    """What a session needs from the daemon around it."""

    engine: Engine
    output_bytes_max: int
    # Grants whose reply reached no socket yet -> replies on their way that hold them: two when a client
    # whose connection broke asks again before the disk is done.
    unsent_grants: dict[int, int]

    @property
    def refusing(self) -> bool:
        """Whether refuse() has to be asked."""
        ...

    def refuse(self, command: Command[Any], request_bytes: int) -> None:
        """Raise why this command cannot be taken now, if it cannot: Draining, Busy or StorageFull."""
        ...

    def process_figures(self) -> dict[str, int]:
        """Return the daemon's own figures for `stats`."""
        ...

    def make_snapshot(self) -> None:
        """Have a snapshot made of all that this turn and those before it have changed."""
        ...

    def report(self, event: str, error: Exception) -> None:
        """Tell the operator about a failure that the daemon survives."""
        ...


class Output(Struct):
    """The replies of one turn to one connection."""

    data: bytes
    replies: int
    tokens: list[int]  # grants that these replies hand out


class Session:
    """See the file's card.

    Args:
        ticket: what the engine hands back with the answer to a parked request.
    """

    __slots__ = (
        "_caller",
        "_chunks",
        "_chunks_bytes",
        "_heard_all",
        "_hello_id",
        "_house",
        "_reader",
        "_replies",
        "_ticket",
        "_tokens",
        "closing",
        "in_flight",
        "unfinished",
        "unsent_bytes",
    )

    def __init__(self, house: House, ticket: object) -> None:
        self._house = house
        self._ticket = ticket
        self._caller: Caller | None = None
        self._hello_id = 0  # a request with a lower id was sent before, over another connection
        self._reader = FrameReader(model.FRAME_BYTES_MAX_BEFORE_HELLO)
        self._chunks: list[bytes] = []
        self._chunks_bytes = 0
        self._replies = 0
        self._tokens: list[int] = []
        self.in_flight = 0  # requests taken, reply not yet handed to the socket
        self.unsent_bytes = 0  # replies made, not yet handed to the socket
        self.unfinished = False  # bytes are kept that may hold a whole request
        self._heard_all = False  # the peer closed its sending side
        self.closing = False  # a fatal error was answered: nothing more is read

    @property
    def greeted(self) -> bool:
        """Whether hello succeeded."""
        return self._caller is not None

    @property
    def has_output(self) -> bool:
        return bool(self._chunks)

    @property
    def has_ended(self) -> bool:
        """Whether all was said and nothing more can come. After a fatal error a parked request does not count."""
        complete = self.closing or (self._heard_all and not self.unfinished and not self.in_flight)
        return complete and not self.unsent_bytes and not self._chunks

    @property
    def has_room(self) -> bool:
        """Whether another request may be taken, as far as its replies are concerned."""
        return (
            self.in_flight < model.IN_FLIGHT_MAX
            and self.unsent_bytes + self._chunks_bytes < self._house.output_bytes_max
            and not self.closing
        )

    @property
    def part_bytes(self) -> int:
        """Bytes of requests that are not whole, or not carried out."""
        return 0 if self.closing else self._reader.buffered_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes that are kept for requests, and for replies that were not handed to the socket."""
        return self._reader.buffered_bytes + self.unsent_bytes + self._chunks_bytes

    def drop_part(self, error: JqdError) -> None:
        """End the connection with `error`, and give what came of its next request up."""
        self._refuse_stream(0, error)
        self._reader = FrameReader(self._reader.limit)

    # --- bytes in -----------------------------------------------------------------------------

    def receive(self, data: bytes, now: Now) -> int:
        """Take what arrived and carry out the requests in it, as far as the limits allow.

        Returns: bytes of the requests carried out.
        """
        if self.closing:
            return 0
        self._reader.feed(data)
        return self.resume(now)

    def resume(self, now: Now) -> int:
        """Carry out requests that are already here, as far as the limits allow.

        Returns: their bytes.
        """
        before_bytes = self._reader.buffered_bytes
        self._carry_on(now)
        return before_bytes - self._reader.buffered_bytes

    def _carry_on(self, now: Now) -> None:
        state = self._house.engine.state
        work_end = state.work + TURN_WORK_MAX
        output_end = self._house.output_bytes_max - self.unsent_bytes
        run: list[SubmitRequest] = []  # submits behind each other, not yet carried out
        frames = self._reader.frames()
        while (  # has_room, spelled out: this runs for every request but those of a run
            self.in_flight < model.IN_FLIGHT_MAX
            and self._chunks_bytes < output_end
            and state.work < work_end
            and not self.closing
        ):
            try:
                if run:
                    frame = self._gather(frames, run, work_end - state.work)
                    self._submit(run, now)
                    run = []
                else:
                    frame = next(frames, None)
                    if frame is None:
                        self.unfinished = False
                        return
            except JqdError as error:
                self._submit(run, now)
                self._refuse_stream(0, error)
                return
            if frame is not None:
                self._handle(frame, now, run)
        self._submit(run, now)
        self.unfinished = not self.closing

    def _gather(
        self, frames: Iterator[bytes | memoryview], run: list[SubmitRequest], work: int
    ) -> bytes | memoryview | None:
        """Add the submits behind the first one to a run, as far as the limits allow.

        Returns: the frame that is no submit; None: there is none, or the limits are reached.
        """
        room = min(model.IN_FLIGHT_MAX - self.in_flight, work - len(run))
        try:
            frame = decode_submits(islice(frames, room), run)
        finally:
            self.in_flight += len(run) - 1  # the first one was counted when it came
        return frame

    def end_of_requests(self) -> None:
        """The peer closed its sending side: what it sent is still carried out and answered.

        Only a parked lease is not: nobody could be told that its jobs were taken.
        """
        self._heard_all = True
        if self._house.engine.withdraw(self._ticket):
            self.in_flight -= 1

    def _handle(self, frame: bytes | memoryview, now: Now, run: list[SubmitRequest]) -> None:
        """Carry out one request, or begin a run with it if it is a submit."""
        try:
            request = decode_request(frame)
        except BadFrame as error:
            self._refuse_stream(0, error)
            return
        self.in_flight += 1
        try:
            command = decode_command(request)
            if self._caller is None:
                self._hello(command, request.request_id, now)
                return
            refusing = self._house.refusing
            # A retry whose first try went through is answered: a refusal would say that nothing was changed.
            if refusing and not self._house.engine.remembers(self._caller, request.request_id):
                self._house.engine.claim(command, self._caller, request.request_id, self._hello_id)
                self._house.refuse(command, len(frame))
        except JqdError as error:
            if self._caller is None or (isinstance(error, ProtocolError) and error.fatal):
                self._refuse_stream(request.request_id, error)
            else:
                self._reply_error(request.request_id, error)
            return
        if (
            type(command) is Submit and self._reader.has_more and not refusing
        ):  # of a run only the first is asked
            run.append(SubmitRequest(request.request_id, "submit", command))
        else:
            self._carry_out(command, request.request_id, now)

    def _hello(self, command: Command[Any], request_id: int, now: Now) -> None:
        if not isinstance(command, Hello):
            raise BadFrame(f"verb = '{command.verb}': the first request of a connection must be hello")
        engine = self._house.engine
        self._caller, welcome = engine.hello(command, now, self._ticket)
        self._hello_id = request_id
        self._reader.limit = model.FRAME_BYTES_MAX
        self._say(encode_reply(request_id, engine.state.lsn, welcome))

    def _carry_out(self, command: Command[Any], request_id: int, now: Now) -> None:
        """Carry out one command and answer it, or let the engine answer it later."""
        engine = self._house.engine
        grant = engine.state.grant
        assert self._caller is not None
        try:
            if type(command) is Hello:
                raise InvalidArgument("hello: this connection has said hello before")
            if engine.claims or request_id < self._hello_id:
                engine.claim(command, self._caller, request_id, self._hello_id)
            body = engine.execute(command, self._caller, request_id, self._ticket, now)
        except JqdError as error:
            self._reply_error(request_id, error)
            return
        except FailStop:
            raise
        except Exception as error:  # noqa: BLE001 - reported and answered; nothing was changed
            self._reply_error(request_id, self._internal(command.verb, error))
            return
        if body is None:
            return
        if type(body) is Leased and body.jobs:
            if engine.state.grant != grant or body.token in self._house.unsent_grants:
                self._holds(body.token)
        elif type(body) is ServerStats:
            body.process = self._house.process_figures()
        elif type(body) is SnapshotBegun:
            self._house.make_snapshot()
        self._say(encode_reply(request_id, engine.state.lsn, body))

    def _submit(self, run: list[SubmitRequest], now: Now) -> None:
        """Carry out and answer the submits of a run."""
        if not run:
            return
        assert self._caller is not None
        engine = self._house.engine
        ids = [request.request_id for request in run]
        may_be_late = engine.claims and engine.is_overtaken(self._caller.session, self._hello_id)
        if len(run) < 2 or may_be_late or min(ids) < self._hello_id:
            for request in run:
                self._carry_out(request.args, request.request_id, now)
            return
        answers: Sequence[Body | JqdError]
        try:
            answers = engine.submit_run(ids, [request.args for request in run], self._caller, now)
        except FailStop:
            raise
        except Exception as error:  # noqa: BLE001 - reported and answered; nothing was changed
            answers = [self._internal(Submit.verb, error)] * len(run)
        lsn = engine.state.lsn
        size = 0
        chunks = self._chunks
        for request_id, answer in zip(ids, answers, strict=True):
            if isinstance(answer, JqdError):
                message = encode_error(request_id, lsn, answer)
            else:
                message = encode_reply(request_id, lsn, answer)
            size += len(message)
            chunks.append(pack_length(len(message)))
            chunks.append(message)
        self._chunks_bytes += size
        self._replies += len(run)

    def _internal(self, verb: str, error: Exception) -> Internal:
        """Report a failure that nobody foresaw and that changed nothing; return what the client is told."""
        self._house.report("command_failed", error)
        return Internal(f"{verb} failed inside the server; its log says why")

    def _holds(self, token: int) -> None:
        """Note that a reply of this turn hands out a grant that no socket has seen yet."""
        self._tokens.append(token)
        unsent = self._house.unsent_grants
        unsent[token] = unsent.get(token, 0) + 1

    def _refuse_stream(self, request_id: int, error: JqdError) -> None:
        """Answer with an error after which the bytes mean nothing any more; then the connection ends."""
        if not request_id:
            self.in_flight += 1
        self._reply_error(request_id, error)
        self.closing = True
        self.unfinished = False

    # --- bytes out ----------------------------------------------------------------------------

    def answer(self, request_id: int, answer: Body | JqdError) -> None:
        """Answer a request that was parked."""
        if isinstance(answer, JqdError):
            self._reply_error(request_id, answer)
            return
        if isinstance(answer, Leased) and answer.jobs:
            self._holds(answer.token)
        elif (
            isinstance(answer, Waited)
            and self.unsent_bytes + self._chunks_bytes >= self._house.output_bytes_max
        ):
            # 1,024 waits may get their answers at once. Who asks again is heard when there is room.
            answer = Waited(jobs=[], pending=answer.pending, gone=answer.gone)
        self._say(encode_reply(request_id, self._house.engine.state.lsn, answer))

    def tell(self, name: str, body: Struct) -> None:
        """Say something that nobody asked for."""
        message = encode_event(name, self._house.engine.state.lsn, body)
        self._chunks += (pack_length(len(message)), message)
        self._chunks_bytes += len(message)

    def _reply_error(self, request_id: int, error: JqdError) -> None:
        self._say(encode_error(request_id, self._house.engine.state.lsn, error))

    def _say(self, message: bytes) -> None:
        self._chunks += (pack_length(len(message)), message)
        self._chunks_bytes += len(message)
        self._replies += 1

    def take_output(self) -> Output:
        """Return this turn's replies; they count as unsent until output_sent() or output_lost()."""
        output = Output(b"".join(self._chunks), self._replies, self._tokens)
        self._chunks = []
        self._chunks_bytes = self._replies = 0
        self._tokens = []
        self.unsent_bytes += len(output.data)
        return output

    def output_sent(self, output: Output) -> None:
        for token in output.tokens:
            self._house.unsent_grants.pop(token, None)
        self.in_flight -= output.replies
        self.unsent_bytes -= len(output.data)

    def output_lost(self, output: Output, now: Now) -> None:
        """The socket was closed before these replies reached it: leases are taken back that are in no other reply."""
        unsent = self._house.unsent_grants
        for token in output.tokens:
            if token in unsent:
                unsent[token] -= 1
                if not unsent[token]:
                    del unsent[token]
                    self._house.engine.take_back(token, now)

    def close(self, now: Now, *, lost: bool = True) -> None:
        """The connection ended; lost: not by the server's doing."""
        self.closing = True
        self.unfinished = False
        if self._caller is not None:
            self._house.engine.disconnect(self._caller, self._ticket, now, lost=lost)
