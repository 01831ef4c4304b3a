"""One connection to the server over a socket that threads share, made again when it is lost.

Knows:         how to open, write, read and close a socket without an event loop, which thread does it,
               how long somebody waits for a reply.
Must not know: frames, request ids, what may be sent again (protocol/connection.py), what is asked
               (sync.py), when to try again and what a failure is called (shared.py, retry.py).

No thread of its own. Of the threads that wait for a reply one is the *leader*: it connects, polls the socket
and hands the others what came for them; when it has its own reply, the next one leads.

    leader    lock, read, deliver, write, unlock; then poll
    follower  lock, line up, write what the socket takes, unlock; then wait to be woken: answered, or leader now
    bell      wakes the leader out of its poll: there is more to write, or the end has come

All state is guarded by one lock for all links of a client, and nobody blocks while it is held. An exception
from outside (Ctrl-C, a signal handler's) may come between any two steps. Where it finds a thread waiting, that
thread alone leaves. Where it finds one in the middle of a change, `_torn` is left set, and whoever comes next
starts anew with another connection: what was under way then ends in ConnectionLost, and is not sent again.
"""

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from enum import Enum
from threading import Lock, RLock
from typing import Any, Final, cast

from msgspec import Struct

from jqd.client.shared import CONNECT_S, Shared, is_silent
from jqd.client.values import Address, TcpAddress, in_own_words
from jqd.core.commands import Command
from jqd.errors import ClientClosed, ConnectionLost, JqdError
from jqd.protocol.connection import Answered, ClientConnection, Request, State

# How long retire() waits for what the server still has to say.
_CLOSE_S: Final = 1.0
# A connection that was idle this long is looked at before it is written to: the server may have closed it.
_IDLE_S: Final = 1.0
# What is read at a time: the replies to a full window of submits, and below malloc's threshold for mmap.
_READ_BYTES: Final = 64 << 10
# Longest single pause; poll and locks refuse very long ones.
_PAUSE_S: Final = 3_600.0


class _Next(Enum):
    DONE = "every reply is here, or its time is over"
    FOLLOW = "another thread leads: wait to be woken"
    CONNECT = "make a socket"
    POLL = "wait for the socket or the bell"


class _Call:
    """What one thread waits for: the replies to its requests, all until one deadline on the monotonic clock."""

    __slots__ = ("deadline", "missing", "outcomes", "pause_s", "ready", "requests", "wait_s", "wake")

    def __init__(self, count: int, wait_s: float) -> None:
        self.requests: list[Request] = []
        self.outcomes: list[Struct | JqdError | None] = [None] * count
        self.missing = count
        self.wait_s = wait_s
        self.deadline = time.monotonic() + wait_s
        self.pause_s = 0.0  # how long the next pause may be
        self.ready: list[tuple[int, int]] = []  # what the leader's poll found: descriptor, events
        self.wake: Lock | None = None  # of a follower: held while there is no news

    def settle(self, index: int, outcome: Struct | JqdError) -> None:
        if self.outcomes[index] is None:
            self.outcomes[index] = outcome
            self.missing -= 1
            if not self.missing:
                self.rouse()

    def rouse(self) -> None:
        """Wake the thread if it follows. Only under the link's lock: nobody else releases `wake`."""
        if self.wake is not None and self.wake.locked():
            self.wake.release()


