"""One connection to the server over asyncio, made again when it is lost.

Knows:         how to open, write, read and close with asyncio, how long somebody waits for a reply.
Must not know: frames, request ids, what may be sent again (protocol/connection.py), what is asked
               (aio.py), when to try again (retry.py).

    Link    has a ClientConnection (state, no I/O), one Socket at a time, one Task while it makes one
    Socket  shuttles between a transport and its Link

No task for a request: a reply resolves a future. One timer a link, for the earliest deadline. What is
asked in one turn of the loop leaves in one write, and nothing is written while the transport is full.
"""

import asyncio
import itertools
import os
import socket
from typing import Any, Final, cast

from msgspec import Struct

from jqd.client.shared import CONNECT_S, Shared, is_silent
from jqd.client.values import TcpAddress, in_own_words
from jqd.core.commands import Command
from jqd.errors import ClientClosed, ConnectionLost, JqdError
from jqd.protocol.connection import Answered, ClientConnection, Request, State

# How long gone() waits for what is written to leave the socket.
_CLOSE_S: Final = 1.0


class _Waiter(Struct, eq=False):
    """Who waits for a reply, and until when on the loop's clock."""

    future: asyncio.Future[Struct]
    deadline: float
    wait_s: float


class Link:
    """One connection to the server, made again when it is lost while somebody waits for an answer.

    _socket and _task: a link has a socket, or a task that makes one, or neither (idle, or ended).
    """

    def __init__(self, shared: "Shared[Link]", in_flight_max: int) -> None:
        self._shared = shared
        shared.links.add(self)
        self._loop = asyncio.get_running_loop()
        self._connection = ClientConnection(shared.session, in_flight_max=in_flight_max)
        self._waiters: dict[Request, _Waiter] = {}
        self._socket: Socket | None = None
        self._task: asyncio.Task[JqdError | None] | None = None
        self._greeted: asyncio.Future[None] | None = None  # while the task waits for the server's welcome
        self._flush_due = False
        self._alarm: asyncio.TimerHandle | None = None
        self._heard_at = 0.0  # when bytes last arrived, on the loop's clock
        self._retired = False
        self.is_main = in_flight_max > 1  # one that only leases is made again by who leases

    # --- requests -----------------------------------------------------------------------------

    @property
    def load(self) -> int:
        """How many requests have no answer yet."""
        return self._connection.load

    async def up(self) -> None:
        """Wait for a welcome.

        Raises: JqdError: why there is none.
        """
        if self._connection.state is State.READY:
            return
        rollbacks = self._shared.session.history.count
        task = self._wake()
        await asyncio.wait([task])  # not the task itself: who is cancelled here leaves it to others
        if task.cancelled():
            raise ClientClosed("the client was closed", outcome_unknown=False)
        error = task.result() or self._shared.session.rolled_back_since(rollbacks)
        if error is not None:
            raise error

    async def ask(self, command: Command[Any], wait_s: float) -> Struct:
        """Send a command, and wait for its reply for `wait_s` seconds."""
        request = self._connection.request(command)
        future = self._loop.create_future()
        deadline = self._loop.time() + wait_s
        self._waiters[request] = _Waiter(future, deadline, wait_s)
        self._arm(deadline)
        self._send()
        try:
            reply: Struct = await future
        except asyncio.CancelledError:
            if self._waiters.pop(request, None) is not None:
                self._connection.withdraw(request)
            elif not future.cancelled() and future.exception() is None:
                self._shared.unclaimed(future.result())  # the reply came in the same turn as the cancellation
            raise
        return reply

    def tell(self, command: Command[Any]) -> None:
        """Send a command whose reply nobody needs."""
        self._connection.request(command)
        self._send()

    def _send(self) -> None:
        """See to it that what was lined up goes out: all requests of one loop turn in one write."""
        if self._socket is None or self._connection.state is not State.READY:
            self._wake()
        elif not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        socket = self._socket
        while socket is not None and not socket.paused and (data := self._connection.data_to_send()):
            socket.transport.write(data)

    def _deliver(self, answers: list[Answered]) -> None:
        for request, outcome in answers:
            waiter = self._waiters.pop(request, None)
            if waiter is None or waiter.future.done():
                self._shared.unclaimed(outcome)
            elif isinstance(outcome, JqdError):
                waiter.future.set_exception(in_own_words(outcome))
            else:
                waiter.future.set_result(outcome)

    # --- deadlines ----------------------------------------------------------------------------

    def _arm(self, deadline: float) -> None:
        if self._alarm is None or deadline < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now = self._loop.time()
        due = [(request, waiter) for request, waiter in self._waiters.items() if waiter.deadline <= now]
        for request, waiter in due:
            del self._waiters[request]
            self._connection.withdraw(request)
            if not waiter.future.done():
                waiter.future.set_exception(self._shared.too_late(request, waiter.wait_s))
        if self._waiters:
            self._arm(min(waiter.deadline for waiter in self._waiters.values()))
        heard_at = self._heard_at
        if any(
            request.sends and is_silent(waiter.wait_s, waiter.deadline, heard_at) for request, waiter in due
        ):
            self._drop()

    # --- making the connection ----------------------------------------------------------------

    def _wake(self) -> asyncio.Task[JqdError | None]:
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._reach(), name=f"jqd connects to {self._shared.url}")
        return self._task

    async def _reach(self) -> JqdError | None:
        """Try until the server welcomes this client, or the backoff or the server says to stop."""
        lost_at = self._loop.time()
        for failures in itertools.count(1):
            error = await self._try()
            if error is None:
                self._shared.reached = True
                self._flush()
                return None
            wait_ms = self._shared.retry_ms(error, failures, self._loop.time() - lost_at)
            if wait_ms is None:
                refusal = None if isinstance(error, ConnectionLost) else error
                self._deliver(self._connection.give_up(str(error), refusal))
                return error
            await asyncio.sleep(wait_ms / 1_000)
        raise AssertionError

    async def _try(self) -> JqdError | None:
        """Make one connection and greet. Returns why it failed, or None."""
        url = self._shared.url
        self._greeted = self._loop.create_future()
        error: JqdError
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._open()
                await self._greeted
        except (OSError, JqdError) as failure:
            error = self._shared.unreachable(failure)
        else:
            if self._connection.state is State.READY:
                return None
            error = ConnectionLost(f"{url} closed the connection after its welcome", outcome_unknown=False)
        finally:
            self._greeted = None
        self._drop()
        return error

    async def _open(self) -> None:
        address = self._shared.address
        if isinstance(address, TcpAddress):
            await self._loop.create_connection(lambda: Socket(self), address.host, address.port)
        else:
            await self._loop.create_unix_connection(lambda: Socket(self), address.path)

    # --- what the socket says -----------------------------------------------------------------

    def made(self, socket: "Socket") -> None:
        self._socket = socket
        self._heard_at = self._loop.time()
        self._connection.open()
        self._flush()

    def received(self, socket: "Socket", data: bytes) -> None:
        if socket is not self._socket:
            return
        self._heard_at = self._loop.time()
        self._deliver(self._connection.receive_data(data))
        if self._connection.failure is not None:
            self._drop()
            return
        if self._connection.state is State.READY and self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(None)
        self._flush()  # replies have made room in the window

    def writable(self, socket: "Socket") -> None:
        if socket is self._socket:
            self._flush()

    def lost(self, socket: "Socket", error: Exception | None) -> None:
        if socket is self._socket:
            self._detach(f"the connection was lost: {error or 'the server closed it'}")
        if self._retired:
            self._shared.links.discard(self)

    def _drop(self) -> None:
        """Cut the connection, if there is one, and go on as if it had been lost."""
        if self._socket is not None:
            self._socket.transport.abort()
            self._detach("the connection was given up")

    def _detach(self, reason: str) -> None:
        self._socket = None
        failure = self._connection.failure
        self._deliver(self._connection.closed())
        if self._greeted is not None:
            if not self._greeted.done():
                self._greeted.set_exception(
                    failure or ConnectionLost(f"{self._shared.url}: {reason}", outcome_unknown=False)
                )
        elif self._connection.wants_stream or (self._shared.stays and self.is_main and not self._retired):
            self._wake()

    # --- the end ------------------------------------------------------------------------------

    def retire(self) -> None:
        """Leave a lease that nobody waits for: tell the server by closing this side, and read what may
        be on its way, so that its jobs can be given back.
        """
        self._retired = True
        if self._socket is None or self._connection.state is not State.READY:
            self.end("not needed any more")
            return
        self._socket.transport.write_eof()
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_later(CONNECT_S, self._drop)

    @property
    def is_leaving(self) -> bool:
        """Whether it was retired, and the server may still have something to say."""
        return self._retired and self._socket is not None

    def end(self, reason: str) -> None:
        """Close for good; whoever still waits gets ConnectionLost."""
        self._retired = True
        if self._task is not None:
            self._task.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        self._deliver(self._connection.give_up(reason, kind=ClientClosed))
        if self._socket is not None:
            self._socket.transport.close()
        else:
            self._shared.links.discard(self)

    def disown(self) -> None:
        """Let go, in a fork, of what is the parent's: this process's copy of the socket is closed, and nothing is
        said to the server. Nothing else is touched: transports and tasks belong to a loop that does not run here, and
        would act on what the parent polls with.
        """
        if self._socket is not None:
            _close_copy(self._socket.transport.get_extra_info("socket").fileno())

    async def gone(self) -> None:
        """Wait, after end(), until nothing is left of it."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._socket is not None:
            socket = self._socket
            await asyncio.wait([socket.closed], timeout=_CLOSE_S)
            if not socket.closed.done():
                socket.transport.abort()
                await socket.closed


def _close_copy(descriptor: int) -> None:
    """Close a file whose number somebody else goes on to use: from now on it means a socket without a connection."""
    os.close(descriptor)  # at first: where no more files can be opened there is room for one now
    other = socket.socket(socket.AF_UNIX).detach()
    if other != descriptor:
        os.dup2(other, descriptor, inheritable=False)
        os.close(other)


class Socket(asyncio.Protocol):
    """Shuttles between one transport and its link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.transport: asyncio.Transport
        self.paused = False  # the transport holds more than enough: write no more
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._link.made(self)

    def data_received(self, data: bytes) -> None:
        self._link.received(self, data)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._link.writable(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)
        self._link.lost(self, exc)