class SyncLink:
    """One connection to the server, made again when it is lost while somebody waits for an answer.

    Args:
        lock: guards all links of one client, and the ids of their session.
    """

    def __init__(self, shared: "Shared[SyncLink]", lock: RLock, in_flight_max: int) -> None:
        self._shared = shared
        self._lock = lock
        self._in_flight_max = in_flight_max
        self._connection = ClientConnection(shared.session, in_flight_max=in_flight_max)
        self._waiters: dict[Request, tuple[_Call, int]] = {}  # the call, and which of its outcomes
        self._greeters: list[_Call] = []  # wait for a welcome
        self._leader: _Call | None = None
        self._followers: dict[_Call, None] = {}  # in the order in which they will lead
        self._socket: socket.socket | None = None
        self._out = memoryview(b"")  # taken from the connection, not yet by the socket
        self._deaf = False  # the socket takes no more; what it has to say is still read
        self._cut = False  # the leader shall give the socket up
        self._torn = False  # see the file's card
        self._ended = ""  # why, once it has
        self._heard_at = 0.0  # when bytes last arrived
        self._failures = 0  # attempts in a row
        self._lost_at: float | None = None  # when the first of them began
        self._retry_at = 0.0  # not before
        self._greet_by = 0.0  # the welcome must be here
        self._bell, self._clapper = socket.socketpair()
        self._bell.setblocking(False)
        self._clapper.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._poll_out = False  # whether the socket is polled for room too
        shared.links.add(self)

    # --- requests -----------------------------------------------------------------------------

    @property
    def load(self) -> int:
        """How many requests have no answer yet. Under the lock."""
        return self._connection.load

    def up(self) -> None:
        """Wait for a welcome, for as long as the backoff says.

        Raises: JqdError: why there is none.
        """
        call = _Call(1, CONNECT_S + self._shared.backoff.give_up_ms / 1_000)
        try:
            with self._lock:
                self._check_open()
                if self._connection.state is State.READY and not self._cut:
                    return
                rollbacks = self._shared.session.history.count
                self._greeters.append(call)
            self._drive(call)
        finally:
            self._leave(call)
        outcome = call.outcomes[0]
        if not isinstance(outcome, JqdError):
            outcome = self._shared.session.rolled_back_since(rollbacks)
        if outcome is not None:
            raise outcome

    def ask(self, command: Command[Any], wait_s: float) -> Struct:
        """Send a command, and wait for its reply for `wait_s` seconds."""
        outcome = self.ask_all([command], wait_s)[0]
        if isinstance(outcome, JqdError):
            raise outcome
        return outcome

    def ask_all(self, commands: Sequence[Command[Any]], wait_s: float) -> list[Struct | JqdError]:
        """Send commands one behind the other, and wait for all replies for `wait_s` seconds.

        Returns: for each command its reply, or the error that it ended in.
        Raises:  PayloadTooLarge, TypeError: one cannot be sent; then none is.
        """
        call = _Call(len(commands), wait_s)
        try:
            with self._lock:
                self._check_open()
                if self._torn:
                    self._heal()
                for index, command in enumerate(commands):
                    request = self._connection.request(command)
                    self._waiters[request] = call, index
                    call.requests.append(request)
            self._drive(call)
            return cast("list[Struct | JqdError]", call.outcomes)
        except BaseException:
            self._forsake(call)
            raise
        finally:
            self._leave(call)

    def tell(self, command: Command[Any]) -> None:
        """Send a command whose reply nobody needs: now if it can be, else before the next request."""
        with self._lock:
            torn, self._torn = self._torn, True
            self._connection.request(command)
            self._flush()
            self._torn = torn

    def _check_open(self) -> None:
        if self._ended:
            raise ClientClosed(self._ended, outcome_unknown=False)

    # --- taking turns -------------------------------------------------------------------------

    def _drive(self, call: _Call) -> None:
        """Do what there is to do until every reply is here. The lock is not held in a pause."""
        while True:
            with self._lock:
                if self._torn:
                    self._heal()
                self._torn = True
                step = self._advance(call)
                self._torn = False
            match step:
                case _Next.DONE:
                    return
                case _Next.POLL:
                    call.ready = self._poll.poll(call.pause_s * 1_000)
                case _Next.FOLLOW:
                    assert call.wake is not None
                    call.wake.acquire(timeout=call.pause_s)
                case _Next.CONNECT:
                    self._connect(call.deadline)

    def _advance(self, call: _Call) -> _Next:
        """Take one step that does not block. Returns what comes next, for at most call.pause_s."""
        now = time.monotonic()
        if self._leader is None:
            self._leader = call
            self._followers.pop(call, None)
            if now - self._heard_at > _IDLE_S:
                self._receive(now)
        elif self._leader is call:
            ready, call.ready = call.ready, []
            for descriptor, _ in ready:
                if descriptor == self._bell.fileno():
                    self._bell.recv(_READ_BYTES)
                else:
                    self._receive(now)
        if call.missing and now >= call.deadline:
            self._expire(call)
        if not call.missing:
            return _Next.DONE
        if self._leader is call:
            return self._lead(call, now)
        self._flush()
        if self._out:
            self._ring()
        if call.wake is None:
            call.wake = Lock()
            call.wake.acquire()
        self._followers[call] = None
        call.pause_s = min(call.deadline - now, _PAUSE_S)
        return _Next.FOLLOW

    def _lead(self, call: _Call, now: float) -> _Next:
        if self._cut:
            self._lose("it was given up")
        elif self._connection.state is State.GREETING and now >= self._greet_by:
            self._fail(self._shared.unreachable(TimeoutError()))
        if not call.missing:
            return _Next.DONE
        until = call.deadline
        if self._socket is None:
            if now >= self._retry_at:
                if self._lost_at is None:
                    self._lost_at = now
                return _Next.CONNECT
            until = min(until, self._retry_at)
        else:
            if self._connection.state is State.GREETING:
                until = min(until, self._greet_by)
            self._flush()
            if bool(self._out) is not self._poll_out:
                self._poll_out = bool(self._out)
                self._poll.modify(self._socket, select.POLLIN | (select.POLLOUT if self._poll_out else 0))
        call.pause_s = min(until - now, _PAUSE_S)
        return _Next.POLL

    def _leave(self, call: _Call) -> None:
        """Go, whatever the reason: what is not answered is withdrawn, and another thread leads."""
        with self._lock:
            if self._torn:
                self._heal()
            if call.missing:
                for request in call.requests:
                    if self._waiters.pop(request, None) is not None:
                        self._connection.withdraw(request)
                if call in self._greeters:
                    self._greeters.remove(call)
            self._followers.pop(call, None)
            if self._leader is call:
                self._leader = None
                if self._ended:
                    self._shut()
                elif self._followers:
                    self._leader = next(iter(self._followers))
                    del self._followers[self._leader]
                    self._leader.rouse()
                elif self._socket is None:  # nobody tries any more: who comes next begins anew
                    self._failures, self._lost_at, self._retry_at = 0, None, 0.0

    def _forsake(self, call: _Call) -> None:
        """Pass on the replies of a call that is interrupted after they came."""
        with self._lock:
            for outcome in call.outcomes:
                if outcome is not None:
                    self._shared.unclaimed(outcome)

    def _expire(self, call: _Call) -> None:
        """End what is not answered by the call's deadline."""
        if call in self._greeters:
            self._greeters.remove(call)
            call.settle(0, self._shared.unreachable(TimeoutError()))
        silent = is_silent(call.wait_s, call.deadline, self._heard_at)
        for index, request in enumerate(call.requests):
            if self._waiters.pop(request, None) is not None:
                self._connection.withdraw(request)
                call.settle(index, self._shared.too_late(request, call.wait_s))
                self._cut |= silent and request.sends > 0 and self._socket is not None
        if self._cut and self._leader is not call:
            self._ring()

    def _ring(self) -> None:
        """Wake the leader out of its poll."""
        if self._leader is not None:
            with contextlib.suppress(BlockingIOError):  # it is ringing already
                self._clapper.send(b"\0")

    def _heal(self) -> None:
        """Begin anew after an exception in the middle of a change: nothing that was half done can be trusted."""
        self._torn = False
        self._cut = True
        self._forget("the connection was given up, a thread was interrupted while it used it")
        self._ring()

    def _forget(self, reason: str) -> None:
        """End every request, whatever state the connection is in."""
        waiters, self._waiters = self._waiters, {}
        self._connection = ClientConnection(self._shared.session, in_flight_max=self._in_flight_max)
        self._out = memoryview(b"")
        for request, (call, index) in waiters.items():
            unknown = request.kind.writes
            outcome = "outcome unknown" if unknown else "nothing was changed"
            lost = f"{request.kind.verb}: {reason} ({outcome})"
            call.settle(index, ConnectionLost(lost, outcome_unknown=unknown))

    # --- making the connection ----------------------------------------------------------------

    def _connect(self, deadline: float) -> None:
        """Make one attempt, without the lock: only the leader does, and it may block."""
        own_s = deadline - time.monotonic()
        failure: OSError | None = None
        made: socket.socket | None = None
        try:
            made = open_socket(self._shared.address, max(min(own_s, CONNECT_S), 0.001))
        except OSError as error:
            failure = error
        with self._lock:
            self._torn = True
            if made is not None and self._ended:
                made.close()
            elif made is not None:
                self._made(made)
            elif failure is not None and (own_s > CONNECT_S or not isinstance(failure, TimeoutError)):
                self._fail(self._shared.unreachable(failure))
            self._torn = False

    def _made(self, made: socket.socket) -> None:
        now = time.monotonic()
        self._socket = made
        self._poll.register(made, select.POLLIN)
        self._poll_out = self._deaf = self._cut = False
        self._heard_at = now
        self._greet_by = now + CONNECT_S
        self._connection.open()

    def _fail(self, error: JqdError) -> None:
        """End an attempt: another one follows after a while, or everybody is told."""
        self._detach()
        self._failures += 1
        now = time.monotonic()
        lost_at = now if self._lost_at is None else self._lost_at
        wait_ms = self._shared.retry_ms(error, self._failures, now - lost_at)
        if wait_ms is not None:
            self._retry_at = now + wait_ms / 1_000
            return
        self._failures, self._lost_at, self._retry_at = 0, None, 0.0
        refusal = None if isinstance(error, ConnectionLost) else error
        self._deliver(self._connection.give_up(str(error), refusal))
        self._greet(error)

    def _greet(self, outcome: Struct | JqdError) -> None:
        greeters, self._greeters = self._greeters, []
        for call in greeters:
            call.settle(0, outcome)

    # --- the socket ---------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what the socket takes now."""
        if self._socket is None or self._deaf:
            return
        try:
            while self._out or (data := self._connection.data_to_send()):
                if not self._out:
                    self._out = memoryview(data)
                self._out = self._out[self._socket.send(self._out) :]
        except BlockingIOError:
            return
        except OSError:
            self._deaf = True  # what the server said before it closed is read first, then the end

    def _receive(self, now: float) -> None:
        """Take what has arrived."""
        if self._socket is None or self._cut:
            return
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if not data:
            self._lose("the server closed it")
            return
        self._heard_at = now
        greeting = self._connection.state is State.GREETING
        self._deliver(self._connection.receive_data(data))
        failure = self._connection.failure
        if failure is not None and greeting:
            self._fail(self._shared.unreachable(failure))
        elif failure is not None:
            self._lose(str(failure))
        elif greeting and (welcome := self._connection.welcome) and self._connection.state is State.READY:
            self._shared.reached = True
            self._failures, self._lost_at = 0, None
            self._greet(welcome)

    def _deliver(self, answers: list[Answered]) -> None:
        for request, outcome in answers:
            waiter = self._waiters.pop(request, None)
            if waiter is None:
                self._shared.unclaimed(outcome)
            else:
                call, index = waiter
                call.settle(index, in_own_words(outcome) if isinstance(outcome, JqdError) else outcome)

    def _lose(self, reason: str) -> None:
        """Go on after the end of the stream: an attempt has failed, or a connection was lost."""
        if self._connection.state is State.GREETING:
            lost = f"{self._shared.url}: the connection was lost: {reason}"
            self._fail(ConnectionLost(lost, outcome_unknown=False))
        else:
            self._detach()

    def _detach(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(KeyError, ValueError):  # an interrupted thread came that far, or farther
                self._poll.unregister(self._socket)
            self._socket.close()
            self._socket = None
        self._out = memoryview(b"")
        self._cut = False
        self._deliver(self._connection.closed())

    # --- the end ------------------------------------------------------------------------------

    def retire(self) -> None:
        """Leave a lease that nobody waits for: tell the server by closing this side, and read what may
        be on its way, so that its jobs can be given back.
        """
        call = _Call(1, _CLOSE_S)  # a leader without a request: nobody else uses this connection
        try:
            with self._lock:
                self._leader = call
                self._cut = False  # a connection that was silent is left all the same
                if self._socket is not None and self._connection.state is State.READY:
                    self._socket.shutdown(socket.SHUT_WR)
                    self._deaf = True
            while self._reads_on(call):
                self._poll.poll(call.pause_s * 1_000)
        except OSError:
            pass  # it is gone already
        finally:
            self.end("not needed any more")
            self._leave(call)

    def _reads_on(self, call: _Call) -> bool:
        with self._lock:
            now = time.monotonic()
            self._receive(now)
            call.pause_s = call.deadline - now
            return self._deaf and self._socket is not None and call.pause_s > 0 and not self._ended

    def end(self, reason: str) -> None:
        """Close for good, from any thread; whoever still waits gets ConnectionLost."""
        with self._lock:
            if self._ended:
                return
            self._ended = reason
            self._flush()
            self._deliver(self._connection.give_up(reason, kind=ClientClosed))
            self._greet(ClientClosed(reason, outcome_unknown=False))
            if self._leader is None:
                self._shut()
            else:
                self._ring()  # it leaves at once, and shuts

    def disown(self, lock: RLock) -> None:
        """Let go, in a fork, of what is the parent's: this process's copies of the sockets are closed, nothing is
        said to the server. Only a thread that forked inside a request (a signal handler did) still stands here.

        Args: lock: instead of the old one, which a thread that is not here may have held.
        """
        self._lock = lock
        self._ended = "it was asked before the fork, by the parent"
        self._leader = None
        self._followers.clear()
        for copy in (self._socket, self._bell, self._clapper):
            if copy is not None:
                copy.close()
        self._forget(self._ended)
        self._greet(ConnectionLost(self._ended, outcome_unknown=False))

    def _shut(self) -> None:
        self._detach()
        self._bell.close()
        self._clapper.close()
        self._shared.links.discard(self)


def open_socket(address: Address, timeout_s: float) -> socket.socket:
    """Return a connected socket that does not block; `timeout_s`: for the connecting.

    Raises: OSError.
    """
    if isinstance(address, TcpAddress):
        made = socket.create_connection((address.host, address.port), timeout_s)
    else:
        made = socket.socket(socket.AF_UNIX)
    try:
        if isinstance(address, TcpAddress):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        else:
            made.settimeout(timeout_s)
            made.connect(address.path)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made
